"""Promotion on real services: the gate, the ramp as servers see it, harm that is taken back, and kept decisions."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.promotion.promoting import by_person, look, start
from infra.promotion.state import RAMP_FILE, read_ramp
from search_env.serving.ramp import RampSettings
from search_env.serving.settings import ServeSettings
from services.local import Endpoints
from storage.ledger import build_batch, store_batch
from storage.schema import migrate
from streams.errors import SettingsError
from streams.events import Event
from streams.records import Received
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from tests.commands import ROOT, command, environment
from tests.kafka_cluster import wait_until
from tests.services.test_serving import VERSION, in_kafka, serving, shop  # noqa: F401 - a fixture.
from tests.stored_events import raw_record

RAMP = RampSettings(stages=(0.2, 0.5, 1.0), impressions_min=60, harm_max=0.2)
RAW = ""


@pytest.fixture
def live(tmp_path: Path, local_services: Endpoints, unique_name: str) -> Iterator[tuple[App, str]]:
    """Give an app with a short ramp, and the name of a live run."""
    yield (
        App(Home(tmp_path), settings=Settings(ramp=RAMP, serve=ServeSettings(ungated=True)), endpoints=local_services),
        unique_name,
    )


class Shop:
    """Writes searches into a live run's ledger, as the sink does."""

    def __init__(self, app: App, run: str) -> None:
        self._path = app.home.run(run) / "searchloop.duckdb"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._number = 0
        self._random = np.random.default_rng(0)

    def searches(self, count: int, *, share: float, raw: float, version: float, at_ms: int) -> None:
        """Store searches; raw results and the version's are clicked at these rates."""
        records: list[Received] = []
        for _ in range(count):
            policy = VERSION if self._random.random() < share else RAW
            seen = Impression(
                impression_id=f"i{self._number}",
                query_id=f"q{self._number}",
                query=f"mug {self._number % 20}",
                client=f"c{self._number}",
                shown=(Shown(document_id="d1", rank=1),),
                at_ms=at_ms,
                policy=policy,
                action_propensity=share if policy else 1 - share,
                offered={RAW: 1 - share, VERSION: share},
            )
            clicked = self._random.random() < (version if policy else raw)
            done = UserAction(
                action_id=f"a{self._number}",
                impression_id=seen.impression_id,
                kind="click",
                document_id="d1",
                at_ms=at_ms,
            )
            outcome = ImpressionOutcome(impression=seen, actions=(done,) if clicked else (), final=True)
            records += [self._record("impressions", seen), self._record("impression-outcomes", outcome)]
            self._number += 1
        with duckdb.connect(str(self._path)) as connection:
            migrate(connection)
            store_batch(connection, build_batch(records))

    def _record(self, kind: str, event: Event) -> Received:
        from streams.codec import encode_event
        from streams.records import Position
        from streams.topics import topic_name

        plain = raw_record(kind, self._number, encode_event(event))
        place = Position(topic=topic_name(self._run, kind), partition=0, offset=self._number)
        return Received(
            position=place, timestamp_ms=plain.timestamp_ms, key=plain.key, value=plain.value, headers=plain.headers
        )


def test_a_good_version_goes_through_the_gate_and_every_stage_and_each_decision_is_an_event(
    live: tuple[App, str], local_services: Endpoints
) -> None:
    app, run = live
    people = Shop(app, run)
    people.searches(1_500, share=0.3, raw=0.3, version=0.5, at_ms=1)
    begun = start(app, run, VERSION)
    assert (begun.kind, begun.share) == ("start", 0.2)
    ramp, step = look(app, run)
    assert (step.kind, ramp.share) == (None, 0.2)
    assert "waits for data: 0 of 60" in step.reason
    for expected in ("advance", "finish"):
        people.searches(800, share=ramp.share, raw=0.3, version=0.5, at_ms=ramp.since_ms + 1)
        ramp, step = look(app, run)
        assert step.kind == expected, step.reason
    assert (ramp.status, ramp.share) == ("serves", 1.0)
    decisions = in_kafka(local_services, run, "decisions")
    assert [each.kind for each in decisions] == ["start", "advance", "finish"]
    assert decisions[0].evidence["low"] > 0
    assert all(each.evidence["difference"] > 0 for each in decisions[1:])
    assert by_person(app, run, "roll back").by == "person"
    assert read_ramp(app.home.run(run)).status == "rolled back"  # type: ignore[union-attr]


