"""Ctrl-C and SIGTERM as a flag, for work that an exception in its middle would tear."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from streams.delivery import Stop


@contextmanager
def interrupts(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise the flag instead of an exception; whoever works looks at it between two steps."""
    before = {number: signal.signal(number, stop.set) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
