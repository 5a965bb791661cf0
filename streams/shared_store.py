"""A store that machines share: a folder, or a bucket of S3, Google Cloud or Azure.

A *bundle* is a folder's files under one name, such as `runs/shop/checkpoints/1-ab12cd-000007`. Each file is stored
once, under the sha256 of its content. The bundle's list of files comes last and never changes. So a reader sees a
bundle whole or not at all, and a writer that is killed leaves files that no list names. Every read compares each file
with its sha256.

    runs/shop/checkpoints/1-ab12cd-000007.json    the list: {"files": {name: {"sha256": …, "bytes": …}}}
    runs/shop/checkpoints/files/<sha256>          one file's content; bundles of one place share equal files
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from streams.descriptions import describe
from streams.errors import SearchloopError, SettingsError, TransientError
from streams.whole_file import SUFFIX, file_sha256, sync, whole_file, whole_folder

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

SCHEMES = ("file", "s3", "gs", "az")
FILES = "files"
LIST_BYTES_MAX = 16 << 20
_PART = re.compile(r"[^\x00-\x1f\x7f/\\]{1,255}")
_LIST = ".json"


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The place for files that several machines need: policy versions, archive segments, indexes' models."""

    url: Annotated[
        str,
        describe(
            "Store that all machines of a run share, such as s3://bucket/prefix or file:///folder (infra/MACHINES.md). "
            "Empty: this machine's disk alone."
        ),
    ] = ""


class StoreError(SearchloopError, RuntimeError):
    """A shared store refuses, or holds something else than it should."""


class StoreAwayError(TransientError):
    """A shared store does not answer now."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a bundle: its sha256 (64 hex digits) and its size in bytes."""

    sha256: str
    bytes: int


class Bundle(msgspec.Struct, frozen=True, kw_only=True, tag="bundle/1", tag_field="format"):
    """A bundle's list: its files by their path within the folder."""

    files: dict[str, StoredFile]


class SharedStore:
    """A store of bundles; open it with `open_store`."""

    def __init__(self, objects: ObjectStore, *, url: str, disk: Path | None = None) -> None:
        """objects: the opened store. url: its address, for messages. disk: its folder, if it is one."""
        self._objects = objects
        self._disk = disk
        self.url = url

    def put(self, name: str, folder: Path, files: Sequence[str] | None = None) -> Bundle:
        """Store files of a folder as a bundle, and return its list.

        files: their paths within the folder; None takes all but those that are being written.
        A bundle that is there already, with the same files, stays as it is. Raises StoreError if it holds other files,
        StoreAwayError if the store does not answer.
        """
        made = described(folder, files_of(folder) if files is None else files)
        place = PurePosixPath(name).parent
        for each, stored in made.files.items():
            at = f"{place}/{FILES}/{stored.sha256}"
            if self._size(at) != stored.bytes:
                self._write(at, folder / each)
        if not self._create(f"{name}{_LIST}", msgspec.json.encode(made)) and (there := self.bundle(name)) != made:
            other = sorted(set(there.files.items() if there else ()) ^ set(made.files.items()), key=str)[0][0]
            raise StoreError(
                f"{self.url}: {name} is stored already with other content ({other} differs). A stored version never "
                "changes; choose another name, or another store.url"
            )
        return made

    def get(self, name: str, target: Path) -> Bundle:
        """Write a bundle's files as the folder `target`, whole or not at all, and return its list.

        A folder that exists stays as it is (FileExistsError). Raises StoreError if the bundle is not there or damaged,
        StoreAwayError if the store does not answer.
        """
        bundle = self.bundle(name)
        if bundle is None:
            raise StoreError(
                f"{self.url}: expected {name}, found no such bundle; it was removed, or never stored. Check store.url"
            )
        with whole_folder(target) as aside:
            for each, stored in bundle.files.items():
                path = aside / each
                path.parent.mkdir(parents=True, exist_ok=True)
                self._read(f"{PurePosixPath(name).parent}/{FILES}/{stored.sha256}", path, stored, of=f"{name}/{each}")
        return bundle

    def get_file(self, name: str, path: str, target: Path) -> None:
        """Write one file of a bundle as `target`, whole or not at all. Raises as `get` does."""
        stored = self._stored(name, path)
        with whole_file(target) as aside:
            self._read(f"{PurePosixPath(name).parent}/{FILES}/{stored.sha256}", aside, stored, of=f"{name}/{path}")

    def bundle(self, name: str) -> Bundle | None:
        """Return a bundle's list; None if there is no such bundle. Raises StoreError if the list is damaged."""
        key = f"{_checked(name)}{_LIST}"
        try:
            content = self._ask(lambda: _content(self._objects, key))
        except FileNotFoundError:
            return None
        try:
            bundle = msgspec.json.decode(content, type=Bundle)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
            raise StoreError(f"{self.url}: {key} is damaged ({error}); remove it and store the bundle again") from error
        for path, stored in bundle.files.items():
            if not _is_plain(path) or not re.fullmatch("[0-9a-f]{64}", stored.sha256):
                raise StoreError(f"{self.url}: {key}: expected plain paths and sha256, got {path[:200]!r}")
        return bundle

    def names(self, place: str) -> list[str]:
        """Return the names of the bundles directly below a place, without the place, sorted."""
        import obstore

        def listed() -> list[str]:
            found = obstore.list_with_delimiter(self._objects, prefix=_checked(place))
            return [PurePosixPath(each["path"]).name for each in found["objects"]]

        try:
            names = self._ask(listed)
        except FileNotFoundError:
            return []
        return sorted(name.removesuffix(_LIST) for name in names if name.endswith(_LIST))

    def below(self, place: str) -> Iterator[str]:
        """Yield the name of each bundle below a place, at any depth."""
        import obstore

        def listed() -> list[str]:
            return [each["path"] for batch in obstore.list(self._objects, prefix=_checked(place)) for each in batch]

        try:
            paths = self._ask(listed)
        except FileNotFoundError:
            return
        for path in sorted(paths):
            if path.endswith(_LIST) and f"/{FILES}/" not in path:
                yield path.removesuffix(_LIST)

    def remove(self, name: str) -> None:
        """Delete a bundle: its list first, then those of its files that no other bundle of its place has."""
        import obstore

        bundle = self.bundle(name)
        if bundle is None:
            return
        place = str(PurePosixPath(name).parent)
        self._ask(lambda: obstore.delete(self._objects, f"{name}{_LIST}"))
        others = [self.bundle(f"{place}/{each}") for each in self.names(place)]
        kept = {stored.sha256 for other in others if other for stored in other.files.values()}
        for sha256 in {stored.sha256 for stored in bundle.files.values()} - kept:
            self._forget(f"{place}/{FILES}/{sha256}")

    def address(self, name: str, path: str) -> str:
        """Return the address of one file of a bundle below the store, as `objects` and DuckDB read it.

        Raises StoreError if there is no such bundle or file.
        """
        return f"{PurePosixPath(name).parent}/{FILES}/{self._stored(name, path).sha256}"

    @property
    def objects(self) -> ObjectStore:
        """The opened store, for readers of single files."""
        return self._objects

    def _stored(self, name: str, path: str) -> StoredFile:
        bundle = self.bundle(name)
        if bundle is None or path not in bundle.files:
            raise StoreError(f"{self.url}: expected {path} in {name}, found no such file; check the name")
        return bundle.files[path]

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
        import obstore

        def read() -> str:
            found = hashlib.sha256()
            with path.open("wb") as file:
                for chunk in obstore.get(self._objects, key).stream():
                    found.update(chunk)
                    file.write(chunk)
            return found.hexdigest()

        try:
            found = self._ask(read)
        except FileNotFoundError:
            found = ""
        if found != stored.sha256:
            came = f"{found[:12]}…" if found else "none"
            raise StoreError(
                f"{self.url}: {of}: expected a file with sha256 {stored.sha256[:12]}…, found {came} at {key}; store "
                "the bundle again, from the machine that made it"
            )

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
                f"{self.url}: access refused ({_first_line(error)}); check the credentials in the environment and "
                "their rights on this place"
            ) from error
        except (exceptions.GenericError, OSError) as error:
            raise StoreAwayError(f"{self.url}: the store does not answer ({_first_line(error)})") from error
        except exceptions.BaseError as error:
            raise StoreError(f"{self.url}: {_first_line(error)}") from error


