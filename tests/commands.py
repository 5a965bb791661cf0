"""The command as a process of its own, on services that run: called, interrupted, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from infra.app.layers import known_keys
from infra.app.settings import Settings
from services.local import Endpoints
from services.private_variables import PREFIX

ROOT = Path(__file__).parents[1]


def command(home: Path, *arguments: str) -> list[str]:
    """Return the command line of `searchloop` on this home."""
    return [sys.executable, "-m", "infra.cli", "--home", str(home), *arguments]


def environment(services: Endpoints, settings: Settings | None = None) -> dict[str, str]:
    """Return the variables that name these services and all settings that differ from their defaults."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    given = {"kafka.bootstrap": services.kafka, "elasticsearch.url": services.elasticsearch}
    if settings is not None:
        defaults = msgspec.to_builtins(Settings())
        for path in known_keys(Settings):
            value, default = _at(msgspec.to_builtins(settings), path), _at(defaults, path)
            if value != default:
                given.setdefault(path, value if isinstance(value, str) else msgspec.json.encode(value).decode())
    return kept | {PREFIX + path.upper().replace(".", "__"): value for path, value in given.items()}


def start(home: Path, *arguments: str, variables: dict[str, str], until: str) -> subprocess.Popen[str]:
    """Start the command and return when it has said `until` on standard error.

    Raises AssertionError with what it said if it ends before.
    """
    process = subprocess.Popen(
        command(home, *arguments),
        cwd=ROOT,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if until in line:
            return process
    raise AssertionError(f"it ended with {process.wait()} before it said {until!r}: {''.join(said)}")


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Press Ctrl-C, wait, and return exit status and last line."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    return process.returncode, said.strip().splitlines()[-1]


def _at(tree: object, path: str) -> object:
    for part in path.split("."):
        assert isinstance(tree, dict)
        tree = tree[part]
    return tree
