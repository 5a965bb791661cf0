"""Folders of this process in the system's temporary folder; those of processes that were killed are removed.

A folder's process holds the lock of its mark, however it ends until then. A folder goes only if it is this user's, has
our mark, and nobody holds that lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from streams.locks import take


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """One kind of owned folders: how their names begin, and the name and content of their mark."""

    prefix: str
    mark: str
    says: bytes = b""


class OwnedFolder:
    """A new folder that this process owns until `remove`, or until it dies."""

    def __init__(self, kind: FolderKind) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=kind.prefix))
        making = self.path / f"{kind.mark}.making"
        self._mark = making.open("xb")
        self._mark.write(kind.says)
        self._mark.flush()
        take(self._mark)
        making.rename(self.path / kind.mark)  # Whoever sees the mark sees a lock that is held.

    def remove(self) -> None:
        """Remove the folder, as far as that is possible, and then give up the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._mark.close()


def remove_abandoned(kind: FolderKind) -> list[Path]:
    """Remove the folders of this kind whose processes were killed, and return them."""
    found = sorted(Path(tempfile.gettempdir()).glob(f"{kind.prefix}*"))
    return [folder for folder in found if _remove_abandoned(folder, kind)]


def _remove_abandoned(folder: Path, kind: FolderKind) -> bool:
    with contextlib.suppress(OSError):  # Somebody else's, or gone meanwhile.
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            return False
        handle = os.open(folder / kind.mark, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            kept = os.fstat(handle)
            ours = stat.S_ISREG(kept.st_mode) and kept.st_uid == os.geteuid()
            if ours and os.read(handle, len(kind.says) + 1) == kind.says and take(handle):
                shutil.rmtree(folder)
                return True
        finally:
            os.close(handle)
    return False
