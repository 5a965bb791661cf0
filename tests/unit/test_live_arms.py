"""Versions in front of people: their rates by SQL agree with the product's own utility, and intervals hold always."""

from __future__ import annotations

import math
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from storage.ledger import LEDGER
from storage.log import Log
from storage.offpolicy.utility import utility_of
from storage.online.arms import LiveArm, read_arms
from storage.online.judgments import Side, read_judgments, verdict_of, version_is_left
from storage.online.sequences import Values, arm_mean
from storage.questions.asking import connect_reading
from streams.events import Event
from streams.traffic_events import JUDGING, Impression, ImpressionOutcome, UserAction
from streams.utility import UtilitySettings
from tests.shown_pages import in_log_order, write_run
from tests.stored_events import RUN, impression, user_action

TESTS = 500
VERSION = "1-abcdef-000002"


def seen(number: int, actions: list[tuple[str, str]], **fields: object) -> list[Event]:
    """An impression and its final outcome with these actions: (kind, document)."""
    shown = msgspec.structs.replace(impression(number), **fields)
    did = tuple(
        UserAction(
            action_id=f"a{number}-{place}",
            impression_id=shown.impression_id,
            kind=kind,
            document_id=document,
            at_ms=shown.at_ms + 1,
        )
        for place, (kind, document) in enumerate(actions)
    )
    return [shown, ImpressionOutcome(impression=shown, actions=did, final=True)]


def arms(home: Path, events: list[Event], utility: UtilitySettings) -> dict[str, LiveArm]:
    folder = write_run(home, in_log_order(events))
    with connect_reading(folder / LEDGER) as connection:
        return {each.version: each for each in read_arms(Log(connection, folder, live=False), RUN, utility)}


def test_each_version_earns_what_the_utility_of_its_impressions_says(tmp_path: Path) -> None:
    utility = UtilitySettings(worth={"click": 1.0, "purchase": 10.0, "returned": -4.0}, most=11.0)
    chance = random.Random(3)
    kinds = ["click", "purchase", "returned", "of no worth"]
    events: list[Event] = []
    worth: dict[str, list[float]] = {"": [], VERSION: []}
    clicked: dict[str, list[bool]] = {"": [], VERSION: []}
    for number in range(200):
        policy = chance.choice(["", VERSION])
        actions = [(chance.choice(kinds), chance.choice(["d1", "d2"])) for _ in range(chance.randrange(4))]
        events += seen(number, actions, policy=policy, client=f"c{number % 70}")
        rows = [{"kind": kind, "document_id": document} for kind, document in actions]
        worth[policy].append(utility_of(rows, utility))
        clicked[policy].append(bool(actions))
    found = arms(tmp_path, events, utility)
    assert set(found) == {"", VERSION}
    for policy, arm in found.items():
        assert arm.searches == len(worth[policy])
        assert arm.worth.value == pytest.approx(np.mean(worth[policy]))
        assert arm.click_rate.value == pytest.approx(np.mean(clicked[policy]))
        assert 0 <= arm.click_rate.low < arm.click_rate.value < arm.click_rate.high <= 1
    gain = found[VERSION].worth_gain
    assert gain is not None and gain.value == pytest.approx(np.mean(worth[VERSION]) - np.mean(worth[""]))
    assert found[""].worth_gain is None


def test_bots_interleaved_lists_and_judgments_are_no_searches_of_a_version(tmp_path: Path) -> None:
    events = [*seen(0, [("click", "d1")]), *seen(1, [], teams=("", VERSION), action_propensity=None)]
    judged = seen(2, [("tie", "d1")], application=JUDGING)
    assert isinstance(judged[1], ImpressionOutcome)
    events += [judged[0], msgspec.structs.replace(judged[1], bot="judged")]
    found = arms(tmp_path, events, UtilitySettings())
    assert {version: arm.searches for version, arm in found.items()} == {VERSION: 1}
    assert math.isinf(found[VERSION].click_rate.high) or found[VERSION].click_rate.high == 1


