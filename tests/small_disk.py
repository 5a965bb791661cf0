"""A disk that fills up: a command with a folder that holds no more than a few MiB.

Where the kernel allows it, the folder is a small tmpfs of the command's own, gone with it; elsewhere (in a container
without that right) no file may grow beyond the size, which is refused by another number but for the same reason.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

MOUNT = 'mount -t tmpfs -o size="$0"m searchloop "$1" && shift && exec "$@"'


def on_small_disk(folder: Path, mib: int, command: list[str]) -> list[str]:
    """Return the command that runs `command` with `folder`, which exists and seems empty, on a disk of this size."""
    if _may_mount():
        return ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, str(mib), str(folder), *command]
    return ["prlimit", f"--fsize={mib << 20}", *command]


@functools.cache
def _may_mount() -> bool:
    probe = ["unshare", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs searchloop /tmp"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
