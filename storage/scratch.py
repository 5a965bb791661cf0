"""Folders for copies of live runs and for what readers of a log put aside, in the system's temporary folder.

Those whose process is dead are removed.

A folder's process holds the lock of its mark, however it ends until then. A folder goes only if it is this user's, has
our mark, and nobody holds that lock.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

from streams.locks import take

PREFIX = "searchloop-copy-"
MARK = "owner"
SPILL = "spill"
SAYS = b"A copy of a run that searchloop's pages follow. Its process holds the lock of this file.\n"


class Scratch:
    """A new folder that this process owns until `remove`, or until it dies."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        making = self.path / f"{MARK}.making"
        self._mark = making.open("xb")
        self._mark.write(SAYS)
        self._mark.flush()
        take(self._mark)
        making.rename(self.path / MARK)  # Whoever sees the mark sees a lock that is held.

    def remove(self) -> None:
        """Remove the folder, as far as that is possible, and then give up the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._mark.close()


@cache
def spill_folder() -> Path:
    """Return this process's folder for what questions put aside; it goes when the process ends.

    Those of processes that were killed go now.
    """
    remove_abandoned()
    scratch = Scratch()
    atexit.register(scratch.remove)
    return scratch.path


def within_memory(memory_mib: int, aside: Path | None = None) -> dict[str, str]:
    """Return DuckDB's options for a connection that keeps to a memory and puts the rest beside no file of the user's.

    aside: a folder that the caller removes; None for that of this process.
    """
    return {"memory_limit": f"{memory_mib}MiB", "temp_directory": str((aside or spill_folder()) / SPILL)}


def remove_abandoned() -> list[Path]:
    """Remove the folders of processes that were killed, and return them."""
    found = sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))
    return [folder for folder in found if _remove_abandoned(folder)]


def _remove_abandoned(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # Somebody else's, or gone meanwhile.
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            return False
        handle = os.open(folder / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            kept = os.fstat(handle)
            ours = stat.S_ISREG(kept.st_mode) and kept.st_uid == os.getuid()
            if ours and os.read(handle, len(SAYS) + 1) == SAYS and take(handle):
                shutil.rmtree(folder)
                return True
        finally:
            os.close(handle)
    return False
