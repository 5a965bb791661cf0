"""Logged traffic as choices: a ledger's rows, versions with a known worth, and traffic that says nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import duckdb
import msgspec
import numpy as np
import pytest

from infra.app.home import Home
from infra.runs.asked import asked_queries
from storage.errors import EvaluationError
from storage.ledger import build_batch, store_batch
from storage.log import Log
from storage.offpolicy.estimators import estimate_gain
from storage.offpolicy.reading import read_traffic
from storage.offpolicy.traffic import RAW, Traffic, choices_for
from storage.offpolicy.utility import utility_of
from storage.offpolicy.versions import evaluate_versions
from storage.online.interleaving import duel, foretold, read_duels
from storage.schema import migrate
from streams.records import Received
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from streams.utility import UtilitySettings
from tests.stored_events import RUN, record

GOOD, BAD, RARE = "1-good-000001", "1-bad-000002", "1-rare-000003"
RATES = {RAW: 0.3, GOOD: 0.4, BAD: 0.2, RARE: 0.3}


def simulated(count: int, seed: int = 0) -> Traffic:
    """Traffic in which each version's results are clicked at a known rate; the rare one is hardly ever shown."""
    random = np.random.default_rng(seed)
    offered = {RAW: 0.5, GOOD: 0.3, BAD: 0.199, RARE: 0.001}
    names = list(offered)
    policies = [names[place] for place in random.choice(len(names), size=count, p=list(offered.values()))]
    return Traffic(
        queries=[f"query {number % 97}" for number in range(count)],
        clients=[f"client {number % 311}" for number in range(count)],
        at_ms=np.arange(count, dtype=np.int64) * 60_000,
        policies=policies,
        propensities=np.array([offered[policy] for policy in policies]),
        offered=[offered] * count,
        utilities=np.array([float(random.random() < RATES[policy]) for policy in policies]),
        left_out={},
    )


def test_versions_with_a_known_worth_are_told_apart_and_a_rare_one_is_not_evaluable() -> None:
    found = {each.policy: each for each in evaluate_versions(simulated(8_000))}
    for policy in (GOOD, BAD):
        for name, gain in found[policy].gains.items():
            assert gain.low <= RATES[policy] - RATES[RAW] <= gain.high, (policy, name)
    assert found[GOOD].gains["dr"].low > 0 > found[BAD].gains["dr"].high
    assert found[RARE].trouble.startswith("not evaluable")
    assert not found[RARE].gains


def test_parts_of_the_traffic_add_up() -> None:
    traffic = simulated(3_000)
    whole = evaluate_versions(traffic)
    windows = evaluate_versions(traffic, window_ms=1_000 * 60_000)
    assert {each.part for each in windows} == {"window 001", "window 002", "window 003"}
    raw = [each.impressions for each in windows if each.policy == RAW]
    assert sum(raw) == len(traffic) == whole[0].impressions
    assert {each.part for each in evaluate_versions(traffic, segment="words")} == {"short"}
    assert {each.part for each in evaluate_versions(traffic, segment="traffic")} == {"head"}


def test_where_a_version_was_not_offered_both_policies_show_raw_results() -> None:
    traffic = simulated(2_000)
    half = msgspec.structs.replace(
        traffic,
        offered=[{RAW: 1.0} if number % 2 else offer for number, offer in enumerate(traffic.offered)],
        policies=[RAW if number % 2 else policy for number, policy in enumerate(traffic.policies)],
        propensities=np.where(np.arange(2_000) % 2, 1.0, traffic.propensities),
    )
    whole = estimate_gain(choices_for(half, GOOD), choices_for(half, RAW), "ips")
    there = half.where([number % 2 == 0 for number in range(2_000)])
    part = estimate_gain(choices_for(there, GOOD), choices_for(there, RAW), "ips")
    assert whole.value == pytest.approx(part.value / 2)


