"""Where questions about a run are answered: its ledger's file, or a live copy while a sink holds the file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from storage.archive import ARCHIVE, find_segments
from storage.errors import StorageError
from storage.ledger import LEDGER, explain, is_open_elsewhere
from storage.log import bring_up_to_date, finish_rebuild
from storage.questions.asking import connect_reading
from storage.questions.copying import LiveCopy
from storage.schema import pending
from streams.kafka_settings import KafkaSettings


class LedgerSource:
    """The place that answers questions about one run.

    The file is opened for one question at a time, so that a sink can take it at any moment.
    """

    def __init__(self, folder: Path, run: str, kafka: Callable[[], KafkaSettings | None]) -> None:
        """folder: of the run. kafka: gives its broker, or None if none is known now."""
        self._folder = folder
        self._run = run
        self._kafka = kafka
        self._lock = threading.Lock()
        self._copy: LiveCopy | None = None
        self._opened = 0

    @property
    def live(self) -> bool:
        """Whether a sink writes the run now, as far as the last question showed."""
        return self._copy is not None

    @property
    def caught_up(self) -> bool:
        """Whether everything that was logged when the run was first asked for can be asked for."""
        copy = self._copy
        return copy is None or copy.caught_up.is_set()

    @property
    def state(self) -> str:
        """What the answers lack, in a sentence; "" if nothing."""
        copy = self._copy
        if copy is None:
            return ""
        if copy.trouble:
            return f"The newest records are missing: {copy.trouble}"
        if not copy.caught_up.is_set():
            return f"Reading the run's log: {copy.segments_read} of {copy.segments} segments"
        return ""

    def version(self) -> int:
        """Return a number that changes when there is more to ask for."""
        copy = self._copy
        return self._opened if copy is None else copy.version

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a cursor for one question. Raises StorageError if there is no log, or if it cannot be read."""
        connection = self._open_file()
        if connection is not None:
            with connection:
                yield connection
            return
        with self._lock:
            if self._copy is None:
                self._copy = LiveCopy(self._folder, self._run, self._kafka())
            copy = self._copy
        with copy.cursor() as cursor:
            yield cursor

    def close(self) -> None:
        """Release everything."""
        with self._lock:
            if self._copy is not None:
                self._copy.close()
                self._copy = None

    def _open_file(self) -> duckdb.DuckDBPyConnection | None:
        """Return the ledger's file, opened; None while a sink holds it."""
        path = self._folder / LEDGER
        finish_rebuild(path)
        if not path.exists():
            if find_segments(self._folder / ARCHIVE):
                return None
            raise StorageError(f"{self._folder}: expected {LEDGER}, found none; train first, or check the name")
        try:
            connection = connect_reading(path)
            if pending(connection):
                connection.close()
                bring_up_to_date(path)
                connection = connect_reading(path)
        except duckdb.Error as error:
            if is_open_elsewhere(error):
                return None
            raise StorageError(explain(path, error)) from error
        self._leave_copy()
        return connection

    def _leave_copy(self) -> None:
        """Remove the copy of a run that has ended, and let its readers ask again."""
        with self._lock:
            copy, self._copy = self._copy, None
            if copy is not None:
                self._opened += copy.version + 1
        if copy is not None:
            threading.Thread(target=copy.close, daemon=True).start()
