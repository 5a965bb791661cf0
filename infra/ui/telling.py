"""News for the streams of all open pages: one look at a log, and one answer for all that have read as far.

A hundred open pages cost little more than one: each look takes files' times or a question, and most streams stand at
the same place.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Hashable
from functools import partial
from typing import NamedTuple

from infra.ui.ledgers import Ledgers
from storage.questions.stream import Cursor, News, news, show_cursor

LOOK_SECONDS = 0.25
LOOK_AGAIN_SECONDS = 2.5
KEPT = 64


class _Told(NamedTuple):
    made: float
    contents: Hashable
    answer: asyncio.Future[list[News]]


class Telling:
    """What all streams of a process share."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, Hashable]] = {}
        self._told: OrderedDict[tuple[str, str], _Told] = OrderedDict()

    def contents(self, ledgers: Ledgers, run: str) -> Hashable:
        """Return the state of a run's log, as it was a moment ago at the earliest. Raises UnknownRun."""
        now = time.monotonic()
        made, found = self._seen.get(run, (0.0, None))
        if now - made >= LOOK_SECONDS / 2:
            found = ledgers.source(run).contents()
            self._seen[run] = (now, found)
        return found

    async def news(self, ledgers: Ledgers, run: str, cursor: Cursor) -> list[News]:
        """Return what lies beyond a cursor. Raises UnknownRun, StorageError."""
        key, contents, now = (run, show_cursor(cursor)), self.contents(ledgers, run), time.monotonic()
        told = self._told.get(key)
        if told is None or told.contents != contents or now - told.made >= LOOK_AGAIN_SECONDS / 2:
            answer = asyncio.ensure_future(ledgers.work(run, partial(news, cursor=cursor)))
            told = self._told[key] = _Told(now, contents, answer)
            self._told.move_to_end(key)
            while len(self._told) > KEPT:
                self._told.popitem(last=False)
        try:
            return await asyncio.shield(told.answer)  # A page that is closed ends no question of others.
        except BaseException:
            if self._told.get(key) is told:
                del self._told[key]
            raise
