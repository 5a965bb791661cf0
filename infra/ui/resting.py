"""Answers that rest: open pages and copies of live runs take a bounded share of the processor, however long the log is.

An answer is given again as long as its log has not changed. When the log of a run that goes on has changed, it rests
until the answers that open pages use could all be made once more within the share. So all answers of a page are made
anew at the same pace, and a second page makes both slower. What nobody has asked for before is made at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from storage.questions.spending import Spending

T = TypeVar("T")

USED_SECONDS = 60.0  # An answer that nobody has asked for so long, or for two of its rests, is no open page's.
LEAST_SHARE = 0.3  # Part of the share that answers have even if all of it is spent beside them.
OVERHEAD_SECONDS = 0.005  # Processor time of a question beside its work: a request, and an answer in JSON.
KEPT = 60

_SPENT: ContextVar[list[float] | None] = ContextVar("spent", default=None)


@contextmanager
def spending(beside: Spending) -> Any:
    """Count the time of this thread as a part of the answer that is being made, or as spent beside answers."""
    began, spent = time.thread_time(), _SPENT.get()
    try:
        yield
    finally:
        took = time.thread_time() - began
        if spent is None:
            beside.spend(took)
        else:
            spent.append(took)


class Rested(NamedTuple):
    """An answer. rest: seconds until it would be made anew if the log changed now; 0 if it would be at once."""

    answer: Any
    rest: float


class _Kept(NamedTuple):
    answer: Any
    state: Hashable
    made: float
    cost: float
    asked: float


class Resting:
    """The newest answers, by question. Two that ask the same at once wait for one answer.

    share: of one core, for all that pages take. beside: what is spent beside answers, as far as it is known by thread:
    copies of logs, and news. whole: what the whole process spends, if it works for the pages alone.
    """

    def __init__(self, share: float, beside: Spending | None = None, whole: Spending | None = None) -> None:
        self._share = share
        self._beside = beside or Spending()
        self._whole = whole or Spending()
        self._answers = Spending()
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._locks: dict[Hashable, asyncio.Lock] = {}

    async def get(
        self,
        key: Hashable,
        state: Callable[[], Hashable],
        ask: Callable[[], Awaitable[T]],
        *,
        live: Callable[[], bool] = lambda: True,
    ) -> Rested:
        """Return the answer to a question: the one that is kept, if it is still true or rests.

        state: gives what changes with the log. live: whether it changes all the time; answers about another log do not
        rest. What `ask` raises is not kept.
        """
        async with self._locks.setdefault(key, asyncio.Lock()):
            now, kept = time.monotonic(), self._kept.get(key)
            if kept is None or (kept.state != state() and (not live() or now >= kept.made + self._pace(now))):
                try:
                    kept = await self._ask(ask, state())
                except BaseException:
                    if key not in self._kept:
                        self._locks.pop(key, None)  # Questions that fail are not remembered.
                    raise
            kept = kept._replace(asked=now)
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._locks.pop(self._kept.popitem(last=False)[0], None)
            now = time.monotonic()
            return Rested(kept.answer, max(kept.made + self._pace(now) - now, 0.0) if live() else 0.0)

    async def _ask(self, ask: Callable[[], Awaitable[Any]], state: Hashable) -> _Kept:
        spent: list[float] = []
        token = _SPENT.set(spent)
        try:
            answer = await ask()
        finally:
            _SPENT.reset(token)
        now, cost = time.monotonic(), sum(spent) + OVERHEAD_SECONDS
        self._answers.spend(cost)
        return _Kept(answer, state, now, cost, now)

    def _pace(self, now: float) -> float:
        """Return the seconds within which all answers in use may be made once."""
        beside = max(self._beside.rate(), self._whole.rate() - self._answers.rate())
        left = max(self._share - beside, LEAST_SHARE * self._share)
        whole = sum(each.cost for each in self._kept.values()) / left
        used = max(USED_SECONDS, 2 * whole)
        return sum(each.cost for each in self._kept.values() if now - each.asked <= used) / left
