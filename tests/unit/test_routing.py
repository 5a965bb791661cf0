"""Routes: parts of queries, the rule that serves a version only where it wins, and what a search is then offered."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from infra.promotion.held_out import GateVerdict, HeldOutRuns, judge_version, without_trained
from infra.promotion.served import served_rankings
from infra.serving.offering import Offer, make_offer, may_serve
from search_env.catalogue.corpora import Query, Ranking
from search_env.serving.ramp import Ramp, RampSettings
from search_env.serving.route_learning import (
    DEV,
    JUDGED,
    LOG,
    Gains,
    PartedGains,
    cross_fitted,
    decide,
    learn_parts,
    swapped,
)
from search_env.serving.routing import (
    Bound,
    By,
    Part,
    PartGains,
    RouteAction,
    Router,
    Routes,
    RouteSettings,
    below,
    explored,
    part_of,
)
from search_env.serving.settings import ServeSettings

RAW, VERSION, OTHER = "", "1-new-000001", "0-old-000009"
SETTINGS = RouteSettings(by="words")


@pytest.mark.parametrize(
    ("query", "by", "name"),
    [
        ("Red  mug", "known", "known words"),
        ("red lamp", "known", "new words"),
        ("", "known", "new words"),
        ("red mug", "words", "short"),
        ("big red mug", "words", "long"),
        ("RED mug", "traffic", "head"),
        ("mug red", "traffic", "tail"),
        ("anything", "all", "all"),
    ],
)
def test_a_query_has_one_part_that_its_text_decides(query: str, by: By, name: str) -> None:
    assert part_of(query, by, known={"red", "mug"}, head={"red mug"}) == name


def test_below_the_first_raw_results_come_the_helped_ones_and_none_twice() -> None:
    assert below(["a", "b", "c", "d"], ["x", "a", "c", "y"], top=2, size=10) == ["a", "b", "x", "c", "d", "y"]
    assert below(["a", "b", "c"], ["x"], top=2, size=2) == ["a", "b"], "a list that raw results fill is raw"


def test_what_is_explored_gets_the_floor_and_the_base_the_rest() -> None:
    assert explored(RAW, set(), epsilon=0.1) == {RAW: 1.0}
    assert explored(RAW, {VERSION}, epsilon=0.1) == pytest.approx({RAW: 0.95, VERSION: 0.05})
    assert explored(OTHER, {VERSION}, epsilon=0.2) == pytest.approx({OTHER: 0.9, VERSION: 0.1})


def people(gains: dict[str, tuple[float, int]], seed: int = 0, noise: float = 0.1) -> PartedGains:
    """Queries of each part with this mean gain in every measure."""
    random = np.random.default_rng(seed)
    found, parts = {}, {}
    for part, (mean, count) in gains.items():
        for number in range(count):
            name = f"{part}{number}"
            found[name] = Gains(*(mean + noise * random.standard_normal(3)))
            parts[name] = part
    return PartedGains(found, parts)


def test_a_version_serves_the_parts_where_it_wins_and_no_other() -> None:
    learned = learn_parts({JUDGED: people({"short": (-0.05, 60), "long": (0.08, 60)})}, SETTINGS, explore_loss_max=0.02)
    assert {name: part.action for name, part in learned.items()} == {"short": "raw", "long": "helped"}
    assert learned["short"].explored == "raw", "a loss is proven"
    bound = learned["long"].seen[JUDGED].protect
    assert bound.low < bound.value < bound.own < 0.15, "the part leans on the one that loses"


def test_a_small_part_whose_own_queries_lose_is_raw_whatever_the_others_gain() -> None:
    learned = learn_parts(
        {JUDGED: people({"short": (0.1, 200), "long": (-0.02, 4)}, noise=0.01)}, SETTINGS, explore_loss_max=0
    )
    assert learned["short"].action == "helped"
    assert learned["long"].seen[JUDGED].protect.value > 0
    assert learned["long"].action == "raw"


@pytest.mark.parametrize("seed", range(3))
def test_a_rule_rarely_serves_a_version_without_gain(seed: int) -> None:
    served = sum(
        any(
            part.action != "raw"
            for part in learn_parts(
                {JUDGED: people({"short": (0.0, 40), "long": (0.0, 30)}, seed=1000 * seed + draw)},
                SETTINGS,
                explore_loss_max=0.02,
            ).values()
        )
        for draw in range(100)
    )
    # With a probability of .05 each, more than 14 of 100 come with a probability below .001.
    assert served <= 14


def bound(own: float, low: float, high: float = 1.0) -> Bound:
    return Bound(own=own, value=own, low=low, high=high)


def seen(protect: Bound, under: Bound | None = None, **changes: Any) -> PartGains:
    given: dict[str, Any] = {"queries": 50, "protect": protect, "gain": protect, "below": under or protect}
    return PartGains(**(given | changes))


WINS, LOSES, UNSURE, HARMS = bound(0.1, 0.05), bound(-0.01, -0.03), bound(0.01, -0.01), bound(-0.1, -0.2, -0.05)


@pytest.mark.parametrize(
    ("evidence", "action", "shown"),
    [
        ({DEV: seen(WINS)}, "below", "helped"),
        ({DEV: seen(WINS), JUDGED: seen(LOSES)}, "raw", "helped"),
        ({DEV: seen(WINS), JUDGED: seen(UNSURE)}, "below", "helped"),
        ({DEV: seen(WINS), JUDGED: seen(HARMS)}, "raw", "raw"),
        ({DEV: seen(HARMS), JUDGED: seen(WINS)}, "helped", "helped"),
        ({JUDGED: seen(WINS), LOG: seen(HARMS)}, "raw", "raw"),
        ({JUDGED: seen(UNSURE), LOG: seen(WINS)}, "helped", "helped"),
        ({JUDGED: seen(UNSURE)}, "raw", "helped"),
        ({JUDGED: seen(LOSES, WINS)}, "below", "below"),
        ({JUDGED: seen(LOSES, WINS, below_protect=-0.01)}, "raw", "raw"),
        ({}, "raw", "raw"),
    ],
)
def test_the_more_trusted_evidence_decides(evidence: dict[str, PartGains], action: str, shown: str) -> None:
    part = decide(evidence, SETTINGS, explore_loss_max=0.02)
    assert (part.action, part.explored) == (action, shown)


def test_cross_fitted_rules_never_saw_the_query_and_swapped_sides_teach_nothing() -> None:
    source = people({"short": (-0.05, 60), "long": (0.08, 60)})
    sources = {JUDGED: source}
    actions = cross_fitted(sources, JUDGED, SETTINGS)
    assert {source.parts[query] for query, action in actions.items() if action != "raw"} == {"long"}
    # One query whose gain is enormous cannot open its own part.
    alone = people({"short": (-0.01, 60)}, noise=0.001)
    alone.gains["short0"] = Gains(9.0, 9.0, 9.0)  # type: ignore[index]
    assert cross_fitted({JUDGED: alone}, JUDGED, SETTINGS)["short0"] == "raw"
    served = [
        action != "raw"
        for seed in range(20)
        for action in cross_fitted(sources, JUDGED, SETTINGS, learned_on=swapped(source.gains, seed)).values()
    ]
    assert np.mean(served) < 0.1


def routes(actions: dict[str, tuple[RouteAction, RouteAction]], version: str = VERSION, **changes: Any) -> Routes:
    parts = {name: Part(action=action, explored=shown) for name, (action, shown) in actions.items()}
    return Routes(version=version, by="words", top=10, parts=parts, **changes)


def offer(
    *, ramp: Ramp | None = None, known: tuple[Routes, ...] = (), query: str = "mug", size: int | None = 10, **serve: Any
) -> Offer:
    return make_offer(
        query,
        {VERSION, OTHER},
        ramp=ramp,
        routers={each.version: Router(each) for each in known},
        settings=ServeSettings(**serve),
        size=size,
    )


RAMP = Ramp(version=VERSION, share=0.25, since_ms=0)
WON = routes({"short": ("helped", "helped")})
HOPED = routes({"short": ("raw", "helped")})


def test_without_a_gate_nobody_is_served_unless_somebody_says_so() -> None:
    assert offer() == Offer({RAW: 1.0}, {})
    assert not may_serve(VERSION, ramp=None, routers={}, settings=ServeSettings())
    assert set(offer(ungated=True).offered) == {RAW, VERSION, OTHER}


def test_an_admitted_version_is_explored_at_the_floor_where_its_routes_let_it() -> None:
    found = offer(known=(HOPED,))
    assert found.offered == pytest.approx({RAW: 0.95, VERSION: 0.05})
    assert {version: str(route) for version, route in found.routes.items()} == {VERSION: "short: helped"}
    assert found.rivals == [VERSION]
    assert offer(known=(HOPED,), query="big red mug").offered == {RAW: 1.0}, "nothing is known about long queries"
    assert offer(known=(HOPED,), epsilon=0.0).offered == {RAW: 1.0}
    withdrawn = msgspec.structs.replace(HOPED, status="withdrawn")
    assert offer(known=(withdrawn,)).offered == {RAW: 1.0}
    assert not may_serve(VERSION, ramp=None, routers={VERSION: Router(withdrawn)}, settings=ServeSettings())


def test_on_a_ramp_only_won_parts_are_served_and_nothing_is_interleaved() -> None:
    found = offer(ramp=RAMP, known=(WON,))
    assert (found.offered, found.ramping, found.rivals) == ({RAW: 0.75, VERSION: 0.25}, VERSION, [])
    assert offer(ramp=RAMP, known=(HOPED,)).offered == {RAW: 1.0}
    newcomer = routes({"short": ("helped", "helped")}, version=OTHER)
    assert set(offer(ramp=RAMP, known=(WON, newcomer)).offered) == {RAW, VERSION}, "one ramp at a time"


def test_after_a_ramp_the_next_version_is_explored_beside_the_one_that_serves() -> None:
    serves = msgspec.structs.replace(RAMP, version=OTHER, status="serves", share=1.0)
    old = routes({"short": ("helped", "helped")}, version=OTHER)
    assert offer(ramp=serves, known=(old,)).offered == {OTHER: 1.0}
    assert offer(ramp=serves, known=(old, HOPED)).offered == pytest.approx({OTHER: 0.95, VERSION: 0.05})
    taken_back = msgspec.structs.replace(RAMP, version=OTHER, status="rolled back", share=0.0)
    gone = msgspec.structs.replace(old, status="withdrawn")
    assert offer(ramp=taken_back, known=(gone, HOPED)).offered == pytest.approx({RAW: 0.95, VERSION: 0.05})


def test_where_raw_results_fill_the_list_a_version_below_them_is_no_choice() -> None:
    lower = routes({"short": ("below", "below")})
    assert offer(known=(lower,), size=10).offered == {RAW: 1.0}
    assert offer(known=(lower,), size=None).offered == {RAW: 1.0}, "words alone cannot stand below"
    found = offer(known=(lower,), size=20)
    assert (set(found.offered), found.action(VERSION).action) == ({RAW, VERSION}, "below")


def judged(helped: dict[str, list[str]], raw: dict[str, list[str]], right: dict[str, set[str]]) -> HeldOutRuns:
    def run(lists: dict[str, list[str]]) -> dict[str, dict[str, float]]:
        return {query: {name: -float(rank) for rank, name in enumerate(ids)} for query, ids in lists.items()}

    return HeldOutRuns(
        texts={query: f"{query} mug" for query in right},
        raw=run(raw),
        helped=run(helped),
        qrels={query: {**dict.fromkeys(raw[query], 0), **dict.fromkeys(names, 1)} for query, names in right.items()},
    )


def verdict(held: HeldOutRuns, **changes: Any) -> GateVerdict:
    given: dict[str, Any] = {"known": {"mug"}, "head": set(), "settings": SETTINGS, "ramp": RampSettings(), "now_ms": 7}
    return judge_version(VERSION, {JUDGED: held}, **(given | changes))


QUERIES = [f"q{number:02d}" for number in range(40)]
FOUND = {query: [f"{query}-{rank}" for rank in range(10)] for query in QUERIES}
RIGHT = {query: {f"{query}-{number % 4}", f"{query}-more"} for number, query in enumerate(QUERIES)}


def test_a_version_that_shows_more_documents_without_relevance_is_refused_with_figures() -> None:
    # It hacks a reward that counts documents: junk comes first, and the list is longer.
    junk = {query: [f"junk{rank}" for rank in range(100)] + found for query, found in FOUND.items()}
    found = verdict(judged(junk, FOUND, RIGHT))
    assert not found.admitted
    assert found.figures["helped_high"] < -0.1
    assert "held-out nDCG@10 -" in found.reason
    assert "ramp.held_out_loss_max" in found.reason


def test_a_version_that_finds_more_is_admitted_with_its_routes_and_their_evidence() -> None:
    better = {query: [f"{query}-more", *found] for query, found in FOUND.items()}
    found = verdict(judged(better, FOUND, RIGHT))
    assert found.admitted, found.reason
    assert found.routes.parts["short"].action == "helped"
    assert (found.figures["queries"], found.figures["served_low"] > 0) == (40.0, True)
    again = verdict(judged(better, FOUND, RIGHT))
    assert found.routes == again.routes, "the same queries give the same file"
    assert msgspec.json.decode(msgspec.json.encode(found.routes), type=Routes) == found.routes


def test_a_version_that_ranks_worse_but_finds_more_stands_below_the_first_raw_results() -> None:
    worse = {query: ["junk", *found, f"{query}-more"] for query, found in FOUND.items()}
    found = verdict(judged(worse, FOUND, RIGHT))
    assert found.routes.parts["short"].action == "below", found.reason
    assert found.figures["served"] == 0.0
    assert found.figures["served_gain_low"] > 0


def test_rankings_are_served_as_the_routes_say() -> None:
    queries = [Query(id="short", text="mug"), Query(id="long", text="a big red mug")]
    raw = {query.id: Ranking([f"r{rank}" for rank in range(12)], [1.0] * 12) for query in queries}
    helped = {query.id: Ranking(["h0", "r0"], [2.0, 1.0]) for query in queries}
    found = served_rankings(queries, raw, helped, helped, routes({"short": ("below", "helped")}))
    assert found["short"].ids == [*raw["short"].ids[:10], "h0", "r10"]
    assert found["long"] == raw["long"], "nothing is known about long queries"
    everywhere = routes({"short": ("helped", "helped"), "long": ("helped", "helped")})
    assert served_rankings(queries, raw, helped, helped, everywhere) == helped


def test_queries_that_training_asked_are_left_out() -> None:
    held = judged(FOUND, FOUND, RIGHT)
    assert len(without_trained(held, {"q00 mug", "q01 mug"}).texts) == 38