def test_parts_by_route_are_those_that_the_servers_logged(tmp_path: Path) -> None:
    routes = {GOOD: "mug: helped", BAD: "mug: raw"}
    outcomes = [outcome(n, routes=routes) for n in range(40)]
    outcomes += [outcome(40 + n, routes={GOOD: "two: words: raw", BAD: "short: raw"}) for n in range(3)]
    with log_of(tmp_path, [*outcomes, outcome(50)]) as log:
        traffic = read_traffic(log, RUN, UtilitySettings())
    assert traffic.parts == ["mug"] * 40 + ["short / two: words"] * 3 + [""]
    found = evaluate_versions(traffic, segment="route")
    sizes = {each.part: each.impressions for each in found if each.policy == RAW}
    assert sizes == {"mug": 40, "short / two: words": 3, "no routes": 1}
    assert {each.part for each in evaluate_versions(simulated(100), segment="route")} == {"no routes"}


def test_an_action_counts_once_a_document_by_its_best_kind_and_up_to_the_most() -> None:
    settings = UtilitySettings(worth={"click": 1.0, "purchase": 10.0}, most=12.0)
    clicks = [{"kind": kind, "document_id": name} for kind, name in (("click", "a"), ("click", "a"), ("look", "b"))]
    assert utility_of(clicks, settings) == 1.0
    assert utility_of([*clicks, {"kind": "purchase", "document_id": "a"}], settings) == 10.0
    assert utility_of([{"kind": "purchase", "document_id": str(n)} for n in range(9)], settings) == 12.0
    assert utility_of([], settings) == 0.0


def outcome(number: int, **changes: object) -> ImpressionOutcome:
    given: dict[str, object] = {
        "impression_id": f"i{number:05d}",
        "query_id": f"q{number}",
        "query": "red mug",
        "client": f"c{number}",
        "shown": (Shown(document_id="d1", rank=1), Shown(document_id="d2", rank=2)),
        "at_ms": 1_000 + number,
        "policy": GOOD,
        "action_propensity": 0.8,
        "offered": {RAW: 0.2, GOOD: 0.8},
    }
    seen = Impression(**(given | changes))  # type: ignore[arg-type]
    done = UserAction(
        action_id=f"a{number}", impression_id=seen.impression_id, kind="click", document_id="d2", at_ms=2_000
    )
    return ImpressionOutcome(impression=seen, actions=(done,), final=True)


def log_of(folder: Path, outcomes: Iterable[ImpressionOutcome]) -> Log:
    records: list[Received] = []
    for number, each in enumerate(outcomes):
        records += [record(each.impression, number), record(each, number)]
    connection = duckdb.connect(str(folder / "searchloop.duckdb"))
    migrate(connection)
    store_batch(connection, build_batch(records))
    return Log(connection, folder / "archive", live=False)


def test_traffic_is_read_from_the_ledger_and_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    outcomes = [
        outcome(0),
        outcome(1, action_propensity=None, offered={}),
        outcome(2, offered={RAW: 0.5, GOOD: 0.8}),
        outcome(3, action_propensity=0.7),
        outcome(4, action_propensity=1.5, offered={RAW: -0.5, GOOD: 1.5}),
        outcome(5, policy=RAW, action_propensity=0.2),
        msgspec.structs.replace(outcome(6), bot="too_fast"),
    ]
    with log_of(tmp_path, outcomes) as log:
        traffic = read_traffic(log, RUN, UtilitySettings())
    assert traffic.policies == [GOOD, RAW]
    assert traffic.utilities.tolist() == [1.0, 1.0]
    assert traffic.left_out == {
        "without propensities": 1,
        "probabilities of the choices do not sum to 1": 1,
        "propensity differs from that of the choice": 1,
        "propensity outside (0, 1]": 1,
    }


