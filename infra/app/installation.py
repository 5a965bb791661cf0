"""The id of an installation: a file in the home, made once. The id marks everything that the installation owns.

Indexes on a cluster carry the id (`search_env.engine.ownership`). A home that is moved keeps its id. A copy of a home
has the same id, so the home and its copy treat each other's indexes as their own.
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
    """Return the id of the installation with this home; make the id if there is none yet.

    Processes that call this at the same time get the same id. Raises SettingsError if the file holds no id. The file is
    never replaced, because the installation would lose everything that carries the old id.
    """
    path = root / INSTALLATION_FILE
    if not path.exists():
        _make(path)
    found = path.read_text(errors="replace").strip()
    if not _ID.fullmatch(found):
        raise SettingsError(
            f"{path}: expected an id of 32 hex digits, got {found[:40]!r}. Restore the home's former id: the mapping "
            "of every index that it made holds the id (_meta.searchloop.installation). If it made no index, delete "
            "the file"
        )
    return found


def _make(path: Path) -> None:
    """Write a new id completely or not at all; never replace an existing id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with aside.open("x") as file:
            file.write(uuid.uuid4().hex + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # Another process was faster: its id stays.
            try:
                os.link(aside, path)
            except FileExistsError:
                raise
            except OSError:  # A file system without hard links.
                if not path.exists():
                    aside.rename(path)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    finally:
        aside.unlink(missing_ok=True)
