"""Requests whose context is built when it is their turn, so that a run with many queries begins without them.

The teacher and the warm-up need some queries before the first update. A user's log may hold a million: the context of
each takes a search, and in memory two kilobytes. So the queries beyond `lessons.queries_max` wait, and `train` builds
their contexts while the run learns. A query always gets the same context: index version, relevance model and lessons
are those of the run's beginning.
"""

from __future__ import annotations

import hashlib
import logging
import time
import weakref
from collections.abc import Sequence

from infra.app.app import App
from infra.app.home import IndexFolder, RunFolder
from infra.app.progress import Report
from infra.recipes.leser.index import LeserIndex, open_neighbours
from search_env.catalogue.corpora import Query
from search_env.engine.errors import RetrievalError, SearchRefusedError
from search_env.leser.neighbours import Neighbours
from search_env.leser.teachers import read_lessons
from streams.errors import SettingsError, TransientError
from streams.events import Context
from streams.whole_file import write_file

LATER_FILE = "later.sha256"
REFUSED_MAX = 100
SHOWN = 200
TRIES, PAUSE_SECONDS, PAUSE_SECONDS_MAX = 8, 1.0, 30.0

log = logging.getLogger(__name__)


class LaterContexts:
    """Builds contexts of single queries on a run's index, which is opened at the first one."""

    def __init__(self, app: App, index: IndexFolder, lessons: RunFolder, *, file: str, report: Report) -> None:
        """lessons: the run's folder. file: the name of its lessons to look up."""
        self._app, self._index, self._report = app, index, report
        self._lessons = lessons / file
        self._opened: LeserIndex | None = None
        self._refused = 0  # In a row.
        self._neighbours: Neighbours | None = None

    def context(self, query: str) -> Context:
        """Return the context of a query. An engine that is away is asked again for two minutes.

        A query that the engine refuses for good gets no context. It would be refused at each start, so that the run
        could never pass it. The environment finds the same, and ends its groups as failed, with the engine's reason.
        Raises TransientError if the engine stays away, RetrievalError if it refuses all searches or many in a row.
        """
        for attempt in range(TRIES):
            try:
                opened = self._opened or self._open()
                words = self._neighbours.words([query]) if self._neighbours else None
                found = opened.contexts([query], words)[0]
                self._refused = 0
                return found
            except SearchRefusedError as error:
                self._refused += 1
                if self._refused > REFUSED_MAX:
                    raise RetrievalError(
                        f"the search engine refused the last {self._refused} training queries: expected that only few "
                        f"are refused, got {error} for {query[:SHOWN]!r}. Look at the index, and at --queries"
                    ) from error
                log.warning(
                    "the search engine refuses the training query %r (%s). It is asked without context, and its groups "
                    "will end as failed, without a reward. Take it out of the queries of the next run",
                    query[:SHOWN],
                    error,
                )
                return opened.no_context()
            except TransientError as error:
                if attempt + 1 == TRIES:
                    raise
                pause = min(PAUSE_SECONDS * 2**attempt, PAUSE_SECONDS_MAX)
                log.warning("the next request waits %.0f s for the search engine: %s", pause, error)
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _open(self) -> LeserIndex:
        opened = LeserIndex(self._index, self._app.settings, self._app.engine, self._report)
        weakref.finalize(self, opened.close)
        self._neighbours = open_neighbours(opened, read_lessons(self._lessons))
        self._opened = opened
        return opened


def require_same(folder: RunFolder, later: Sequence[Query]) -> None:
    """Remember the queries that wait, or compare them with those that waited when the run began.

    Raises SettingsError if the run began with other ones.
    """
    digest = hashlib.sha256()
    for query in later:
        digest.update(f"{query.id}\t{query.text}\n".encode())
    path, said = folder / LATER_FILE, f"{digest.hexdigest()} {len(later)}\n"
    if path.is_file():
        if (before := path.read_text()) != said:
            raise SettingsError(
                f"run {folder.name!r} began with other training queries ({before.split()[-1]} beyond "
                f"lessons.queries_max, now {len(later)}). Give the same --queries, or another --run NAME"
            )
    elif later:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, said.encode())
