"""Ctrl-C and SIGTERM: an exception in most code, a flag in code that must not be interrupted, and a time limit.

Every verb ends within `LIMIT_SECONDS` of the first signal, even from native code, from an HTTP retry, or while it waits
for a broker that is down. After that time a thread kills the process. All state survives a kill, so only unfinished
work is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from streams.stopping import Stop
from streams.working import work_goes_on

LIMIT_SECONDS = 3.5
SHOW_CURSOR = b"\r\x1b[K\x1b[?25h"  # A progress bar hides the cursor.
NUMBERS = (signal.SIGINT, signal.SIGTERM)
_at_hard_end: list[Callable[[], str]] = []
_received: list[int] = []
_armed = threading.Event()


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; clean-up code treats it like Ctrl-C."""


def end_on_signals(*, limit_seconds: float = LIMIT_SECONDS) -> None:
    """Let SIGTERM raise an exception like Ctrl-C, and kill this process `limit_seconds` after the first of the two.

    Call it once, in the main thread. The signal wakes a separate thread, so the limit also works while the main thread
    runs native code.
    """
    _armed.set()
    for number in NUMBERS:
        signal.signal(number, _raise)
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)

    def watch(_kept: socket.socket = pythons) -> None:
        while (number := ours.recv(1)[0]) not in NUMBERS:
            pass
        _note(number)
        time.sleep(limit_seconds)
        _end_hard(number, limit_seconds)

    threading.Thread(target=watch, name="interrupts", daemon=True).start()


def _forget_in_fork() -> None:
    """Restore the defaults in a forked child, which shares its parent's socket and would otherwise end the parent."""
    if not _armed.is_set():
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _armed.clear()


os.register_at_fork(after_in_child=_forget_in_fork)


def exit_status() -> int:
    """Return the exit status of a process that was told to stop: 128 plus the signal's number, as in a shell."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def received() -> bool:
    """Return whether this process was told to stop; the remaining work then has only seconds."""
    return bool(_received)


@contextmanager
def at_hard_end(act: Callable[[], str]) -> Iterator[None]:
    """Call `act` if the process must be killed within the block; `act` returns a note for the last message, or ""."""
    _at_hard_end.append(act)
    try:
        yield
    finally:
        _at_hard_end.remove(act)


@contextmanager
def interrupts(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM set the flag instead of raising an exception; the caller checks it between two steps."""

    def flag(number: int, _: FrameType | None) -> None:
        _note(number)
        stop.set()

    before = {number: signal.signal(number, flag) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(status: int) -> None:
    """End this process; skip the interpreter's shutdown if abandoned work still runs in a thread."""
    _end_fork_server()
    if work_goes_on():
        _flush()
        os._exit(status)
    sys.exit(status)


def _note(number: int) -> None:
    if _armed.is_set():  # Otherwise the process continues after the verb: in a test, or as a library.
        _received.append(number)


def _raise(number: int, _: FrameType | None) -> None:
    _note(number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _end_hard(number: int, limit_seconds: float) -> None:
    said = [f"stopped: it had not ended {limit_seconds:g} s after the signal, and was cut off"]
    for act in reversed(_at_hard_end):
        with contextlib.suppress(Exception):
            said.append(act())
    with contextlib.suppress(Exception):
        _end_fork_server()
    _flush()
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)
        os.write(2, ("; ".join(filter(None, said)) + "\n").encode())
    os._exit(128 + number)


def _end_fork_server() -> None:
    """Kill the process that forks workers: it would end by itself, but would need seconds to unload its imports."""
    if "multiprocessing.forkserver" not in sys.modules:
        return
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("multiprocessing.forkserver" in argument for argument in child.cmdline()):
                child.kill()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
