"""The metrics of a run and of the server: values by hand, names by the table, and no text of others as a label."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from infra.app.home import Home
from infra.monitoring.exposition import metrics_text
from infra.monitoring.scraping import LoopMetrics
from infra.serving.metrics import ServeMetrics
from storage.ledger import LEDGER
from storage.log import open_log
from storage.monitor import metrics
from storage.monitor.loop_values import LEARNING, LoopValues, read_log, with_alerts, with_facts
from storage.monitor.metrics import LOOP, SERVE, metrics_reference
from storage.monitor.stalls import RunFacts, RunState, StageFacts
from tests.finished_run import store, write_run
from tests.stored_events import RUN, dev_score, record, small_run

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: bytes) -> Samples:
    """Return each value by name and labels, as the client library reads the text."""
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value
        for family in parsed(text.decode())
        for each in family.samples
    }


def values_of(folder: Path) -> LoopValues:
    with open_log(folder) as log:
        return read_log(folder.name, log, now_ms=5_000)


def full_values() -> LoopValues:
    """Return values with everything that a run may have."""
    return LoopValues(
        run="shop-0",
        recipe="leser",
        state="running",
        policies={"newest": "1-a-000002", "rewarded": "1-a-000001", "measured": "1-a-000001", "best": "1-a-000001"},
        groups=12,
        candidates={"scored": 80, "failed": 8, "expired": 0, "waiting": 8},
        updates=2,
        updates_wanted=50,
        dead_letters={"generator": 1},
        residual=0,
        lag_records={"generator": 3},
        lag_seconds={"generator": 1.5, "sink": 0.0},
        staleness={"median": 0, "p95": 1, "max": 2},
        reward=0.5,
        dev={"measured": 0.25, "best": 0.3},
        measure="nDCG@10",
        learning=dict.fromkeys(LEARNING, 1.5),
        alerts={"stall": True, "format": False},
        last_group=1_700_000_000.0,
        last_update=1_700_000_001.0,
        read_at=1_700_000_002.0,
    )


def test_the_values_of_a_finished_run_are_what_its_makers_say(tmp_path: Path) -> None:
    """The run of `tests/finished_run.py`: one group of dev, one buried, one flat, one failed but for a candidate."""
    folder = tmp_path / RUN
    folder.mkdir()
    write_run(folder)
    found = values_of(folder)
    assert (found.groups, found.updates) == (21, 5)
    assert found.candidates == {"scored": 21 * 8 - 7, "failed": 7, "expired": 0, "waiting": 0}
    assert found.dead_letters == {"generator": 1, "sink": 1}
    assert found.residual == 0
    assert found.staleness == {"median": 0.0, "p95": 0.0, "max": 0.0}
    assert found.policies == {"newest": "2-bbbbbb-000005", "rewarded": "2-bbbbbb-000004"}
    assert found.learning == {"loss": pytest.approx(0.5)}
    assert found.last_update == 1_700_000_003.005
    assert found.read_at == 5.0


def test_a_lost_row_shows_as_a_residual(tmp_path: Path) -> None:
    folder = tmp_path / RUN
    folder.mkdir()
    write_run(folder)
    import duckdb

    with duckdb.connect(str(folder / LEDGER)) as ledger:
        ledger.execute("DELETE FROM generations WHERE record_offset = 3")
    assert values_of(folder).residual == 1


def test_dev_scores_are_those_of_the_newest_and_of_the_best_version(tmp_path: Path) -> None:
    scores = [msgspec.structs.replace(dev_score(step), value=value) for step, value in ((0, 0.2), (1, 0.4), (2, 0.3))]
    store(tmp_path, [*small_run(), *(record(score, offset) for offset, score in enumerate(scores))])
    found = values_of(tmp_path)
    assert found.dev == {"measured": 0.3, "best": 0.4}
    assert found.policies["best"] == "a-000001" and found.policies["measured"] == "a-000002"
    assert found.measure == "nDCG@10"


def test_an_empty_log_gives_counts_of_zero_and_no_means(tmp_path: Path) -> None:
    store(tmp_path, [])
    found = samples(metrics_text([values_of(tmp_path)]))
    run = ("run", tmp_path.name)
    assert found["searchloop_run_groups_total", (run,)] == 0
    assert not [name for name, _ in found if "reward" in name or "staleness" in name or "dev" in name]


def test_lags_come_from_facts_and_an_unknown_count_gives_no_series() -> None:
    stages = (
        StageFacts(stage="generator", waiting=3, since_ms=8_500),
        StageFacts(stage="environment", waiting=0, since_ms=None),
        StageFacts(stage="sink", waiting=None, since_ms=9_000),
    )
    facts = RunFacts(run="r", now_ms=10_000, stages=stages, updates_wanted=50)
    found = with_facts(LoopValues(run="r"), facts, RunState(run="r", state="stalled"))
    assert found.lag_records == {"generator": 3, "environment": 0}
    assert found.lag_seconds == {"generator": 1.5, "environment": 0.0, "sink": 1.0}
    assert (found.state, found.updates_wanted) == ("stalled", 50)


def test_every_metric_of_the_table_is_exposed_and_no_other() -> None:
    names = {name for name, _ in samples(metrics_text([full_values()]))}
    assert names == {each.name for each in LOOP}


def test_values_come_out_as_they_went_in() -> None:
    found = samples(metrics_text([full_values(), LoopValues(run="empty")]))
    run = ("run", "shop-0")
    assert found["searchloop_run_groups_total", (run,)] == 12
    assert found["searchloop_run_candidates", (("fate", "failed"), run)] == 8
    assert found["searchloop_run_lag_seconds", (run, ("stage", "generator"))] == 1.5
    assert found["searchloop_run_staleness_versions", (run, ("statistic", "p95"))] == 1
    assert found["searchloop_run_dev_score", (("measure", "nDCG@10"), ("role", "best"), run)] == 0.3
    assert found["searchloop_run_alerts_firing", (run,)] == 1
    assert found["searchloop_run_alert_firing", (("alert", "format"), run)] == 0
    assert found["searchloop_run_policy_info", (("policy", "1-a-000002"), ("role", "newest"), run)] == 1
    assert [name for name, labels in found if ("run", "empty") in labels] == ["searchloop_run_info"]


def test_hostile_names_stay_one_label_on_one_line() -> None:
    name = 'x"} 1\nsearchloop_run_groups_total{run="fake"} 9\u202e<script>' + "y" * 10_000
    text = metrics_text([with_alerts(LoopValues(run="r", dead_letters={name: 1}), {name: True})])
    found = samples(text)
    assert {labels for key, labels in found if key == "searchloop_run_groups_total"} == set()
    ((_, stage),) = (labels for key, labels in found if key == "searchloop_run_dead_letters_total")
    assert len(stage[1]) == 100 and "\u202e" not in stage[1] and "\n" not in stage[1]


def test_names_have_the_prefix_and_base_units_and_only_info_metrics_name_a_version() -> None:
    for each in (*LOOP, *SERVE):
        assert re.fullmatch(r"searchloop_(run|serve)_[a-z_]+", each.name)
        assert (each.kind == "counter") == each.name.endswith("_total")
        assert ("policy" in each.labels) == each.name.endswith("_policy_info")
        assert not {"query", "query_id", "client", "session", "group_id"} & set(each.labels)
        assert not re.search(r"_(ms|milliseconds|kib|mib|minutes|percent)(_|$)", each.name)


def test_the_page_of_monitoring_has_the_table_of_the_code() -> None:
    page = (ROOT / "infra" / "MONITORING.md").read_text()
    assert metrics_reference() in page, "run: python -m storage.monitor.metrics, and put its tables into the page"


def test_a_scrape_reads_a_log_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    folder = home.run(RUN)
    folder.mkdir(parents=True)
    write_run(folder)
    monkeypatch.setattr("infra.monitoring.scraping.REST", 0)
    scraped = LoopMetrics(home, lambda: None, age_seconds=0.0)
    first = scraped.values()
    assert first[0].groups == 21
    assert scraped.values() == first, "read_at would differ if the log was read again"
    kept = [record(each, offset) for offset, each in enumerate([dev_score(1)])]
    store(folder, kept)
    assert scraped.values()[0].dev == {"measured": 0.25, "best": 0.25}


def test_a_log_that_cannot_be_read_gives_no_values_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(tmp_path)
    folder = home.run("broken")
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text('{"recipe": "leser"}')
    (folder / LEDGER).write_bytes(b"no database")
    scraped = LoopMetrics(home, lambda: None, age_seconds=0.0)
    for _ in range(2):
        found = samples(metrics_text(scraped.values()))
        assert list(found) == [("searchloop_run_info", (("recipe", "leser"), ("run", "broken"), ("state", "")))]
    assert len([each for each in caplog.records if "broken" in each.message]) == 1, "the same trouble is said once"


def test_a_long_log_rests_after_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    folder = home.run(RUN)
    folder.mkdir(parents=True)
    write_run(folder)
    monkeypatch.setattr("infra.monitoring.scraping.REST", 1e9)
    scraped = LoopMetrics(home, lambda: None, age_seconds=0.0)
    first = scraped.values()
    store(folder, [record(dev_score(1), 0)])
    assert scraped.values() == first, "it has changed, and is not due"
    monkeypatch.setattr(scraped, "_rests_until", {})
    assert scraped.values()[0].dev == {"measured": 0.25, "best": 0.25}


def test_a_scrape_is_answered_at_once_while_the_next_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scraped = LoopMetrics(Home(tmp_path), lambda: None, age_seconds=0.0)
    monkeypatch.setattr(scraped, "values", lambda: [LoopValues(run="first")])
    first = scraped.text()
    goes_on, began, done = threading.Event(), threading.Event(), threading.Event()

    def slow() -> list[LoopValues]:
        began.set()
        assert goes_on.wait(60)
        done.set()
        return [LoopValues(run="second")]

    monkeypatch.setattr(scraped, "values", slow)
    assert scraped.text() == first
    assert began.wait(60)
    assert scraped.text() == first, "and no second thread reads"
    goes_on.set()
    assert done.wait(60)
    with scraped._lock:
        assert ("searchloop_run_info", (("recipe", ""), ("run", "second"), ("state", ""))) in samples(scraped._text)


def test_the_servers_counts_begin_at_zero_and_only_grow() -> None:
    counted = ServeMetrics()
    counted.took(accepted=3, refused=1)
    counted.answered("/search", "2xx", 0.02)
    assert counted._registry.get_sample_value(metrics.EVENTS.name, {"outcome": "accepted"}) == 3
    assert counted._registry.get_sample_value(metrics.EVENTS.name, {"outcome": "unkept"}) == 0
    bucket = counted._registry.get_sample_value(f"{metrics.SECONDS.name}_bucket", {"route": "/search", "le": "0.025"})
    assert bucket == 1
