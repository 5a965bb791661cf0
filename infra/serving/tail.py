"""Answers for queries that have none: a process that holds a policy version, and is asked within a budget of time.

The policy runs in a process of its own, so that a forward pass never delays the other requests. An answer that comes
too late for its own request is kept for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from search_env.catalogue.analysis import plain_words
from streams.events import Context
from streams.topics import version_name

if TYPE_CHECKING:
    from infra.recipes.leser.expanding import LeserRun
    from learner.versions import LoadedVersion

log = logging.getLogger(__name__)

Words = tuple[str, ...]
Answered = Callable[[str, Context], None]
ASIDE_SECONDS = 60.0


class Helped(NamedTuple):
    """A policy version's words for a query."""

    policy: str
    words: Words


class TailStart(msgspec.Struct, frozen=True, kw_only=True):
    """The process opens these: the home, a run, a policy version, and the variables that name the services."""

    home: str
    index: str
    run: str
    policy: str
    variables: dict[str, str]


class Tail:
    """Asks one policy version for the expansions of a query."""

    def __init__(self, start: TailStart, *, waiting_max: int, kept: int, answered: Answered = lambda *_: None) -> None:
        """waiting_max: queries that are with the process at once. kept: answers in memory.

        answered: called with each query that the policy has answered, and its context.
        """
        self._told = answered
        self.policy = start.policy
        self._start = start
        self._waiting_max = waiting_max
        self._kept = kept
        self._answers: OrderedDict[str, Words] = OrderedDict()
        self._asked: dict[str, asyncio.Future[Helped | None]] = {}
        self._aside: set[asyncio.Future[Helped | None]] = set()
        self._pool: ProcessPoolExecutor | None = None
        self.ready = False

    async def open(self) -> None:
        """Start the process, and return when the policy has answered a first query. Raises what the process raises."""
        self._pool = self._new_pool()
        await asyncio.get_running_loop().run_in_executor(self._pool, _expand, "warm up")
        self.ready = True

    async def follow(self, policy: str) -> None:
        """Load another version of the run in place of this one, between two queries.

        Raises what the process raises; the version before then goes on.
        """
        await asyncio.get_running_loop().run_in_executor(self._pool, _refresh, policy)
        self.policy = policy
        self._start = msgspec.structs.replace(self._start, policy=policy)
        self._answers.clear()

    def close(self) -> None:
        """End the process; queries that it has not answered stay raw."""
        self.ready = False
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def known(self, query: str) -> Words | None:
        """Return the expansions that the policy gave for a query before; None if it gave none yet."""
        words = plain_words(query)
        if words in self._answers:
            self._answers.move_to_end(words)
            return self._answers[words]
        return None

    async def ask(self, query: str, *, budget_seconds: float) -> Helped | None:
        """Return the policy's expansions, or None if they do not come in time or too many queries wait."""
        words = plain_words(query)
        if not self.ready or self._pool is None or budget_seconds <= 0:
            return None
        asked = self._asked.get(words)
        if asked is None:
            if len(self._asked) >= self._waiting_max:
                return None
            asked = asyncio.ensure_future(self._answered(words, query))
            self._asked[words] = asked
        try:
            return await asyncio.wait_for(asyncio.shield(asked), budget_seconds)
        except TimeoutError:
            return None

    def ask_aside(self, query: str) -> None:
        """Ask the policy without waiting, for an answer that nobody is shown."""
        aside = asyncio.ensure_future(self.ask(query, budget_seconds=ASIDE_SECONDS))
        self._aside.add(aside)
        aside.add_done_callback(self._aside.discard)

    async def _answered(self, words: str, query: str) -> Helped | None:
        pool = self._pool
        try:
            found, context = await asyncio.get_running_loop().run_in_executor(pool, _expand, query)
        except BrokenExecutor:
            log.warning(
                "the process of policy %s has died; a new one starts, and queries are raw meanwhile", self.policy
            )
            if self._pool is pool and self.ready:
                self.ready = False
                asyncio.ensure_future(self._reopened())  # noqa: RUF006 - `ready` tells its end.
            return None
        except Exception as error:
            log.warning("policy %s gave no answer: %s: %s", self.policy, type(error).__name__, error)
            return None
        finally:
            self._asked.pop(words, None)
        if found.policy == self.policy:  # Another version may serve by now.
            self._answers[words] = found.words
        while len(self._answers) > self._kept:
            self._answers.popitem(last=False)
        self._told(query, context)
        return found

    async def _reopened(self) -> None:
        with contextlib.suppress(Exception):
            await self.open()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_open, initargs=(self._start,)
        )


_run: LeserRun
_opened: Any
_neighbours: Any
_version: LoadedVersion


def _open(start: TailStart) -> None:
    """Open everything that an answer needs, in the process."""
    global _run, _opened, _neighbours, _version
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The server ends this process.
    end_with_parent()
    os.environ.update(start.variables)
    from pathlib import Path

    from infra.app.app import App
    from infra.app.home import Home
    from infra.recipes.leser.expanding import open_run
    from infra.recipes.leser.index import LeserIndex, open_neighbours
    from learner.versions import LoadedVersion, find_version

    app = App(Home(Path(start.home)))
    _run = open_run(app, index=start.index, run=start.run)
    folder, manifest = find_version(_run.folder.checkpoints, start.policy)
    _version = LoadedVersion(folder, manifest.policy)
    _opened = LeserIndex(_run.index, _run.kept.settings, _run.engine, lambda *_: None)
    _neighbours = open_neighbours(_opened, _run.lessons())


def _refresh(policy: str) -> None:
    """Replace the version by another one of the run, in the process."""
    from learner.versions import find_version

    folder, manifest = find_version(_run.folder.checkpoints, policy)
    _version.refresh(folder, manifest.policy)


def end_with_parent() -> None:
    """End this process when its parent is gone: the pool's own pipe stays open then, and the process would stay."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _expand(query: str) -> tuple[Helped, Context]:
    """Return the policy's expansions of a query, decoded as everywhere else, and its context.

    An answer in the wrong format gives no expansions.
    """
    from infra.recipes.leser.expanding import decode_expansions
    from streams.events import Request

    words: Sequence[tuple[str, ...]] | None = _neighbours.words([query]) if _neighbours else None
    (context,) = _opened.contexts([query], words)
    request = Request(
        request_id="served",
        run=_run.kept.run,
        query_id="served",
        query=query,
        index=_opened.version.name,
        context=context,
    )
    (answer,) = decode_expansions([request], _version, _run.kept, lambda *_: None)
    return Helped(version_name(_version.reference), answer.expansions if answer.valid else ()), context
