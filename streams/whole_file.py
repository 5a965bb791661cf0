"""Files and folders that a reader sees whole or not at all, even after a power cut.

Content is written to a temporary name beside its place, which no other writer has. Then it is synced to the disk and
renamed into place, and the folder that holds the name is synced. Without the first sync, a power cut can leave the name
without content. Without the second, it can undo the rename.

A writer holds a lock (flock) on its temporary file, which ends with its process. So the leftovers of a killed writer
can be told from a file that is being written: the next writer of the same place removes the leftovers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from streams.failpoints import failpoint
from streams.locks import take, wait_for

SUFFIX = "writing"
THREADS = 8  # That sync and hash the files of a folder.
_ASIDE = re.compile(r"\.?(?P<place>.+)\.[0-9a-f]{8}\.writing")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; when the block ends, its content becomes `path` in one rename.

    Two runs that start at once on one index write the same caches: each uses a separate name, and the later rename
    wins. If the block raises, `path` stays unchanged and nothing is left. A killed process leaves `NAME.….writing`,
    which the next writer of `path` removes. Missing parent folders are made. Raises OSError as the operating system
    does.
    """
    _make_folder(path.parent)
    _remove_abandoned(path.parent, path.name)
    with _aside(path, _make_file) as aside:
        yield aside
        put_file(aside, path)


def write_file(path: Path, content: bytes) -> None:
    """Write these bytes as the whole content of a file, as `whole_file` does. Raises OSError."""
    with whole_file(path) as aside:
        aside.write_bytes(content)


def put_file(aside: Path, path: Path) -> None:
    """Move a finished file to `path`, replacing an existing one: sync it first, then rename it once. Raises OSError."""
    sync(aside)
    failpoint("file.before-rename")
    aside.replace(path)
    failpoint("file.after-rename")
    sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path`; with the content that the block adds, it becomes `path` in one rename.

    replace: True exchanges an existing folder for the new one; False makes it an error (FileExistsError).
    All else is as in `whole_file`; a killed process leaves `.NAME.….writing`.
    """
    with folder_aside(path.parent, path.name) as aside:
        if not replace and path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        yield aside
        put_folder(aside, path, replace=replace)


@contextlib.contextmanager
def folder_aside(root: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder below `root` for content whose place is known only later; see `put_folder`.

    name: of the content; two writers of one name do not collide. A folder that is not put into place when the block
    ends is removed, and so are the leftovers of a killed writer of this name. So is `root`, if it is made here and
    stays empty.
    """
    made = not root.exists()
    _make_folder(root)
    _remove_abandoned(root, name)
    try:
        with _aside(root / f".{name}", Path.mkdir) as aside:
            yield aside
    finally:
        if made:
            with contextlib.suppress(OSError):
                root.rmdir()


def put_folder(aside: Path, path: Path, *, replace: bool = False) -> None:
    """Move a finished folder to `path`: sync every file in it first, then rename it once.

    replace: an existing folder and the new one change places in one step, and the old one is removed.
    Raises FileExistsError if a folder exists and may not be replaced, OSError as the operating system does.
    """
    _sync_tree(aside)
    failpoint("folder.before-rename")
    if replace and path.exists():
        _exchange(aside, path)
        sync(path.parent)
        if aside.is_symlink():
            aside.unlink()  # Of a link to a folder, the link alone is replaced.
        else:
            shutil.rmtree(aside)
    else:
        try:
            aside.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            raise
        sync(path.parent)
    failpoint("folder.after-rename")


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove the leftovers of killed writers, for any place, in a folder that is ours alone, and return them.

    Files that are being written stay. Do not use this on a folder of the user: there, `whole_file` removes only
    leftovers of the file that it writes.
    """
    return _remove_abandoned(folder, None)


def synced_hashes(folder: Path) -> dict[str, str]:
    """Return each file's sha256 by its name, when all files of a folder are on the disk. Raises OSError.

    Hashing takes the processor and syncing takes the disk, so both go on at the same time.
    """
    paths = sorted(folder.iterdir())
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        syncs = pool.map(sync, paths)
        hashes = {path.name: sha256 for path, sha256 in zip(paths, pool.map(file_sha256, paths), strict=True)}
        list(syncs)  # Raises what a sync raised.
    return hashes


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Return when a file, or a folder's list of names, is on the disk. Raises OSError."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return  # A folder may be writable without being readable.
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _aside(place: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new, locked file or folder under a unique name; remove it at the end if it is still there."""
    aside, lock = _make_locked(place, make)
    try:
        yield aside
    finally:
        os.close(lock)
        _remove(aside)


def remove_folder(path: Path) -> None:
    """Delete a folder whole. Raises OSError.

    If the process is killed meanwhile, nothing has the folder's name any more, and `remove_unfinished` finds the rest.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{SUFFIX}")
    path.rename(aside)
    shutil.rmtree(aside)


def _make_locked(place: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    while True:
        aside = place.with_name(f"{place.name}.{secrets.token_hex(4)}.{SUFFIX}")
        make(aside)
        try:
            lock = os.open(aside, os.O_RDONLY)
        except FileNotFoundError:
            continue  # Another writer took it for an abandoned one before we held the lock.
        with contextlib.suppress(OSError):  # On a file system without locks, nothing counts as abandoned.
            wait_for(lock, shared=True)
        if _still_named(aside, lock):
            return aside, lock
        os.close(lock)


def _make_file(path: Path) -> None:
    path.touch(exist_ok=False)


def _still_named(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove_abandoned(folder: Path, place: str | None) -> list[Path]:
    """Remove the abandoned files of this place, None for any place, and return them."""
    removed: list[Path] = []
    try:
        found = [path for path in folder.iterdir() if path.name.endswith(f".{SUFFIX}")]
    except OSError:
        return removed
    for path in found:
        match = _ASIDE.fullmatch(path.name)
        if match is None or place not in (None, match["place"]):
            continue
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY)
            try:
                if take(lock):
                    _remove(path)
                    removed.append(path)
            finally:
                os.close(lock)
    return removed


def _remove(path: Path) -> None:
    """Remove a file or a folder as far as possible; its name shows what it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, and make each name durable. Raises OSError."""
    made = []
    while not folder.exists():
        made.append(folder)
        folder = folder.parent
    for each in reversed(made):
        each.mkdir(exist_ok=True)
        sync(each.parent)


def _sync_tree(folder: Path) -> None:
    """Sync every file below a folder, and then the folders. The disk takes several syncs at once."""
    walked = [(Path(above), files) for above, _, files in os.walk(folder)]
    paths = [path for above, files in walked for name in files if not (path := above / name).is_symlink()]
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        list(pool.map(sync, paths))
    for above, _ in walked:
        sync(above)


def _exchange(aside: Path, path: Path) -> None:
    """Exchange the names of two folders in one step; `aside` is then the old one.

    If the kernel or the file system cannot do that (renameat2 is specific to Linux), the old folder is first moved
    away. For that moment there is no folder at `path`.
    """
    if (renameat2 := _renameat2()) is not None:
        if renameat2(_AT_FDCWD, os.fsencode(aside), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) == 0:
            return
        if (number := ctypes.get_errno()) not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number), str(path))
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{SUFFIX}")
    path.rename(old)
    aside.rename(path)
    old.rename(aside)


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    function.restype = ctypes.c_int
    found: Callable[..., int] = function
    return found
