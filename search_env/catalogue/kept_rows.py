"""Rows in files that are mapped into memory: a process holds only the pages that it reads.

A folder of kept arrays has a manifest with the sha256 of each file. Everything is written once and never changed.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, overload

import msgspec
import numpy as np
import numpy.typing as npt

from streams.errors import SearchloopError
from streams.whole_file import file_sha256, write_file

T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]
KNOWN_MAX = 200_000  # Ids whose row stays in memory: 30 MB. Searches find the same documents again and again.
MANIFEST = "manifest.json"


class KeptError(SearchloopError, RuntimeError):
    """A folder of kept arrays is missing, damaged, or of another format."""


class KeptArray(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array as a file: its type as numpy names it, its number of elements, and the sha256 of the file."""

    dtype: str
    count: int
    sha256: str


class ArrayWriter:
    """Appends to arrays in the files of one folder; memory does not grow with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arrays: dict[str, KeptArray] = {}

    def append(self, name: str, parts: Iterable[npt.NDArray[Any]], dtype: str) -> None:
        """Write an array that comes in parts."""
        count, digest = 0, hashlib.sha256()
        with (self.folder / name).open("wb") as file:
            for part in parts:
                content = np.ascontiguousarray(part, dtype=dtype).tobytes()
                file.write(content)
                digest.update(content)
                count += len(part)
        self.arrays[name] = KeptArray(dtype, count, digest.hexdigest())

    def whole(self, name: str, values: npt.NDArray[Any]) -> None:
        """Write an array that is in memory."""
        self.append(name, [values], values.dtype.str)

    def room(self, name: str, count: int, dtype: str) -> npt.NDArray[Any]:
        """Return an array of zeros that lies in a file, to be filled in any order. `filled` must follow.

        Raises OSError if the disk has no room for it.
        """
        self.arrays[name] = KeptArray(np.dtype(dtype).str, count, "")
        if not count:
            (self.folder / name).touch()
            return np.zeros(0, dtype=dtype)
        take_room(self.folder / name, np.dtype(dtype).itemsize * count)
        return np.memmap(self.folder / name, dtype=dtype, mode="r+", shape=(count,))

    def filled(self, name: str, values: npt.NDArray[Any]) -> None:
        """Finish an array of `room`."""
        if isinstance(values, np.memmap):
            values.flush()
        digest = file_sha256(self.folder / name)
        self.arrays[name] = msgspec.structs.replace(self.arrays[name], sha256=digest)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return a finished array, mapped."""
        return mapped(self.folder / name, self.arrays[name])

    def rows(self, name: str, rows: Iterable[bytes]) -> None:
        """Write rows of bytes, one after the other, and where each of them begins."""
        begins = array("q", [0])
        digest = hashlib.sha256()
        with (self.folder / name).open("wb") as file:
            for row in rows:
                file.write(row)
                digest.update(row)
                begins.append(begins[-1] + len(row))
        self.arrays[name] = KeptArray("|u1", begins[-1], digest.hexdigest())
        self.whole(f"{name}.at", np.frombuffer(begins, dtype=np.int64))

    def finish(self, manifest: msgspec.Struct) -> None:
        """Write the manifest, which makes the folder a whole one."""
        write_file(self.folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")


class ArrayReader:
    """Maps the arrays of a finished folder, all at the beginning, when each file's sha256 is compared.

    Another catalogue may take the folder's place later: these arrays then stay those of the first one.
    """

    def __init__(self, folder: Path, arrays: Mapping[str, KeptArray]) -> None:
        """Raise KeptError if a file is missing or damaged."""
        self._folder = folder
        self._arrays = {name: _compared(folder / name, kept) for name, kept in arrays.items()}

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return an array, mapped into memory. Raises KeptError if the folder has none of that name."""
        if name not in self._arrays:
            raise KeptError(f"{self._folder}: expected an array {name!r}, found none")
        return self._arrays[name]


def mapped(file: Path | BinaryIO, kept: KeptArray) -> npt.NDArray[Any]:
    """Return the array in a file without reading it; an empty one cannot be mapped."""
    if not kept.count:
        return np.zeros(0, dtype=kept.dtype)
    return np.memmap(file, dtype=kept.dtype, mode="r", shape=(kept.count,))


def take_room(path: Path, size: int) -> None:
    """Take room for a file of this size, which is made if it does not exist. Raises OSError if the disk has none.

    Where a page that is written through a mapping finds no room on the disk, the kernel ends the process (SIGBUS).
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:  # macOS
            os.truncate(handle, size)
    finally:
        os.close(handle)


def _compared(path: Path, kept: KeptArray) -> npt.NDArray[Any]:
    """Return the array in a file, mapped. Raises KeptError if it is not the one that the manifest names."""
    try:
        with path.open("rb") as file:
            if (digest := hashlib.file_digest(file, "sha256").hexdigest()) != kept.sha256:
                raise KeptError(f"{path}: expected sha256 {kept.sha256[:12]} of its manifest, got {digest[:12]}")
            return mapped(file, kept)
    except OSError as error:
        raise KeptError(f"{path}: expected a file of {kept.count} values, {error.strerror}") from error
    except ValueError as error:
        raise KeptError(f"{path}: expected {kept.count} values of type {kept.dtype}, {error}") from error


class KeptRows(Sequence[T], Generic[T]):
    """A sequence whose rows lie encoded in a mapped file; each is decoded when it is asked for."""

    def __init__(self, content: Bytes, begins: npt.NDArray[np.int64], decoder: msgspec.json.Decoder[T]) -> None:
        self._content = content.data
        self._begins = begins
        self._decoder = decoder

    def __len__(self) -> int:
        return len(self._begins) - 1

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        row = place + len(self) if place < 0 else place
        if not 0 <= row < len(self):
            raise IndexError(f"expected a row below {len(self)}, got {place}")
        return self._decoder.decode(self._content[int(self._begins[row]) : int(self._begins[row + 1])])

    def __iter__(self) -> Iterator[T]:
        decode, content = self._decoder.decode, self._content
        for start in range(0, len(self), 4096):
            begins = self._begins[start : min(start + 4096, len(self)) + 1].tolist()
            for first, last in pairwise(begins):
                yield decode(content[first:last])


class KeptIds(Sequence[str]):
    """Ids in a mapped file, in the order of their rows."""

    def __init__(self, content: Bytes, begins: npt.NDArray[np.int64]) -> None:
        self._content = content.data
        self._begins = begins

    def __len__(self) -> int:
        return len(self._begins) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        row = place + len(self) if place < 0 else place
        if not 0 <= row < len(self):
            raise IndexError(f"expected a row below {len(self)}, got {place}")
        return bytes(self._content[int(self._begins[row]) : int(self._begins[row + 1])]).decode()


class KeptRowOf(Mapping[str, int]):
    """The row of each id, by a search among the sorted hashes of all ids."""

    def __init__(self, ids: KeptIds, hashes: npt.NDArray[np.uint64], rows: npt.NDArray[np.int32]) -> None:
        self._ids = ids
        self._hashes = hashes
        self._rows = rows
        self._known: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        row = self._known.get(name)
        if row is None:
            row = self._found(name)
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[name] = row
        return row

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            return self[name] >= 0
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def _found(self, name: str) -> int:
        hashed = id_hash(name.encode())
        place = int(np.searchsorted(self._hashes, hashed))
        while place < len(self._hashes) and self._hashes[place] == hashed:  # Two ids may have one hash.
            row = int(self._rows[place])
            if self._ids[row] == name:
                return row
            place += 1
        raise KeyError(name)


def id_hash(name: bytes) -> np.uint64:
    """Return 64 bits of an id's hash."""
    return np.uint64(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))


def write_ids(writer: ArrayWriter, ids: Iterable[str]) -> None:
    """Write ids, and the sorted hashes by which a row is found."""
    hashes = array("Q")

    def encoded() -> Iterator[bytes]:
        for name in ids:
            row = name.encode()
            hashes.append(int(id_hash(row)))
            yield row

    writer.rows("ids", encoded())
    found = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.zeros(0, dtype=np.uint64)
    order = np.argsort(found, kind="stable").astype(np.int32)
    writer.whole("ids.hash", found[order])
    writer.whole("ids.row", order)


def read_ids(reader: ArrayReader) -> tuple[KeptIds, KeptRowOf]:
    """Return the ids of a folder, and the row of each."""
    ids = KeptIds(reader.read("ids"), reader.read("ids.at"))
    return ids, KeptRowOf(ids, reader.read("ids.hash"), reader.read("ids.row"))