def test_a_version_that_harms_is_refused_by_the_log_and_taken_back_on_its_ramp(
    live: tuple[App, str], local_services: Endpoints
) -> None:
    app, run = live
    people = Shop(app, run)
    people.searches(1_500, share=0.3, raw=0.5, version=0.2, at_ms=1)
    refused = start(app, run, VERSION)
    assert refused.kind == "refuse"
    assert "expected a lower end above" in refused.reason
    assert read_ramp(app.home.run(run)) is None
    people.searches(12_000, share=0.3, raw=0.5, version=0.8, at_ms=2)  # It was good, and then it breaks.
    assert start(app, run, VERSION).kind == "start"
    with pytest.raises(SettingsError, match="Finish it first"):
        start(app, run, "1-other-000001")
    assert by_person(app, run, "hold").kind == "hold"
    assert look(app, run)[1].kind is None, "a held ramp stays"
    by_person(app, run, "go on")
    ramp, _ = look(app, run)
    people.searches(1_500, share=ramp.share, raw=0.5, version=0.1, at_ms=ramp.since_ms + 1)
    ramp, step = look(app, run)
    assert (step.kind, ramp.status, ramp.share) == ("roll back", "rolled back", 0.0)
    kinds = [each.kind for each in in_kafka(local_services, run, "decisions")]
    assert kinds == ["refuse", "start", "hold", "start", "roll back"]


def test_a_look_that_died_before_it_kept_the_state_makes_the_same_decision_again(
    live: tuple[App, str], local_services: Endpoints
) -> None:
    app, run = live
    people = Shop(app, run)
    people.searches(1_500, share=0.3, raw=0.3, version=0.5, at_ms=1)
    start(app, run, VERSION)
    ramp, _ = look(app, run)
    people.searches(800, share=ramp.share, raw=0.3, version=0.5, at_ms=ramp.since_ms + 1)
    before = (app.home.run(run) / RAMP_FILE).read_bytes()
    look(app, run)
    (app.home.run(run) / RAMP_FILE).write_bytes(before)
    look(app, run)
    advances = [each for each in in_kafka(local_services, run, "decisions") if each.kind == "advance"]
    assert len(advances) == 2
    assert len({each.decision_id for each in advances}) == 1


def test_the_command_says_why_a_version_is_refused_and_what_can_be_done(
    live: tuple[App, str], local_services: Endpoints
) -> None:
    app, run = live
    Shop(app, run).searches(40, share=0.3, raw=0.3, version=0.3, at_ms=1)

    def promote(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = command(app.home.root, "promote", *arguments, "--run", run)
        return subprocess.run(
            words,
            cwd=ROOT,
            env=environment(local_services) | {"SEARCHLOOP_SERVE__UNGATED": "true"},
            capture_output=True,
            text=True,
            check=False,
        )

    refused = promote(VERSION, "--once")
    assert (refused.returncode, "not evaluable" in refused.stdout) == (1, True), refused.stderr
    nothing = promote("--hold")
    assert nothing.returncode != 0
    assert f"no version was promoted yet. Run: searchloop promote VERSION --run {run}" in nothing.stderr
    both = promote("--hold", "--why")
    assert both.returncode != 0
    assert "got several" in both.stderr


def test_servers_follow_the_ramp_and_one_person_always_gets_the_same_side(
    shop: tuple[Path, str],  # noqa: F811
    local_services: Endpoints,
) -> None:
    home, index = shop
    ramp = home / "runs" / index / RAMP_FILE
    ramp.parent.mkdir(parents=True, exist_ok=True)
    state = '{{"version":"{}","stage":1,"share":{},"since_ms":1,"status":"{}"}}'
    ramp.write_text(state.format(VERSION, 0.5, "ramping"))
    with serving(home, index, local_services) as server:
        found = [server.get(f"/search?query=mug&client_id=person-{n % 12}")[1] for n in range(60)]
        assert {each["action_propensity"] for each in found} == {0.5}
        sides = Counter((n % 12, each["policy"]) for n, each in enumerate(found))
        assert len(sides) == 12, "each person has one side"
        assert {policy for _, policy in sides} == {RAW, VERSION}
        assert server.get("/search?query=oak")[1]["action_propensity"] == 1.0, "no answer of the version"
        ramp.write_text(state.format(VERSION, 0.0, "rolled back"))

        def taken_back() -> bool:
            return server.get("/search?query=mug&client_id=person-1")[1]["action_propensity"] == 1.0

        wait_until(taken_back, "the version to leave")
        assert {server.get(f"/search?query=mug&client_id=person-{n}")[1]["policy"] for n in range(12)} == {RAW}
        ramp.write_text("{")
        wait_until(lambda: bool(server.get("/ready")[1]["trouble"]), "the damaged state to be told")
        assert server.get("/search?query=mug")[0] == 200
    offered = {tuple(each.offered.items()) for each in in_kafka(local_services, index, "impressions")}
    assert ((RAW, 0.5), (VERSION, 0.5)) in offered
