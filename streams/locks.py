"""File locks between processes: the kernel releases them when their process ends, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

Handle = int | IO[bytes] | IO[str]  # A file descriptor, or an open file or folder.


def take(handle: Handle, *, shared: bool = False) -> bool:
    """Lock an open file unless that would mean to wait; return whether it is locked now."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(handle: Handle, *, shared: bool = False) -> None:
    """Lock an open file, after everybody whose lock excludes this one."""
    fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


@contextmanager
def only_one(path: Path, taken: Exception) -> Iterator[None]:
    """Hold the lock of a path; raise `taken` if another process, or another thread of this one, holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not take(file):
            raise taken
        yield


@contextmanager
def in_turn(
    path: Path, *, refusal: Callable[[OSError], Exception], waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock of a path, after everybody who has it; `waiting` is called once if there is somebody.

    Raises what `refusal` makes of the error if the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise refusal(error) from error
    with file:
        if not take(file):
            waiting()
            wait_for(file)
        yield


def is_held(path: Path) -> bool:
    """Return whether somebody holds the lock of a path."""
    try:
        with path.open("r") as file:
            return not take(file, shared=True)
    except FileNotFoundError:
        return False
