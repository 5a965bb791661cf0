"""Traffic of people who attack, of one who searches all day, and of names that would steer a terminal."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner

from infra.cli import cli
from infra.serving.events import Refused, read_event
from infra.serving.offering import make_offer, may_serve
from search_env.serving.ramp import Ramp, RampSettings
from search_env.serving.routing import Part, Router, Routes
from search_env.serving.settings import ServeSettings
from storage.ledger import build_batch, store_batch
from storage.log import Log
from storage.offpolicy.reading import read_traffic
from storage.online.interleaving import duel, read_duels
from storage.schema import migrate
from streams.errors import SettingsError
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from streams.utility import UtilitySettings
from tests.stored_events import RUN, record

RAW, VERSION = "", "1-new-000001"


def test_people_with_tastes_of_their_own_make_no_winner_however_often_they_search() -> None:
    false = by_searches = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        tastes = random.choice([0.1, 0.9], size=40)  # Half of all people would prefer the one, on average.
        who = random.permutation(np.repeat(np.arange(40), 50))
        deltas = np.where(
            random.random(2_000) < 0.3, np.where(random.random(2_000) < tastes[who], 1.0, -1.0), 0.0
        ).tolist()
        false += duel("a", "b", deltas, clients=[str(each) for each in who]).winner is not None
        by_searches += duel("a", "b", deltas).winner is not None
    assert false <= 10, "at most 5 %"
    assert by_searches > 10, "the control: searches as draws"


def test_one_client_with_a_twentieth_of_the_searches_decides_no_duel(tmp_path: Path) -> None:
    random, events = np.random.default_rng(0), []
    for number in range(4_000):
        hostile = number % 20 == 0
        side = 0 if hostile else int(random.integers(2))
        events += interleaved(number, "fraud" if hostile else f"c{number}", side, clicks=hostile or number % 10 < 3)
    (found,) = read_duels(log_of(tmp_path, events), RUN)
    assert found.wins + found.losses + found.ties == 4_000
    assert found.mean > 0.03 and found.winner is None
    honest = [
        event for number in range(2_000) for event in interleaved(number, f"c{number}", 0, clicks=number % 2 == 0)
    ]
    (clear,) = read_duels(log_of(tmp_path / "clear", honest), RUN)
    assert clear.winner == RAW


def interleaved(number: int, client: str, side: int, *, clicks: bool) -> list[Impression | ImpressionOutcome]:
    seen = Impression(
        impression_id=f"i{number:05d}",
        query_id=f"q{number}",
        query="mug",
        client=client,
        shown=(Shown(document_id="a", rank=1), Shown(document_id="b", rank=2)),
        at_ms=1_000 + number,
        teams=(RAW, VERSION),
    )
    done = UserAction(
        action_id=f"a{number}", impression_id=seen.impression_id, kind="click", document_id="ab"[side], at_ms=number
    )
    return [seen, ImpressionOutcome(impression=seen, actions=(done,) if clicks else (), final=True)]


def log_of(folder: Path, events: list[Impression | ImpressionOutcome]) -> Log:
    folder.mkdir(exist_ok=True)
    connection = duckdb.connect(str(folder / "log.duckdb"))
    migrate(connection)
    store_batch(connection, build_batch([record(event, number) for number, event in enumerate(events)]))
    return Log(connection, folder / "archive", live=False)


def choice(number: int, policy: str, offered: dict[str, float]) -> list[Impression | ImpressionOutcome]:
    seen = Impression(
        impression_id=f"i{number:05d}",
        query_id=f"q{number}",
        query="mug",
        client=f"c{number}",
        shown=(Shown(document_id="a", rank=1),),
        at_ms=1_000 + number,
        policy=policy,
        action_propensity=offered.get(policy),
        offered=offered,
    )
    return [seen, ImpressionOutcome(impression=seen, actions=(), final=True)]


def test_probabilities_below_0_that_sum_to_1_are_left_out_and_counted(tmp_path: Path) -> None:
    events = choice(0, VERSION, {RAW: 0.5, VERSION: 0.5})
    events += choice(1, VERSION, {RAW: 1.3, VERSION: 0.5, "1-other-000002": -0.8})
    found = read_traffic(log_of(tmp_path, events), RUN, UtilitySettings())
    assert (len(found), found.left_out) == (1, {"probability of a choice outside [0, 1]": 1})


@pytest.mark.parametrize("name", ["[/x]", "[link=http://evil.example]good[/link]", "1-a-000001\x1b[2J\u202e"])
def test_a_hostile_name_of_a_version_neither_stops_compare_nor_steers_the_terminal(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    events = [event for number in range(80) for event in choice(number, name, {RAW: 0.5, name: 0.5})]
    with duckdb.connect(str(folder / "searchloop.duckdb")) as connection:
        migrate(connection)
        store_batch(connection, build_batch([record(event, number) for number, event in enumerate(events)]))
    done = CliRunner().invoke(cli, ["--home", str(tmp_path), "compare", "--run", RUN], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.exception
    assert not any(each in done.output for each in "\x1b\u202e")
    if name.startswith("["):
        assert name[:6] in done.output, "shown as it is"


@pytest.mark.parametrize("window", ["nan", "inf", "1e300", "0"])
def test_a_window_that_is_no_length_of_time_is_refused(window: str, tmp_path: Path) -> None:
    (tmp_path / "runs" / RUN).mkdir(parents=True)
    with duckdb.connect(str(tmp_path / "runs" / RUN / "searchloop.duckdb")) as connection:
        migrate(connection)
    done = CliRunner().invoke(cli, ["--home", str(tmp_path), "compare", "--run", RUN, "--window", window])
    assert (done.exit_code, "--window" in done.output) == (2, True), done.output


@pytest.mark.parametrize("claim", ["policy", "action_propensity", "offered"])
def test_a_page_cannot_say_which_version_was_drawn(claim: str) -> None:
    claims = {"policy": VERSION, "action_propensity": 0.001, "offered": {VERSION: 0.001, RAW: 0.999}}
    event = {"user_query": "mug", "query_id": "q1", "query_attributes": {claim: claims[claim]}}
    with pytest.raises(Refused, match=f"query_attributes.{claim}: expected none from a page"):
        read_event(event, now_ms=1, pseudonyms=lambda client, session: (client, session), from_page=True)
    assert isinstance(read_event(event, now_ms=1, pseudonyms=lambda client, session: (client, session)), Impression)


def test_a_version_that_was_taken_back_is_shown_to_nobody_though_its_routes_were_not_withdrawn_yet() -> None:
    routes = Routes(
        version=VERSION,
        by="all",
        top=10,
        parts={"all": Part(action="helped", explored="helped")},
        made_at_ms=1_000,
    )
    ramp = Ramp(version=VERSION, share=0.0, since_ms=2_000, status="rolled back")
    settings = ServeSettings()

    def offered(router: Router) -> dict[str, float]:
        return make_offer("mug", {VERSION}, ramp=ramp, routers={VERSION: router}, settings=settings, size=10).offered

    assert offered(Router(routes)) == {RAW: 1.0}
    assert not may_serve(VERSION, ramp=ramp, routers={VERSION: Router(routes)}, settings=settings)
    anew = Router(Routes(version=VERSION, by="all", top=10, parts=routes.parts, made_at_ms=3_000))
    assert offered(anew) == {RAW: 0.95, VERSION: 0.05}, "its gate has admitted it again"
    assert may_serve(VERSION, ramp=ramp, routers={VERSION: anew}, settings=settings)


@pytest.mark.parametrize("stages", [(1.0,), (0.5, 0.1), (0.1, 0.1, 1.0)])
def test_a_ramp_that_does_not_rise_is_refused(stages: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError, match=r"ramp.stages: expected shares that rise from below 1"):
        RampSettings(stages=stages)


@pytest.mark.parametrize(
    "address",
    ["http://localhost.shop.example", "http://127.0.0.1@shop.example", "http://127.0.0.10.example", "http://["],
)
def test_simulated_people_ask_no_other_machine_whatever_its_name_begins_with(address: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["--home", str(tmp_path), "simulate", address])
    assert isinstance(done.exception, SettingsError), done.output
    assert "expected an address of this machine" in str(done.exception)
