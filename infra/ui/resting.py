"""Answers that rest: a question that is asked again and again takes at most a small share of the processor.

An answer that took a second is given again for twenty. A long log is read seldom, a short one at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

REST = 20  # Times as long as the answer took.
QUICK_SECONDS = 0.3  # What took less is asked anew each time.
KEPT = 60


class Rested(NamedTuple):
    """An answer. rest: seconds until it would be asked anew; 0 if it would be at once."""

    answer: Any
    rest: float


class _Kept(NamedTuple):
    answer: Any
    until: float


class Resting:
    """The newest answers, by question. Two that ask the same at once wait for one answer."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._locks: dict[Hashable, asyncio.Lock] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> Rested:
        """Return the answer to a question, a resting one if there is one. What `ask` raises is not kept."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            kept = self._kept.get(key)
            now = time.monotonic()
            if kept is None or now >= kept.until:
                answer = await ask()
                took = time.monotonic() - now
                rest = REST * took if took >= QUICK_SECONDS else 0.0
                kept = _Kept(answer, time.monotonic() + rest)
                self._kept[key] = kept
                self._kept.move_to_end(key)
                while len(self._kept) > KEPT:
                    self._locks.pop(self._kept.popitem(last=False)[0], None)
            return Rested(kept.answer, max(kept.until - time.monotonic(), 0.0))
