"""Where questions about a run are answered: its ledger's file, or a live copy while a sink holds the file."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from storage.ledger import LEDGER
from storage.log import open_file
from storage.questions.asking import reading_options
from storage.questions.copying import LiveCopy
from storage.questions.spending import Spending
from streams.kafka_settings import KafkaSettings

LOOK_SECONDS = 5.0  # To see that a sink still holds a file takes 9 ms.


class LedgerSource:
    """The place that answers questions about one run.

    The file is opened for one question at a time, so that a sink can take it at any moment.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        kafka: Callable[[], KafkaSettings | None],
        *,
        share: float = 1.0,
        spending: Spending | None = None,
    ) -> None:
        """folder: of the run. kafka: gives its broker, or None if none is known now. share, spending: of a copy."""
        self._folder = folder
        self._run = run
        self._kafka = kafka
        self._share = share
        self._spending = spending or Spending()
        self._looked = 0.0
        self._lock = threading.Lock()
        self._copy: LiveCopy | None = None

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

    def contents(self) -> Hashable:
        """Return a value that changes when there is more to ask for. It costs two looks at the folder at most."""
        copy = self._copy
        if copy is not None:
            return ("copy", id(copy), copy.version)
        found = []
        for name in (LEDGER, f"{LEDGER}.wal"):
            with contextlib.suppress(OSError):
                about = (self._folder / name).stat()
                found.append((name, about.st_mtime_ns, about.st_size, about.st_ino))
        return ("file", *found)

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a cursor for one question. Raises StorageError if there is no log, or if it cannot be read."""
        connection = None
        if self._copy is None or time.monotonic() - self._looked >= LOOK_SECONDS:
            connection = open_file(self._folder, reading_options())
            self._looked = time.monotonic()
        if connection is not None:
            self._leave_copy()
            with connection:
                yield connection
            return
        with self._lock:
            if self._copy is None:
                self._copy = LiveCopy(
                    self._folder, self._run, self._kafka(), share=self._share, spending=self._spending
                )
            copy = self._copy
        with copy.cursor() as cursor:
            yield cursor

    def file(self) -> Path:
        """Return a file with what can be asked for, for another process: a ledger that nobody writes now.

        A sink may take it at any moment. Raises StorageError.
        """
        with self.cursor():  # It finds out whether a sink holds the ledger, and brings an older one up to date.
            copy = self._copy
        return self._folder / LEDGER if copy is None else copy.snapshot()

    def close(self) -> None:
        """Release everything."""
        with self._lock:
            if self._copy is not None:
                self._copy.close()
                self._copy = None

    def _leave_copy(self) -> None:
        """Remove the copy of a run that has ended."""
        with self._lock:
            copy, self._copy = self._copy, None
        if copy is not None:
            threading.Thread(target=copy.close, daemon=True).start()
