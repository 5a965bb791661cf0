"""A store that machines share: a folder, or a bucket of S3, Google Cloud or Azure.

A *bundle* is a folder's files under one name, such as `runs/shop/checkpoints/1-ab12cd-000007`. Each file is stored
once, under the sha256 of its content. The bundle's list of files comes last and never changes. So a reader sees a
bundle whole or not at all, and a writer that is killed leaves files that no list names. Every read compares each file
with its sha256.

    runs/shop/checkpoints/1-ab12cd-000007.json    the list: {"files": {name: {"sha256": …, "bytes": …}}}
    runs/shop/checkpoints/files/<sha256>          one file's content; bundles of one place share equal files
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from streams.descriptions import describe
from streams.errors import SettingsError
from streams.stored_objects import (
    StoreConflictError,
    StoredFile,
    StoredObjects,
    StoreError,
    content_of,
    first_line,
)
from streams.whole_file import SUFFIX, file_sha256, whole_file, whole_folder

if TYPE_CHECKING:
    pass

T = TypeVar("T")

SCHEMES = ("file", "s3", "gs", "az")
FILES = "files"
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
    ca_certs: Annotated[
        str,
        describe(
            "Path of the certificates of trusted authorities, as PEM, for a store behind https. Empty: the "
            "authorities that the store's library knows."
        ),
    ] = ""


FORMAT = "bundle/1"


class Bundle(msgspec.Struct, frozen=True, kw_only=True, tag=FORMAT, tag_field="format"):
    """A bundle's list: its files by their path within the folder."""

    files: dict[str, StoredFile]


class SharedStore(StoredObjects):
    """A store of bundles; open it with `open_store`."""

    def put(self, name: str, folder: Path, files: Sequence[str] | None = None) -> Bundle:
        """Store files of a folder as a bundle, and return its list.

        files: their paths within the folder; None takes all but those that are being written.
        A bundle that is there already, with the same files, stays as it is. Raises StoreConflictError if it holds other
        files, StoreError if the store refuses, StoreAwayError if it does not answer.
        """
        made = described(folder, files_of(folder) if files is None else files)
        found = self._write_missing(name, folder, made)
        if not self._create(f"{name}{_LIST}", msgspec.json.encode(made)) and (there := self.bundle(name)) != made:
            other = sorted(set(there.files.items() if there else ()) ^ set(made.files.items()), key=str)[0][0]
            raise StoreConflictError(
                f"{self.url}: {name} is stored already with other content ({other} differs). A stored version never "
                "changes; choose another name, or another store.url"
            )
        # A file that was there before may have been another bundle's, which somebody removed before our list was seen.
        if found:
            self._write_missing(name, folder, Bundle(files=found))
        return made

    def get(self, name: str, target: Path, *, mark: str = "") -> Bundle:
        """Write a bundle's files as the folder `target`, whole or not at all, and return its list.

        mark: name of an empty file that comes with them, so that a killed process leaves no folder without it.
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
            if mark:
                (aside / mark).touch()
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
            content = self._ask(lambda: content_of(self._objects, key))
        except FileNotFoundError:
            return None
        try:
            bundle = msgspec.json.decode(content, type=Bundle)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
            raise StoreError(f"{self.url}: {key} is damaged ({error}); remove it and store the bundle again") from error
        folders = {str(above) for path in bundle.files for above in PurePosixPath(path).parents}
        for path, stored in bundle.files.items():
            if not _is_plain(path) or not re.fullmatch("[0-9a-f]{64}", stored.sha256):
                raise StoreError(f"{self.url}: {key}: expected plain paths and sha256, got {path[:200]!r}")
            if path in folders:
                raise StoreError(f"{self.url}: {key}: expected files, got {path[:200]!r}, which is also a folder")
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
            if path.endswith(_LIST) and PurePosixPath(path).parent.name != FILES:
                yield path.removesuffix(_LIST)

    def remove(self, name: str) -> None:
        """Delete a bundle: its list first, then those of its files that no other bundle of its place has.

        Raises StoreError, before anything is deleted, if the list of another bundle is damaged: it may have any file.
        """
        import obstore

        bundle = self.bundle(name)
        if bundle is None:
            return
        place = str(PurePosixPath(name).parent)
        seen: set[str] = {PurePosixPath(name).name}
        kept = self._files_of_others(place, seen)
        self._ask(lambda: obstore.delete(self._objects, f"{name}{_LIST}"))
        for sha256 in sorted({stored.sha256 for stored in bundle.files.values()} - kept):
            kept |= self._files_of_others(place, seen)  # Somebody may have stored a bundle meanwhile.
            if sha256 not in kept:
                self._forget(f"{place}/{FILES}/{sha256}")

    def address(self, name: str, path: str) -> str:
        """Return the address of one file of a bundle below the store, as `objects` and DuckDB read it.

        Raises StoreError if there is no such bundle or file.
        """
        return f"{PurePosixPath(name).parent}/{FILES}/{self._stored(name, path).sha256}"

    def _files_of_others(self, place: str, seen: set[str]) -> set[str]:
        """Return the sha256 of the files of a place's bundles that were not seen yet, and add those to `seen`."""
        kept: set[str] = set()
        for each in set(self.names(place)) - seen:
            if (other := self._bundle_of_ours(f"{place}/{each}")) is not None:
                kept |= {stored.sha256 for stored in other.files.values()}
            seen.add(each)
        return kept

    def _bundle_of_ours(self, name: str) -> Bundle | None:
        """Return a bundle's list; None if it is gone, or if it is an object of somebody else."""
        try:
            return self.bundle(name)
        except StoreError:
            content = self._ask(lambda: content_of(self._objects, f"{name}{_LIST}"))
            if f'"{FORMAT}"'.encode() in content[:1000]:
                raise
            return None

    def _write_missing(self, name: str, folder: Path, bundle: Bundle) -> dict[str, StoredFile]:
        """Store those files of a bundle that the store lacks, and return the others."""
        found = {}
        for each, stored in bundle.files.items():
            at = f"{PurePosixPath(name).parent}/{FILES}/{stored.sha256}"
            if self._size(at) == stored.bytes:
                found[each] = stored
            else:
                self._write(at, folder / each)
        return found

    def _stored(self, name: str, path: str) -> StoredFile:
        bundle = self.bundle(name)
        if bundle is None or path not in bundle.files:
            raise StoreError(f"{self.url}: expected {path} in {name}, found no such file; check the name")
        return bundle.files[path]


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
            "az://container/prefix (of the account in AZURE_STORAGE_ACCOUNT_NAME), without credentials, got "
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
        options: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=3),
            "timeout": timedelta(seconds=60),
            "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",  # A given option hides it.
        }
        if settings.ca_certs:
            options["root_certificate"] = _certificates(settings.ca_certs)
        objects = from_url(  # type: ignore[call-overload]  # The address decides which of its forms it is.
            settings.url,
            client_options=options,
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=10)},
        )
    except (exceptions.BaseError, OSError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"store.url: {settings.url[:200]!r} cannot be opened ({first_line(error)})") from error
    return SharedStore(objects, url=settings.url)


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


def _certificates(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise SettingsError(
            f"store.ca_certs: expected a readable file of certificates, got {path!r} ({error.strerror})"
        ) from error
