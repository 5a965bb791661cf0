"""The ledgers of a home that the pages ask: one source for each run, and questions in threads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import duckdb
import msgspec

from infra.app.app import App
from infra.app.home import SETTINGS_FILE, RunFolder
from infra.ui.resting import Rested, Resting, spending
from services.errors import ServiceError
from storage.archive import ARCHIVE
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.log import Log
from storage.questions.apart import AskingProcess, HeldElsewhere
from storage.questions.asking import AskLimits, LedgerAnswer, Refusal, ask
from storage.questions.settings import UiSettings
from storage.questions.sources import LedgerSource
from storage.questions.spending import Spending
from streams.errors import SearchloopError
from streams.kafka_settings import KafkaSettings
from streams.topics import RUN_NAME

T = TypeVar("T")

TRIES = 3  # If a sink takes a run's file between two looks.
COPY_PART = 0.6  # Of the share: that of the copies, which rest. Answers have the rest, and what copies leave.
IDLE_SECONDS = 300.0
"""A copy of a live run that nobody has asked for so long is removed."""


class RunLine(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the home. recipe, index: from its settings; "" for a run of live traffic. changed_ms: of its log."""

    run: str
    recipe: str = ""
    index: str = ""
    changed_ms: int = 0


class _RunSettings(msgspec.Struct, frozen=True):
    recipe: str = ""
    index: str = ""


class UnknownRun(SearchloopError):
    """The home has no such run."""


class Ledgers:
    """The ledgers of one home. whole: what the process spends, if it works for the pages alone; see `Resting`."""

    def __init__(self, app: App, settings: UiSettings) -> None:
        self.app = app
        self._limits = AskLimits(rows=settings.rows_max, seconds=settings.seconds_max)
        self._sources: dict[str, tuple[LedgerSource, float]] = {}
        self._beside, self.whole = Spending(), Spending()
        self._copy_share = COPY_PART * settings.share
        self._resting = Resting(settings.share, self._beside, self.whole)
        self.busy = 0
        self.answers_made = 0
        self._free = asyncio.Lock()
        self._apart = AskingProcess()
        self._slots = asyncio.Semaphore(settings.questions_at_once)

    def runs(self) -> list[RunLine]:
        """Return the home's runs with a log, the one that changed last first."""
        found = []
        folder = self.app.home.runs
        for each in sorted(folder.iterdir()) if folder.is_dir() else ():
            if RUN_NAME.fullmatch(each.name) is None or not (each / LEDGER).exists():
                continue
            try:
                kept = msgspec.json.decode((each / SETTINGS_FILE).read_bytes(), type=_RunSettings)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError):
                kept = _RunSettings()
            log = each / f"{LEDGER}.wal"
            changed = max(path.stat().st_mtime for path in (each / LEDGER, log) if path.exists())
            found.append(RunLine(run=each.name, recipe=kept.recipe, index=kept.index, changed_ms=int(changed * 1000)))
        return sorted(found, key=lambda line: -line.changed_ms)

    def source(self, run: str) -> LedgerSource:
        """Return the source of a run's answers. Raises UnknownRun."""
        if RUN_NAME.fullmatch(run) is None or not (self.app.home.runs / run).is_dir():
            names = ", ".join(line.run for line in self.runs()[:5]) or "none yet: run `searchloop demo` or `train`"
            raise UnknownRun(f"expected a run of {self.app.home.root}, got {run[:100]!r}. Its runs: {names}")
        source = self._sources.get(run, (None, 0.0))[0] or LedgerSource(
            self.app.home.runs / run, run, self.kafka, share=self._copy_share, spending=self._beside
        )
        self._sources[run] = (source, time.monotonic())
        return source

    async def rested(self, run: str, key: Hashable, ask: Callable[[], Awaitable[T]]) -> Rested:
        """Return what a function finds about a run, or what it found when the log was the same, or not long ago.

        key: names the answer. Raises UnknownRun, StorageError.
        """
        source = self.source(run)

        def made() -> Awaitable[T]:
            self.answers_made += 1
            return ask()

        return await self._resting.get((run, key), source.contents, made, live=lambda: source.live)

    async def ask(self, run: str, sql: str, parameters: Mapping[str, object] | None = None) -> LedgerAnswer:
        """Ask one SELECT. Raises UnknownRun, StorageError."""
        return await self.work(run, lambda cursor: ask(cursor, sql, parameters, limits=self._limits))

    async def work(self, run: str, question: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Return what a function finds with a cursor, in a thread. Raises UnknownRun, StorageError."""
        return await self.apart(partial(_with_cursor, self.source(run), question))

    async def ask_free(self, run: str, sql: str, parameters: Mapping[str, object]) -> LedgerAnswer:
        """Ask what somebody has written, in a process of its own: it may take a long time, or much memory.

        Raises UnknownRun, StorageError, and Refusal if the answer is late or too large, or if the last question still
        runs.
        """
        source = self.source(run)
        if self._free.locked():
            raise Refusal("expected one question at a time, and an earlier one still runs. Ask again when it has ended")
        await self._free.acquire()
        asked = asyncio.ensure_future(self._counted(partial(self._ask_apart, source, sql, parameters)))
        asked.add_done_callback(self._set_free)
        return await asyncio.shield(asked)

    def _ask_apart(self, source: LedgerSource, sql: str, parameters: Mapping[str, object]) -> LedgerAnswer:
        for _ in range(TRIES):
            with contextlib.suppress(HeldElsewhere):
                return self._apart.ask(source.file(), sql, parameters, limits=self._limits)
        raise Refusal("expected a ledger to ask, and a sink took the run's file just then. Ask again")

    def _set_free(self, asked: asyncio.Future[LedgerAnswer]) -> None:
        self._free.release()
        if not asked.cancelled():
            asked.exception()  # Somebody who has gone has no use for it.

    async def apart(self, work: Callable[[], T]) -> T:
        """Return what a function finds, in a thread, when it is its turn."""
        async with self._slots:
            return await self._counted(work)

    async def _counted(self, work: Callable[[], T]) -> T:
        def counted() -> T:
            self.busy += 1
            try:
                with spending(self._beside):
                    return work()
            finally:
                self.busy -= 1

        return await asyncio.to_thread(counted)

    @contextmanager
    def log(self, folder: RunFolder) -> Iterator[Log]:
        """Give a run's log for reading, as `open_log` does. Raises UnknownRun, StorageError."""
        source = self.source(folder.name)
        with source.cursor() as cursor:
            yield Log(cursor, folder / ARCHIVE, live=source.live)

    def kafka(self) -> KafkaSettings | None:
        """Return the broker of the home, or None if none is known now."""
        try:
            return self.app.at(self.app.local_services().endpoints()).connections.kafka
        except (ServiceError, StorageError):
            return None

    def sweep(self) -> None:
        """Remove copies that nobody uses."""
        now = time.monotonic()
        for run, (source, used) in list(self._sources.items()):
            if now - used > IDLE_SECONDS:
                del self._sources[run]
                source.close()

    def close(self) -> None:
        """Release everything."""
        self._apart.close()
        for source, _ in self._sources.values():
            source.close()
        self._sources.clear()


def _with_cursor(source: LedgerSource, question: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
    with source.cursor() as cursor:
        return question(cursor)
