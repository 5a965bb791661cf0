"""Pseudonyms: what a client or a session is called in the log, so that a person can be forgotten.

Each person has a secret of 32 random bytes. A pseudonym is an HMAC-SHA256 of the client's or session's id under that
secret. The secrets lie in a table of the home, outside the log. A row's id is an HMAC of the person's id under the
home's key, so the table alone names nobody. To forget a person is to delete the row: nobody can find the person's
pseudonym again, or tell whose it was, not even with the key. If the person comes again, it is a new one.

A session belongs to its client; one without a client is a person of its own. Neither key, secret nor raw id leaves
this module: not to Kafka, a log, a ledger or an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from streams.errors import SearchloopError, SettingsError
from streams.inputs.text import clean_text

KEY_FILE = "key"
TABLE_FILE = "people.sqlite"
KEY_BYTES = 32
PSEUDONYM_BYTES = 16
BUSY_SECONDS = 5.0
CHARACTERS_MAX = (100, 512)  # `serve` and imports cut ids at these lengths.

_CREATE = "CREATE TABLE IF NOT EXISTS people (id BLOB PRIMARY KEY, secret BLOB NOT NULL) WITHOUT ROWID"


class PseudonymError(SearchloopError, RuntimeError):
    """The table of secrets cannot be read or written now."""


class Pseudonyms:
    """The pseudonyms of one home. One thread uses an object; any number of processes use the table at once."""

    def __init__(self, folder: Path) -> None:
        """folder: of the key and the table; both are made at first use, for their owner alone.

        Raises SettingsError if the key is damaged or readable for others, PseudonymError as all methods do.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = _read_key(folder / KEY_FILE)
        path = folder / TABLE_FILE
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its other files the same mode.
            self._table = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            # Content that is deleted is overwritten. A power cut may lose the newest secrets: new ones are drawn.
            for pragma in ("secure_delete = ON", "journal_mode = WAL", "synchronous = NORMAL"):
                self._table.execute(f"PRAGMA {pragma}")
            self._table.execute(_CREATE)
        except (OSError, sqlite3.Error) as error:
            raise self._trouble(error) from error

    def __enter__(self) -> Pseudonyms:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the table."""
        self.close()

    def close(self) -> None:
        """Close the table."""
        self._table.close()

    def of(self, client: str, session: str = "") -> tuple[str, str]:
        """Return the pseudonyms of a client and of its session, 32 hex digits each; "" stays ""."""
        if not client and not session:
            return "", ""
        secret = self._secret(_person(client, session))
        return _digest(secret, "client", client), _digest(secret, "session", session)

    def forget(self, ids: Iterable[str]) -> int:
        """Delete the secrets of clients, and of sessions without a client; return how many there were.

        Returns when no file of the table holds them any more. Raises PseudonymError if another process is reading for
        so long that this cannot be done; then call it again.
        """
        names = {clean_text(each, characters_max=limit) for each in ids for limit in CHARACTERS_MAX}
        people = {_person(name, "") for name in names if name} | {_person("", name) for name in names if name}
        try:
            with self._table:
                self._table.execute("BEGIN IMMEDIATE")
                rows = [
                    self._table.execute("DELETE FROM people WHERE id = ?", (self._id(each),)).rowcount
                    for each in sorted(people)
                ]
            self._empty_journal()
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        return sum(rows)

    def _secret(self, person: str) -> bytes:
        name = self._id(person)
        try:
            while True:
                found = self._table.execute("SELECT secret FROM people WHERE id = ?", (name,)).fetchone()
                if found is not None:
                    return bytes(found[0])
                # Of two processes that draw one at once, the first wins for both.
                fresh = (name, secrets.token_bytes(KEY_BYTES))
                self._table.execute("INSERT OR IGNORE INTO people VALUES (?, ?)", fresh)
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def _id(self, person: str) -> bytes:
        return hmac.digest(self._key, person.encode(errors="surrogatepass"), hashlib.sha256)

    def _empty_journal(self) -> None:
        """Empty the write-ahead journal, which holds old pages."""
        deadline = time.monotonic() + BUSY_SECONDS
        while self._table.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > deadline:
                raise PseudonymError(
                    f"{self._folder / TABLE_FILE}: the secrets are deleted, but another process reads the table, so "
                    f"its journal still holds them. Forget the same persons again"
                )
            time.sleep(0.05)

    def _trouble(self, error: Exception) -> PseudonymError:
        return PseudonymError(
            f"{self._folder / TABLE_FILE}: expected the table of persons' secrets, got: {error}. Look at the disk and "
            "the file's owner. If the file is damaged, move it away: everybody gets a new pseudonym"
        )


def _person(client: str, session: str) -> str:
    return f"client\0{client}" if client else f"session\0{session}"


def _digest(secret: bytes, kind: str, name: str) -> str:
    if not name:
        return ""
    message = f"{kind}\0{name}".encode(errors="surrogatepass")
    return hmac.digest(secret, message, hashlib.sha256)[:PSEUDONYM_BYTES].hex()


def _read_key(path: Path) -> bytes:
    if not path.exists():
        _make_key(path)
    if path.stat().st_mode & 0o077:
        raise SettingsError(f"{path}: expected a key that its owner alone may read. Run: chmod 600 {path}")
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsError(
            f"{path}: expected a key of {2 * KEY_BYTES} hex digits. Restore the file from a backup, or delete it: "
            "everybody gets a new pseudonym"
        )
    return key


def _make_key(path: Path) -> None:
    """Write a new key whole or not at all; never replace one."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # Another process was faster: its key stays.
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
