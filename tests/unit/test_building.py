"""Rows that another process builds are those that this one would build, also when that process dies."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.building import BuilderProcess
from storage.ledger import LEDGER, LedgerRows, build_batch
from storage.log import open_log
from storage.sink import Sink, SinkSettings
from tests.stored_events import raw_record, small_run


@pytest.fixture
def builder() -> Iterator[BuilderProcess]:
    made = BuilderProcess()
    yield made
    made.close()


def same(one: LedgerRows, other: LedgerRows) -> None:
    assert list(one.tables) == list(other.tables)
    for name, table in one.tables.items():
        assert table.equals(other.tables[name]), name
    assert (one.extents, one.letters, one.bytes) == (other.extents, other.letters, other.bytes)


def test_another_process_builds_the_same_rows_and_letters(builder: BuilderProcess) -> None:
    records = [*small_run(12), raw_record("rewards", 99, b"{no event"), raw_record("requests", 98, None, key=None)]
    for _ in range(2):
        same(builder.build(records), build_batch(records))
    assert len(builder.build(records).letters) == 2


def test_a_builder_that_is_killed_costs_nothing(builder: BuilderProcess, caplog: pytest.LogCaptureFixture) -> None:
    records = small_run(12)
    same(builder.build(records), build_batch(records))
    assert builder._process is not None
    builder._process.send_signal(signal.SIGKILL)
    builder._process.wait()
    with caplog.at_level(logging.WARNING):
        same(builder.build(records), build_batch(records))
    assert "the builder failed" in caplog.text
    same(builder.build(records), build_batch(records))


def test_a_sink_with_a_builder_stores_what_one_without_stores(tmp_path: Path) -> None:
    found = {}
    for builder in (True, False):
        folder = tmp_path / str(builder)
        with Sink(folder / LEDGER, SinkSettings(batch_records_max=16, builder=builder)) as sink:
            sink.submit(small_run(40))
            sink.flush()
        with open_log(folder) as log:
            found[builder] = [
                log.rows(f"SELECT * FROM {name} ORDER BY ALL")
                for name in ("requests", "candidates", "rewards", "outcomes", "sink_offsets")
            ]
    assert found[True] == found[False] and len(found[True][0]) == 40
