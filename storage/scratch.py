"""Folders for copies of live runs and for what readers of a log put aside, in the system's temporary folder."""

from __future__ import annotations

import atexit
from functools import cache
from pathlib import Path

from streams import owned_folders
from streams.owned_folders import FolderKind, OwnedFolder

COPIES = FolderKind(
    prefix="searchloop-copy-",
    mark="owner",
    says=b"A copy of a run that searchloop's pages follow. Its process holds the lock of this file.\n",
)
SPILL = "spill"


class Scratch(OwnedFolder):
    """A new folder that this process owns until `remove`, or until it dies."""

    def __init__(self) -> None:
        super().__init__(COPIES)


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
    return owned_folders.remove_abandoned(COPIES)
