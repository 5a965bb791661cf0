"""From a version to the events that made it, and from an event to the versions that it taught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.app.app import App
from infra.app.home import Home
from infra.commands.old_names import lineage
from infra.commands.report import report
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.lineage import groups_taught, version_made_of
from storage.log import Log, open_log
from storage.sink import Sink
from streams.events import PolicyRef
from tests.services.test_sink import QUICK
from tests.stored_events import generation, record, request, small_run, update


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 groups in 3 updates; killed after the third, it went on from the second in another lineage."""
    folder = tmp_path_factory.mktemp("home") / "runs" / "test"
    resumed = PolicyRef(lineage="a", step=2, sha256=f"{2:064x}")
    records = [
        *small_run(12),
        record(update(3, range(9, 12), lineage="b", parent=resumed), 3),
        record(update(3, range(9, 12), lineage="b", parent=resumed), 4),  # Announced twice.
        record(request(12), 12),
        record(generation(12, step=3), 12),
    ]
    with Sink(folder / LEDGER, QUICK) as sink:
        sink.write(records)
    return folder


@pytest.fixture
def log(folder: Path) -> Log:
    return open_log(folder)


def test_a_version_names_every_event_that_made_it(log: Log) -> None:
    made = version_made_of(log, "2")
    assert made.version == "a-000002"
    assert made.ancestors == ("a-000001", "a-000000")
    assert made.inherited == 4
    wanted = {("update", "test.updates", 1)}
    for number in range(4, 8):
        wanted |= {(kind, f"test.{kind}s", number) for kind in ("request", "generation", "reward")}
    assert {(e["event"], e["topic"], e["record_offset"]) for e in made.events} == wanted
    assert len(made.events) == len(wanted)
    newest = version_made_of(log, "latest")
    assert (newest.version, newest.inherited, len(newest.events)) == ("b-000003", 8, 1 + 3 * 3)
    assert version_made_of(log, "a-000003").version == "a-000003"


def test_an_event_names_the_versions_that_it_taught(log: Log) -> None:
    group = generation(9).group_id
    for event in ("requests[0]@9", "test.generations[0]@9", "rewards[0]@9", group, f"{group}:3", "request-9"):
        found = [(g.version, g.fate, g.surviving, g.lives_in) for g in groups_taught(log, event)]
        assert found == [("a-000003", "trained", False, 0), ("b-000003", "trained", True, 1)], event
    (early,) = groups_taught(log, "request-1")
    assert (early.version, early.lives_in) == ("a-000001", 3)
    (lost,) = groups_taught(log, "request-8")
    assert (lost.version, lost.surviving) == ("a-000003", False)
    (waiting,) = groups_taught(log, "request-12")
    assert (waiting.fate, waiting.version) == ("waiting", None)
    assert len(groups_taught(log, request(1).query)) == 16


def test_each_direction_is_one_sql_view(log: Log) -> None:
    rows = log.rows("FROM event_versions WHERE topic = 'test.rewards' AND record_offset = 9 AND surviving")
    assert [(row["lineage"], row["step"]) for row in rows] == [("b", 3)]
    rows = log.rows("FROM version_events WHERE lineage = 'a' AND step = 1 AND event = 'request'")
    assert sorted(row["record_offset"] for row in rows) == [0, 1, 2, 3]


def test_what_the_log_does_not_know_is_an_error(log: Log) -> None:
    with pytest.raises(StorageError, match=r"--policy: expected latest, a step from 1 to 3 or .* got '7'"):
        version_made_of(log, "7")
    with pytest.raises(StorageError, match=r"--event: expected a place .* got 'requests\[0\]@99'"):
        groups_taught(log, "requests[0]@99")


def test_the_verb_prints_both_directions(folder: Path) -> None:
    app = App(Home(folder.parents[1]))

    def call(*arguments: str) -> str:
        said = [
            CliRunner().invoke(verb, ["--run", "test", *arguments], obj=app, catch_exceptions=False).stdout
            for verb in (report, lineage)
        ]
        assert said[0] == said[1]
        return said[0]

    assert "stands on a-000002, a-000001, a-000000" in call("--policy", "latest")
    assert "did not survive" in call("--event", "request-9")
    assert json.loads(call("--event", "request-1", "--json"))[0]["version"] == "a-000001"
    assert json.loads(call("--policy", "1", "--json"))["version"] == "a-000001"
