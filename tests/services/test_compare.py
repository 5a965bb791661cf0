"""Logged traffic of another system under the verbs of live traffic: import, compare, train, and what cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.commands.compare import compare
from infra.commands.replay import replay
from infra.replaying.importing import import_feedback
from infra.runs.asked import asked_queries
from services.local import Endpoints
from streams.kafka_settings import KafkaSettings
from streams.traffic_events import Action, Feedback, LoggedChoice, Shown
from tests.loop.conftest import quiet
from tests.services.test_serving import in_kafka, serving, shop  # noqa: F401 - a fixture.

GOOD, BAD, UNSEEN = "1-good-000001", "1-bad-000002", "1-unseen-000003"
OFFERED = {"": 0.5, GOOD: 0.3, BAD: 0.1995, UNSEEN: 0.0005}
RATES = {"": 0.3, GOOD: 0.5, BAD: 0.1}
HOUR_MS = 3_600_000
SEARCHES = 1_500


@pytest.fixture
def app(tmp_path: Path, local_services: Endpoints) -> App:
    return App(
        Home(tmp_path / "home"), settings=Settings(kafka=KafkaSettings(bootstrap=local_services.kafka, partitions=1))
    ).at(local_services)


def searches() -> Iterator[Feedback]:
    """Two hours of another system's searches; its last ones log choices that are none."""
    random = np.random.default_rng(0)
    names, chances = [each for each in OFFERED if each != UNSEEN], np.array([0.5, 0.3, 0.2])
    wrong = [
        LoggedChoice(policy=GOOD, action_propensity=each, offered={GOOD: each, "": 1 - each}) for each in (0.0, 1.5)
    ]
    wrong += [LoggedChoice(policy=GOOD), LoggedChoice(policy=BAD, action_propensity=0.2, offered={BAD: 0.2, "": 0.2})]
    for number in range(SEARCHES + len(wrong)):
        policy = str(random.choice(names, p=chances))
        choice = LoggedChoice(policy=policy, action_propensity=OFFERED[policy], offered=OFFERED)
        at_ms = 1_700_000_000_000 + number * 2 * HOUR_MS // SEARCHES
        clicked = random.random() < RATES[policy]
        yield Feedback(
            feedback_id=f"s{number}",
            query_id=f"s{number}",
            query=f"red mug {number % 40}" if number % 3 else f"a small red mug {number % 40}",
            application="theirs",
            client=f"c{number % 400}",
            shown=(Shown(document_id="d1", rank=1), Shown(document_id="d2", rank=2)),
            actions=(Action(kind="click", document_id="d2", rank=2, at_ms=at_ms + 1_000),) if clicked else (),
            at_ms=at_ms,
            choice=choice if number < SEARCHES else wrong[number - SEARCHES],
        )


def compared(app: App, run: str, *arguments: str) -> bytes:
    found = CliRunner().invoke(compare, ["--run", run, *arguments], obj=app, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout_bytes


def decoded(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(content)
    return found


def test_imported_traffic_is_compared_as_live_traffic_byte_for_byte_again_and_after_an_export(
    app: App, unique_name: str, tmp_path: Path
) -> None:
    again = f"{unique_name}-again"
    assert import_feedback(app, searches(), into=unique_name, index=None, report=quiet) == SEARCHES + 4
    first = compared(app, unique_name, "--json")
    assert compared(app, unique_name, "--json") == first
    found = decoded(first)
    assert found["impressions"] == SEARCHES
    assert found["left_out"] == {
        "propensity outside (0, 1]": 2,
        "without propensities": 1,
        "probabilities of the choices do not sum to 1": 1,
    }
    versions = {each["policy"]: each for each in found["versions"]}
    for policy in (GOOD, BAD):
        by_hand = sum(
            bool(each.actions)
            / OFFERED[each.choice.policy]
            * ((each.choice.policy == policy) - (each.choice.policy == ""))
            for each in list(searches())[:SEARCHES]
            if isinstance(each.choice, LoggedChoice)
        )
        assert versions[policy]["gains"]["ips"]["value"] == pytest.approx(by_hand / SEARCHES, abs=1e-9)
    assert versions[GOOD]["gains"]["dr"]["low"] > 0 > versions[BAD]["gains"]["dr"]["high"]
    assert versions[UNSEEN]["trouble"].startswith("not evaluable: the log never took an action")
    assert versions[UNSEEN]["gains"] == {}
    for arguments, parts in (
        (("--window", "1"), {"window 001", "window 002", "window 003"}),
        (("--segment", "words"), {"long", "short"}),
        (("--segment", "traffic", "--window", "1.5"), {"window 001 head", "window 002 head", "window 001 tail"}),
    ):
        one, other = (compared(app, unique_name, "--json", *arguments) for _ in range(2))
        assert one == other
        said = {each["part"] for each in decoded(one)["versions"]}
        assert said <= parts | {"window 002 tail"} and len(said) >= 2
        raw = [each for each in decoded(one)["versions"] if each["policy"] == ""]
        assert sum(each["impressions"] for each in raw) == SEARCHES
    files = [str(tmp_path / name) for name in ("queries.ndjson", "events.ndjson")]
    exported = CliRunner().invoke(
        replay, ["export-ubi", "--run", unique_name, "--queries", files[0], "--events", files[1]], obj=app
    )
    assert exported.exit_code == 0, exported.output
    imported = CliRunner().invoke(
        replay, ["import-ubi", "--queries", files[0], "--events", files[1], "--into", again, "--json"], obj=app
    )
    assert imported.exit_code == 0, imported.output
    (said,) = decoded(imported.stdout_bytes)["applications"]
    assert (said["searches"], said["orphans"], said["shown_by_queries"]) == (SEARCHES + 4, 0, 2 * (SEARCHES + 4))
    back = decoded(compared(app, again, "--json"))
    assert (back["impressions"], back["left_out"]) == (found["impressions"], found["left_out"])
    for each, before in zip(back["versions"], found["versions"], strict=True):
        assert each["support"] == before["support"]
        for name, value in each["values"].items():
            assert value["value"] == pytest.approx(before["values"][name]["value"], abs=1e-9)


def test_sessions_without_propensities_are_not_evaluable_and_train_all_the_same(
    app: App, unique_name: str, tmp_path: Path
) -> None:
    path = tmp_path / "sessions.csv"
    rows = [f"s{number},mug {number % 5},{rank},d{rank},{int(rank == 0)}" for number in range(50) for rank in range(2)]
    path.write_text("session_id,query,rank0,doc_id,clicked\n" + "\n".join(rows) + "\n")
    imported = CliRunner().invoke(replay, ["import-sessions", str(path), "--into", unique_name], obj=app)
    assert imported.exit_code == 0, imported.output
    said = compared(app, unique_name).decode()
    assert "not evaluable: no impression has propensities (50 without propensities)" in " ".join(said.split())
    asked = asked_queries(app.home, unique_name, run="new")
    with asked.open("rb") as file:
        assert {msgspec.json.decode(line)["text"] for line in file} == {f"mug {number}" for number in range(5)}
