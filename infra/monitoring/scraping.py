"""The metrics of a home's runs as a scrape wants them: read seldom, answered at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from infra.app.home import Home, RunFolder, read_settings_file
from infra.monitoring.exposition import metrics_text
from infra.runs.standing import facts_and_states, known_runs
from storage.archive import ARCHIVE
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.log import Log, open_log
from storage.monitor.loop_values import LoopValues, read_log, with_alerts, with_facts
from streams.clock import now_ms
from streams.errors import SettingsError
from streams.kafka_settings import KafkaSettings

log = logging.getLogger(__name__)

AGE_SECONDS = 15.0
RUNS_MAX = 20
REST = 20
Firing = Callable[[str], Mapping[str, bool]]
OpenRun = Callable[[RunFolder], AbstractContextManager[Log]]
Stamp = tuple[tuple[int, int], ...]


class ScrapedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `RunSettings` that the metrics need."""

    recipe: str = ""


class LoopMetrics:
    """Metrics of the runs of a home. A scrape within `age_seconds` of the last reading gets the same text.

    A run's log is read again only if its files have changed since, and reading takes at most a `REST`-th of the time:
    a long log is read seldom. Of more than `RUNS_MAX` runs, the newest are shown.
    """

    def __init__(
        self,
        home: Home,
        kafka: Callable[[], KafkaSettings | None],
        *,
        alerts: Firing | None = None,
        age_seconds: float = AGE_SECONDS,
        open_run: OpenRun = open_log,
    ) -> None:
        """kafka: gives the broker of the moment; None leaves out what only a broker knows.

        alerts: gives whether each alert of a run fires.
        open_run: opens a run's log.
        """
        self._open_run = open_run
        self._home = home
        self._kafka = kafka
        self._alerts = alerts
        self._age_seconds = age_seconds
        self._lock = threading.Lock()
        self._text = b""
        self._read_at = -age_seconds
        self._known: dict[str, tuple[Stamp, LoopValues]] = {}
        self._rests_until: dict[str, float] = {}
        self._trouble: dict[str, str] = {}

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format.

        The first call reads them, so make it beside an event loop. Later ones answer at once with the newest text,
        and a thread reads the next one. A run whose log cannot be read now has no values from it, and never wrong ones.
        """
        if not self._text:
            self._refresh()
        elif time.monotonic() - self._read_at >= self._age_seconds and not self._lock.locked():
            threading.Thread(target=self._refresh, name="searchloop-metrics", daemon=True).start()
        return self._text

    def _refresh(self) -> None:
        with self._lock:
            if time.monotonic() - self._read_at >= self._age_seconds:
                self._text = metrics_text(self.values())
                self._read_at = time.monotonic()

    def values(self) -> list[LoopValues]:
        """Return the values of each run, by name."""
        folders = sorted(map(self._home.run, known_runs(self._home)), key=_changed_ns)[-RUNS_MAX:]
        found = {folder.name: self._from_log(folder) for folder in sorted(folders)}
        if found and (kafka := self._kafka()) is not None:
            for facts, state in facts_and_states(self._home, kafka, found):
                found[facts.run] = with_facts(found[facts.run], facts, state)
        if self._alerts is not None:
            found = {run: with_alerts(values, self._alerts(run)) for run, values in found.items()}
        return list(found.values())

    def _from_log(self, folder: RunFolder) -> LoopValues:
        stamp = _stamp(folder)
        known = self._known.get(folder.name)
        if known is None or (known[0] != stamp and time.monotonic() >= self._rests_until.get(folder.name, 0.0)):
            began = time.monotonic()
            try:
                with self._open_run(folder) as opened:
                    values = read_log(folder.name, opened, now_ms=now_ms())
            except StorageError as error:  # A ledger that is being rebuilt, or a run that has stored nothing yet.
                if self._trouble.get(folder.name) != str(error):
                    log.warning("no metrics from the log of run %s: %s", folder.name, error)
                self._trouble[folder.name] = str(error)
                return LoopValues(run=folder.name, recipe=_recipe(folder))
            self._trouble.pop(folder.name, None)
            known = (stamp, msgspec.structs.replace(values, recipe=_recipe(folder)))
            self._known[folder.name] = known
            self._rests_until[folder.name] = time.monotonic() + REST * (time.monotonic() - began)
        return known[1]


def _recipe(folder: RunFolder) -> str:
    try:
        return read_settings_file(folder, ScrapedRun).recipe
    except SettingsError:
        return ""


def _changed_ns(folder: RunFolder) -> int:
    return max((time_ns for time_ns, _ in _stamp(folder)), default=0)


def _stamp(folder: Path) -> Stamp:
    """Return times and sizes of the files that change when a log does."""
    found = []
    for path in (folder / LEDGER, folder / f"{LEDGER}.wal", folder / ARCHIVE, *sorted((folder / ARCHIVE).glob("*/*"))):
        try:
            state = path.stat()
        except FileNotFoundError:
            found.append((0, 0))
            continue
        found.append((state.st_mtime_ns, state.st_size))
    return tuple(found)
