"""The objects of a store: read in parts, written once, and every failure under one of three names.

`streams.shared_store` makes bundles of them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import msgspec

from streams.errors import SearchloopError, TransientError
from streams.whole_file import sync

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

LIST_BYTES_MAX = 16 << 20
log = logging.getLogger(__name__)
# A request has 60 s, its answer included. Larger files are read in parts, each with retries of its own.
PART_BYTES = 16 << 20
PART_TRIES = 5
CLOUDS = ("AWS_", "AZURE_", "GOOGLE_", "GCP_", "GCS_")
SECRET_CHARACTERS_MIN = 4
_SECRET = re.compile("SECRET|TOKEN|KEY|PASSWORD|CREDENTIAL|SIGNATURE", re.IGNORECASE)
_ADDRESS = re.compile(r"(\w+://)([^\s/@]*@)?([^\s?]*)(\?\S*)?")


class StoreError(SearchloopError, RuntimeError):
    """A shared store refuses, or holds something else than it should."""


class StoreConflictError(StoreError):
    """A bundle of this name is stored already, with other content."""


class StoreAwayError(TransientError):
    """A shared store does not answer now."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a bundle: its sha256 (64 hex digits) and its size in bytes."""

    sha256: str
    bytes: int


class StoredObjects:
    """A store's objects, with this project's errors."""

    def __init__(self, objects: ObjectStore, *, url: str, disk: Path | None = None) -> None:
        """objects: the opened store. url: its address, for messages. disk: its folder, if it is one."""
        self._objects = objects
        self._disk = disk
        self.url = url

    @property
    def objects(self) -> ObjectStore:
        """The opened store, for readers of single files."""
        return self._objects

    def _size(self, key: str) -> int | None:
        import obstore

        try:
            return int(self._ask(lambda: obstore.head(self._objects, key)["size"]))
        except FileNotFoundError:
            return None

    def _write(self, key: str, path: Path) -> None:
        import obstore

        self._ask(lambda: obstore.put(self._objects, key, path))
        self._to_disk(key)

    def _create(self, key: str, content: bytes) -> bool:
        """Write a list unless there is one; return whether it was written."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def create() -> bool:
            try:
                obstore.put(self._objects, key, content, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        made = self._ask(create)
        self._to_disk(key)
        return made

    def _read(self, key: str, path: Path, stored: StoredFile, *, of: str) -> None:
        """Write a stored file as `path`. Raises StoreError if it is not the one that the list names."""
        content, found = hashlib.sha256(), ""
        try:
            with path.open("wb") as file:
                for part in self._parts(key, stored, of=of):
                    content.update(part)
                    _write_here(file, part, path)
            found = content.hexdigest()
        except FileNotFoundError:
            log.debug("%s: there is no %s", self.url, key)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written ({error.strerror or error}); make room, then start again"
            ) from error
        if found != stored.sha256:
            came = f"{found[:12]}…" if found else "none"
            raise StoreError(
                f"{self.url}: {of}: expected a file with sha256 {stored.sha256[:12]}…, found {came} at {key}; remove "
                "that object, and store the bundle again from the machine that made it"
            )

    def _parts(self, key: str, stored: StoredFile, *, of: str) -> Iterator[bytes]:
        """Yield a file's content in parts, so that a slow store goes on with the part where it broke off.

        Raises FileNotFoundError if there is no such file, and StoreError if it is longer than its list says.
        """

        if (size := self._size(key)) is None:
            raise FileNotFoundError(key)
        if size > stored.bytes:
            raise StoreError(f"{self.url}: {of}: expected a file of {stored.bytes} bytes, found a longer one at {key}")
        for start in range(0, size, PART_BYTES):
            end = min(start + PART_BYTES, size)
            for tries in range(PART_TRIES):
                try:
                    part = self._ask(partial(_range, self._objects, key, start, end))
                    break
                except StoreAwayError:
                    if tries + 1 == PART_TRIES:
                        raise
            yield part

    def _forget(self, key: str) -> None:
        import obstore

        try:
            self._ask(lambda: obstore.delete(self._objects, key))
        except FileNotFoundError:
            return

    def _to_disk(self, key: str) -> None:
        """Return when a file of a folder is on the disk: the object store's library does not sync."""
        if self._disk is not None:
            sync(self._disk / key)
            sync((self._disk / key).parent)

    def _ask(self, act: Callable[[], T]) -> T:
        """Return what `act` returns, with this project's errors.

        Raises FileNotFoundError if what it asks for is not there.
        """
        from obstore import exceptions

        try:
            return act()
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(str(error)) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
            raise StoreError(
                f"{self.url}: access refused ({first_line(error)}); check the credentials in the environment and "
                "their rights on this place"
            ) from error
        except (exceptions.GenericError, OSError) as error:
            if _is_untrusted(error):
                raise StoreError(
                    f"{self.url}: the store's certificate is not trusted ({first_line(error)}); name its authority in "
                    "store.ca_certs"
                ) from error
            raise StoreAwayError(f"{self.url}: the store does not answer ({first_line(error)})") from error
        except exceptions.BaseError as error:
            raise StoreError(f"{self.url}: {first_line(error)}") from error


def _range(objects: Any, key: str, start: int, end: int) -> bytes:
    import obstore

    return bytes(obstore.get_range(objects, key, start=start, end=end))


def content_of(objects: Any, key: str) -> bytes:
    import obstore

    found = obstore.get(objects, key)
    if found.meta["size"] > LIST_BYTES_MAX:
        raise StoreError(f"{key}: expected a list of at most {LIST_BYTES_MAX} bytes, found {found.meta['size']}")
    return bytes(found.bytes())


def _write_here(file: BinaryIO, part: bytes, path: Path) -> None:
    """Write to a file of this machine. Raises StoreError, because an OSError would be taken for the store's."""
    try:
        file.write(part)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}); make room on this machine's disk, and start again"
        ) from error


def _is_untrusted(error: BaseException) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("invalid peer certificate", "invalidcertificate", "certificate verify failed"))


def first_line(error: BaseException) -> str:
    """Return the first line of an error, which may go on for pages, without secrets.

    The library shows the addresses that it asked for, and those of Azure hold their key.
    """
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for name, value in os.environ.items():
        if len(value) >= SECRET_CHARACTERS_MIN and _SECRET.search(name) and name.startswith(CLOUDS):
            text = text.replace(value, "…")
    return _ADDRESS.sub(
        lambda found: f"{found[1]}{'…@' if found[2] else ''}{found[3]}{'?…' if found[4] else ''}", text
    )[:300]