def files_of(folder: Path) -> list[str]:
    """Return the paths of a folder's files, sorted, without links, hidden ones, locks and what is being written."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.name.endswith((f".{SUFFIX}", ".lock"))
    ]


def described(folder: Path, files: Sequence[str]) -> Bundle:
    """Return the list of a bundle of these files of a folder, as they are now."""
    return Bundle(files={each: _described(folder / each) for each in sorted(files)})


def open_store(settings: StoreSettings) -> SharedStore | None:
    """Return the store of the settings; None if they name none.

    The folder of a file:// address is made. Raises SettingsError if the address is not one of a store.
    """
    if not settings.url:
        return None
    address = urlsplit(settings.url)
    if address.scheme not in SCHEMES or address.username or address.password or address.query or address.fragment:
        raise SettingsError(
            "store.url: expected file:///folder, s3://bucket/prefix, gs://bucket/prefix or "
            "az://account/container/prefix, without credentials, got "
            f"{address.scheme + '://…' if address.password or address.query else repr(settings.url[:200])}"
        )
    from obstore import exceptions
    from obstore.store import LocalStore, from_url

    try:
        if address.scheme == "file":
            folder = Path(unquote(address.path))
            if address.netloc or not folder.is_absolute() or len(folder.parts) < 2:
                raise SettingsError(f"store.url: expected file:/// and an absolute path, got {settings.url[:200]!r}")
            folder.mkdir(parents=True, exist_ok=True)
            return SharedStore(LocalStore(prefix=folder), url=settings.url, disk=folder)
        objects = from_url(
            settings.url,
            client_options={
                "connect_timeout": timedelta(seconds=3),
                "timeout": timedelta(seconds=60),
                "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",  # A given option hides it.
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=10)},
        )
    except (exceptions.BaseError, OSError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"store.url: {settings.url[:200]!r} cannot be opened ({_first_line(error)})") from error
    return SharedStore(objects, url=settings.url)


def _content(objects: Any, key: str) -> bytes:
    import obstore

    found = obstore.get(objects, key)
    if found.meta["size"] > LIST_BYTES_MAX:
        raise StoreError(f"{key}: expected a list of at most {LIST_BYTES_MAX} bytes, found {found.meta['size']}")
    return bytes(found.bytes())


def _described(path: Path) -> StoredFile:
    return StoredFile(sha256=file_sha256(path), bytes=path.stat().st_size)


def _is_plain(path: str) -> bool:
    """Return whether a path from outside stays within the folder that it is joined to."""
    parts = path.split("/")
    return all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)


def _checked(name: str) -> str:
    if not _is_plain(name):
        raise StoreError(f"expected a plain name of a bundle, got {name[:200]!r}")
    return name


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, which may go on for pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
