"""Ctrl-C and SIGTERM: an exception where a verb works, a flag where that would tear something, an end in any case.

Every verb ends within `LIMIT_SECONDS` of the first signal, also from within native code, a retry over HTTP or a wait
for a broker that is gone. By then a thread ends the process the hard way: all state here survives a kill, so that costs
nothing but what was not finished.
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
SHOW_CURSOR = b"\r\x1b[K\x1b[?25h"  # A progress bar hides it.
NUMBERS = (signal.SIGINT, signal.SIGTERM)
_at_hard_end: list[Callable[[], str]] = []
_received: list[int] = []
_armed = threading.Event()


class Terminated(KeyboardInterrupt):
    """SIGTERM has come: to whoever cleans up it is the same as Ctrl-C."""


def end_on_signals(*, limit_seconds: float = LIMIT_SECONDS) -> None:
    """Let SIGTERM raise an exception as Ctrl-C does, and end this process so long after the first of the two.

    Call it once, in the main thread. The kernel's signal wakes a thread of ours, so it also works while the main thread
    is in native code.
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
    """Give a forked child the defaults back: it has the socket of its parent's thread, and would end the parent."""
    if not _armed.is_set():
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _armed.clear()


os.register_at_fork(after_in_child=_forget_in_fork)


def exit_status() -> int:
    """Return the status of a process that was told to stop: 128 and the signal's number, as a shell gives it."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def received() -> bool:
    """Return whether this process was told to stop: what is left to do has only seconds."""
    return bool(_received)


@contextmanager
def at_hard_end(act: Callable[[], str]) -> Iterator[None]:
    """Call `act` if the process has to be ended the hard way within the block; it returns what to say of it, or ""."""
    _at_hard_end.append(act)
    try:
        yield
    finally:
        _at_hard_end.remove(act)


@contextmanager
def interrupts(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise the flag instead of an exception; whoever works looks at it between two steps."""

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
    """End this process; at once if some work goes on that was given up, as no interpreter's end should meet it."""
    _end_fork_server()
    if work_goes_on():
        _flush()
        os._exit(status)
    sys.exit(status)


def _note(number: int) -> None:
    if _armed.is_set():  # Else this process goes on after the verb: in a test, or as somebody's library.
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
    """Kill the process that workers are forked from: it would end by itself, but take seconds to forget its imports."""
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