def test_clusters_by_their_sums_are_the_clusters_by_their_values() -> None:
    chance = np.random.default_rng(4)
    values, clusters = chance.random(300), chance.integers(40, size=300)
    sums, sizes = np.bincount(clusters, weights=values), np.bincount(clusters).astype(float)
    found, expected = Values.of_sums(sums, sizes), Values.of_clusters(values, clusters)
    assert found.count == expected.count == 40
    assert (found.mean, found.variance) == pytest.approx((expected.mean, expected.variance))
    # One value a cluster: the plain sample variance.
    assert Values.of_sums(values, np.ones(300)).variance == pytest.approx(float(values.var(ddof=1)))


def test_the_interval_of_one_mean_misses_it_seldom_though_somebody_looks_often() -> None:
    chance = np.random.default_rng(5)
    missed = 0
    for _ in range(TESTS):
        values = (chance.random(2_000) < 0.3).astype(float)
        looks = (arm_mean(Values.of(values[:n]), spread=0.0) for n in range(100, 2_001, 20))
        missed += any(not found.low <= 0.3 <= found.high for found in looks)
    assert missed <= 0.05 * TESTS


def test_a_mean_of_equal_or_of_few_values_has_no_interval() -> None:
    for values in (np.zeros(500), np.array([0.0, 1.0])):
        found = arm_mean(Values.of(values), spread=0.0)
        assert (found.low, found.high) == (-math.inf, math.inf)
    assert arm_mean(Values.of(np.zeros(500)), spread=0.2).high < 0.2


def judgment(number: int, side: Side, *, version: str = VERSION, query: str = "lamp") -> list[Event]:
    name = f"j{number}"
    shown = msgspec.structs.replace(
        impression(number), impression_id=f"{name}.version", application=JUDGING, policy=version, query=query
    )
    action = msgspec.structs.replace(
        user_action(number), action_id=name, impression_id=shown.impression_id, kind=verdict_of(name, side)
    )
    return [shown, action]


def read(home: Path, events: list[Event]) -> list[object]:
    folder = write_run(home, in_log_order(events))
    with connect_reading(folder / LEDGER) as connection:
        return list(read_judgments(Log(connection, folder, live=False), RUN))


def test_sides_are_tossed_and_a_reload_shows_the_same_ones() -> None:
    left = sum(version_is_left(f"judgment-{n}") for n in range(1_000))
    assert 430 < left < 570
    assert [version_is_left("a")] * 3 == [version_is_left("a") for _ in range(3)]
    for name in ("a", "b", "c", "d"):
        chosen: Side = "left" if version_is_left(name) else "right"
        other: Side = "right" if version_is_left(name) else "left"
        assert verdict_of(name, chosen) == "prefers version"
        assert (verdict_of(name, other), verdict_of(name, "tie")) == ("prefers raw", "tie")


def test_judgments_are_counted_once_by_version_with_half_of_each_tie(tmp_path: Path) -> None:
    names = [n for n in range(60) if version_is_left(f"j{n}")][:6]
    events = [event for n in names[:3] for event in judgment(n, "left", query=f"q{n}")]
    events += judgment(names[3], "right") + judgment(names[4], "tie") + judgment(names[5], "tie", version="2-b-000001")
    events += judgment(names[0], "right")  # It is sent again, and the first one counts.
    clicks: list[Event] = [impression(900), user_action(900)]
    other, mine = read(tmp_path, [*events, *clicks])
    assert (other.version, other.duel.ties, other.share) == ("2-b-000001", 1, 0.5)  # type: ignore[attr-defined]
    assert (mine.duel.wins, mine.duel.losses, mine.duel.ties) == (3, 1, 1)  # type: ignore[attr-defined]
    assert mine.share == pytest.approx(0.7) and 0 <= mine.low < 0.7 < mine.high <= 1  # type: ignore[attr-defined]
    assert mine.queries == [f"q{n}" for n in names[:3]] + ["lamp"]  # type: ignore[attr-defined]


def test_no_judgment_is_no_figure(tmp_path: Path) -> None:
    shown: Impression = impression(1)
    assert read(tmp_path, [shown, user_action(1)]) == []