def test_columns_give_the_same_as_rows_read_one_by_one(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    kinds = ("click", "add_to_cart", "purchase", "look")
    offers = [{RAW: 0.2, GOOD: 0.8}, {RAW: 0.5, GOOD: 0.3, BAD: 0.2}, {RAW: 1.0}, {}]
    settings = UtilitySettings(worth={"click": 0.1, "add_to_cart": 0.7, "purchase": 1.3}, most=2.0)
    outcomes = []
    for number in range(300):
        offered = offers[int(random.integers(len(offers)))]
        policy = str(random.choice(list(offered))) if offered else RAW
        one = outcome(
            number,
            client="" if number % 7 == 0 else f"c{number % 20}",
            query=f"query {number % 11}",
            at_ms=int(random.integers(1_000, 1_100)),
            policy=policy,
            action_propensity=offered.get(policy),
            offered=offered,
        )
        done = [
            UserAction(
                action_id=f"a{number}-{place}",
                impression_id=one.impression.impression_id,
                kind=str(random.choice(kinds)),
                document_id=f"d{random.integers(3)}",
                at_ms=2_000 + place,
            )
            for place in range(int(random.integers(6)))
        ]
        outcomes.append(msgspec.structs.replace(one, actions=tuple(done)))
    with log_of(tmp_path, outcomes) as log:
        traffic = read_traffic(log, RUN, settings, since_ms=1_050)
        rows = log.rows(
            "SELECT o.*, i.offered FROM trusted_outcomes o JOIN first_impressions i USING (run, impression_id) "
            "WHERE o.at_ms >= 1050 ORDER BY o.at_ms, o.impression_id"
        )
    kept = [row for row in rows if row["offered"]]
    assert traffic.queries == [row["query"] for row in kept]
    assert traffic.clients == [row["client"] or row["impression_id"] for row in kept]
    assert traffic.at_ms.tolist() == [row["at_ms"] for row in kept]
    assert traffic.policies == [row["policy"] for row in kept]
    assert traffic.propensities.tolist() == [row["action_propensity"] for row in kept]
    assert traffic.offered == [row["offered"] for row in kept]
    assert traffic.utilities.tolist() == [utility_of(row["actions"], settings) for row in kept]
    assert len(set(traffic.utilities.tolist())) >= 8
    assert traffic.left_out == {"without propensities": len(rows) - len(kept)}


def test_a_ledger_without_impressions_gives_no_traffic(tmp_path: Path) -> None:
    with log_of(tmp_path, [outcome(0)]) as log:
        assert len(read_traffic(log, RUN, UtilitySettings(), since_ms=5_000)) == 0
        assert len(read_traffic(log, "another run", UtilitySettings())) == 0


def test_queries_of_bots_do_not_train(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder = home.run("live")
    folder.mkdir(parents=True)
    asked = [outcome(0), msgspec.structs.replace(outcome(1, query="free money"), bot="everything")]
    log_of(folder, asked).close()
    with asked_queries(home, "live", run="new").open("rb") as file:
        assert [msgspec.json.decode(line)["text"] for line in file] == ["red mug"]


def test_a_log_without_propensities_is_not_evaluable_and_says_why(tmp_path: Path) -> None:
    with log_of(tmp_path, [outcome(n, action_propensity=None, offered={}) for n in range(3)]) as log:
        traffic = read_traffic(log, RUN, UtilitySettings())
    with pytest.raises(EvaluationError, match=r"no impression has propensities \(3 without propensities\)"):
        choices_for(traffic, GOOD)


def test_interleaved_impressions_make_duels_and_no_choices(tmp_path: Path) -> None:
    interleaved = {"policy": RAW, "action_propensity": None, "offered": {}}
    outcomes = [outcome(n, teams=(RAW, GOOD), **interleaved) for n in range(200)]
    outcomes += [outcome(n, teams=(GOOD, RAW), **interleaved) for n in range(200, 240)]
    with log_of(tmp_path, outcomes) as log:
        (found,) = read_duels(log, RUN)
        assert len(read_traffic(log, RUN, UtilitySettings())) == 0
    # The second result is clicked each time: the good version's in 200 lists, the raw one's in 40.
    assert (found.one, found.other, found.wins, found.losses, found.ties) == (RAW, GOOD, 40, 200, 0)
    assert found.mean == pytest.approx((40 - 200) / 240)
    assert found.winner == GOOD


def test_equals_have_no_winner_and_two_versions_foretell_nothing() -> None:
    assert duel("a", "b", [1.0, -1.0] * 200).winner is None
    assert foretold({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}) is None
    told = foretold({name: float(n) for n, name in enumerate("abcdefghij")}, {n: ord(n) / 9 for n in "abcdefghij"})
    assert told is not None
    assert (told.tau, told.versions) == (pytest.approx(1.0), 10)
    assert told.low > 0.9
