"""The id of an installation: a file in the home, made once, by which what it made elsewhere is known as its own.

Indexes on a cluster carry it (`search_env.engine.ownership`). A home that is moved keeps its id. A copy of a home has
the same id, and each of the two takes the other's indexes for its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import uuid
from pathlib import Path

from streams.errors import SettingsError

INSTALLATION_FILE = "installation"
_ID = re.compile(r"[0-9a-f]{32}")


def installation_id(root: Path) -> str:
    """Return the id of the installation whose home this is; it is made if there is none yet.

    Of several processes that ask at once, all get the same. Raises SettingsError if the file holds no id: it is never
    replaced, because everything that carries the old one would be a stranger's.
    """
    path = root / INSTALLATION_FILE
    if not path.exists():
        _make(path)
    found = path.read_text(errors="replace").strip()
    if not _ID.fullmatch(found):
        raise SettingsError(
            f"{path}: expected an id of 32 hex digits, got {found[:40]!r}. Put back the one that this home had: the "
            "mapping of every index that it made holds it (_meta.searchloop.installation). If it has made none, delete "
            "the file"
        )
    return found


def _make(path: Path) -> None:
    """Write a new id so that it is there whole or not at all, and so that the first one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with aside.open("x") as file:
            file.write(uuid.uuid4().hex + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # Another process was faster: its id is the one.
            try:
                os.link(aside, path)
            except FileExistsError:
                raise
            except OSError:  # A file system without links.
                if not path.exists():
                    aside.rename(path)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    finally:
        aside.unlink(missing_ok=True)
