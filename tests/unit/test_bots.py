"""Bots: their outcomes carry a mark, people's do not, and the order of arrival changes no verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_env.feedback.attribution import DAY_MS, HOUR_MS, JoinSettings
from search_env.feedback.bots import BOT_REASONS, BotSettings, client_of
from search_env.feedback.joining import Joiner
from streams.events import Position
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction

NOON = 10**12 // HOUR_MS * HOUR_MS
RULES = JoinSettings()


def shows(name: str, at_ms: int, *, client: str = "c", session: str = "", documents: int = 10) -> Impression:
    shown = tuple(Shown(document_id=f"d{rank}", rank=rank) for rank in range(1, documents + 1))
    return Impression(
        impression_id=name, query_id="q", query="lamp", client=client, session=session, shown=shown, at_ms=at_ms
    )


def does(impression: str, rank: int, at_ms: int, kind: str = "click") -> UserAction:
    return UserAction(
        action_id=f"{impression}/{kind}/{rank}/{at_ms}",
        impression_id=impression,
        kind=kind,
        document_id=f"d{rank}",
        at_ms=at_ms,
    )


def marks(events: Sequence[Impression | UserAction], rules: JoinSettings = RULES) -> dict[str, str]:
    """Return the mark of each impression's final outcome; events come as they are given."""
    joiner = Joiner(rules)
    decided = [
        each
        for offset, event in enumerate(events)
        for each in joiner.add(event, Position(topic="t", partition=0, offset=offset))
    ]
    found = [each for each in decided + joiner.finish() if isinstance(each, ImpressionOutcome)]
    counts = joiner.counts()
    assert counts.bots == dict(sorted(Counter(each.bot for each in found if each.bot).items()))
    assert counts.bots.keys() <= BOT_REASONS.keys()
    assert counts.actions == counts.counted + counts.actions_doubled + sum(counts.actions_left_out.values())
    return {each.impression.impression_id: each.bot or "" for each in found}


def with_bots(**limits: int | float) -> JoinSettings:
    return msgspec.structs.replace(RULES, bots=BotSettings(**limits))  # type: ignore[arg-type]


def test_a_client_beyond_its_impressions_is_a_bot_in_that_span_alone_and_others_are_not() -> None:
    rules = with_bots(impressions_max=3)
    crowd = [shows(f"i{n}", NOON + n) for n in range(4)] + [shows("other", NOON, client="d")]
    found = marks([*crowd, shows("later", NOON + HOUR_MS)], rules)
    assert found == {f"i{n}": "many_impressions" for n in range(4)} | {"other": "", "later": ""}
    assert set(marks(crowd[:3], rules).values()) == {""}
    # Without a client, the session counts; without both, nobody does.
    assert set(marks([shows(f"i{n}", NOON + n, client="", session="s") for n in range(4)], rules).values()) == {
        "many_impressions"
    }
    assert set(marks([shows(f"i{n}", NOON + n, client="") for n in range(4)], rules).values()) == {""}


def test_a_client_beyond_its_actions_is_a_bot_though_they_lie_on_several_impressions() -> None:
    rules = with_bots(actions_max=5)
    seen = [shows(f"i{n}", NOON + n, documents=30) for n in range(3)]
    acts = [does(f"i{n}", rank, NOON + 1_000 * rank) for n in range(3) for rank in (2, 3)]
    assert set(marks([*seen, *acts], rules).values()) == {"many_actions"}
    assert set(marks([*seen, *acts[:5]], rules).values()) == {""}
    # What was not shown was tried all the same.
    elsewhere = [does("i0", 90 + n, NOON + 1_000 * n) for n in range(6)]
    assert marks([*seen, *elsewhere], rules)["i2"] == "many_actions"


def test_clicking_everything_is_a_bots_on_one_list_and_over_many_short_ones() -> None:
    everything = [does("i", rank, NOON + 5_000 * rank) for rank in range(1, 10)]
    assert marks([shows("i", NOON), *everything]) == {"i": "everything"}
    assert marks([shows("i", NOON), *everything[:-1]]) == {"i": ""}
    assert marks([shows("i", NOON, documents=8), *everything[:8]]) == {"i": ""}, "a person may open all of a few"
    short = [shows(f"i{n}", NOON + n, documents=3) for n in range(4)]
    acts = [does(f"i{n}", rank, NOON + 5_000 * (3 * n + rank)) for n in range(4) for rank in (1, 2, 3)]
    assert set(marks([*short, *acts]).values()) == {"everything"}
    # The same document again is no further one: a person clicks, puts it into the basket, and buys it.
    buys = [does("i", 1, NOON + 5_000 * n, kind) for n, kind in enumerate(("click", "cart", "buy") * 4, start=1)]
    assert marks([shows("i", NOON), *buys]) == {"i": ""}


@pytest.mark.parametrize(
    ("times", "kind", "mark"),
    [
        ([1_001, 1_050, 1_090], "click", "too_fast"),
        ([1_001, 1_050, 9_000], "click", ""),  # One pair may be an accident.
        ([1_001, 1_101, 1_201], "click", ""),
        ([1_001, 1_001, 1_001], "purchase", ""),  # A basket is bought at once.
        ([2_000, 2_000, 2_000], "click", ""),  # A log in whole seconds.
        ([0, 0, 0], "click", ""),  # A log without times.
    ],
)
def test_clicks_faster_than_a_persons(times: list[int], kind: str, mark: str) -> None:
    acts = [does("i", rank, NOON + time, kind) for rank, time in enumerate(times, start=1)]
    assert marks([shows("i", NOON, client=""), *acts]) == {"i": mark}


def test_a_limit_of_zero_is_no_limit() -> None:
    rules = with_bots(impressions_max=0, actions_max=0, everything_share=0, dwell_ms=0)
    seen = [shows(f"i{n}", NOON) for n in range(2_000)]
    acts = [does("i0", rank, NOON + rank) for rank in range(1, 11)]
    assert set(marks([*seen, *acts], rules).values()) == {""}


# Against a reference that looks at the whole log at once.

TINY = JoinSettings(
    window_ms=20,
    lateness_ms=200,
    early_ms=2,
    memory_ms=20,
    bots=BotSettings(
        window_ms=7, impressions_max=2, actions_max=3, everything_min=3, everything_share=0.6, dwell_ms=2, fast_max=1
    ),
)


@st.composite
def logs(draw: st.DrawFn) -> list[Impression | UserAction]:
    """Up to eight impressions of two clients, actions around them, and copies that agree."""
    impressions = [
        shows(f"i{n}", draw(st.integers(30, 60)), client=draw(st.sampled_from(["", "c", "d"])), documents=3)
        for n in range(draw(st.integers(1, 8)))
    ]
    actions = [
        msgspec.structs.replace(
            does(f"i{draw(st.integers(0, 8))}", draw(st.integers(1, 4)), draw(st.integers(25, 90))), action_id=f"a{n}"
        )
        for n in range(draw(st.integers(0, 14)))
    ]
    events: list[Impression | UserAction] = [*impressions, *actions]
    return events + [draw(st.sampled_from(events)) for _ in range(draw(st.integers(0, 4)))]


def by_looking(events: Sequence[Impression | UserAction], rules: JoinSettings) -> dict[str, str]:
    """Judge each impression by filters over all events; the rules stand here once more, in plain words."""
    bots = rules.bots
    impressions = {each.impression_id: each for each in events if isinstance(each, Impression)}
    actions = {each.action_id: each for each in events if isinstance(each, UserAction)}
    inside = [
        (seen, each)
        for each in actions.values()
        if (seen := impressions.get(each.impression_id)) is not None
        and -rules.early_ms <= each.at_ms - seen.at_ms < rules.window_ms
    ]

    def span(at_ms: int) -> int:
        return at_ms // bots.window_ms

    def everything(shown: int, touched: int) -> bool:
        return shown >= bots.everything_min and touched >= bots.everything_share * shown

    def judge(one: Impression) -> str:
        documents = {each.document_id for each in one.shown}
        own = sorted(
            (each for seen, each in inside if seen == one and each.document_id in documents),
            key=lambda each: (each.at_ms, each.action_id),
        )
        if one.client:
            here, mine = span(one.at_ms), client_of(one)
            seen_here = [each for each in impressions.values() if client_of(each) == mine and span(each.at_ms) == here]
            done_here = [(seen, each) for seen, each in inside if client_of(seen) == mine and span(each.at_ms) == here]
            touched = {
                (seen.impression_id, each.document_id)
                for seen, each in done_here
                if span(seen.at_ms) == here and each.document_id in {shown.document_id for shown in seen.shown}
            }
            if len(seen_here) > bots.impressions_max:
                return "many_impressions"
            if len(done_here) > bots.actions_max:
                return "many_actions"
            if everything(sum(len(each.shown) for each in seen_here), len(touched)):
                return "everything"
        if everything(len(documents), len({each.document_id for each in own})):
            return "everything"
        timed = [each for each in own if each.at_ms != one.at_ms]
        fast = [
            1
            for left, right in pairwise(timed)
            if right.at_ms - left.at_ms < bots.dwell_ms and left.document_id != right.document_id
        ]
        return "too_fast" if len(fast) > bots.fast_max else ""

    return {name: judge(one) for name, one in impressions.items()}


@settings(max_examples=400, deadline=None)
@given(logs(), st.data())
def test_any_order_within_the_lateness_gives_the_verdicts_of_the_whole_log(
    events: list[Impression | UserAction], data: st.DataObject
) -> None:
    rules = msgspec.structs.replace(TINY, lateness_ms=data.draw(st.sampled_from([0, 5, 200])))
    delays = data.draw(st.lists(st.integers(0, rules.lateness_ms), min_size=len(events), max_size=len(events)))
    came = sorted(range(len(events)), key=lambda n: events[n].at_ms + delays[n])
    assert marks([events[n] for n in came], rules) == by_looking(events, rules)


@settings(max_examples=100, deadline=None)
@given(logs(), st.data())
def test_a_join_that_is_restored_judges_as_if_it_had_not_stopped(
    events: list[Impression | UserAction], data: st.DataObject
) -> None:
    came = data.draw(st.permutations(events))
    cut = data.draw(st.integers(0, len(came)))
    joiner = Joiner(TINY)
    places = [Position(topic="t", partition=0, offset=offset) for offset in range(len(came))]
    decided = [each for event, place in zip(came[:cut], places, strict=False) for each in joiner.add(event, place)]
    joiner = Joiner.restore(joiner.snapshot())
    decided += [
        each for event, place in zip(came[cut:], places[cut:], strict=True) for each in joiner.add(event, place)
    ]
    found = [each for each in decided + joiner.finish() if isinstance(each, ImpressionOutcome)]
    assert {each.impression.impression_id: each.bot or "" for each in found} == marks(came, TINY)


def test_the_tallies_of_past_spans_are_dropped() -> None:
    joiner, sizes = Joiner(TINY), []
    for step in range(1, 3_000):
        joiner.add(shows(f"i{step}", step, client=f"c{step}"), Position(topic="t", partition=0, offset=step))
        sizes.append(len(joiner._clients.kept()))
    span = TINY.lateness_ms + TINY.window_ms + TINY.bots.window_ms
    assert max(sizes) <= span + TINY.bots.window_ms
    assert sizes[-1] > 0


def test_a_day_long_span_is_cut_to_what_is_known_when_an_outcome_is_final() -> None:
    rules = with_bots(window_ms=DAY_MS, impressions_max=1)
    assert marks([shows("a", NOON), shows("b", NOON + 1)], rules) == {"a": "many_impressions", "b": "many_impressions"}


def test_of_contradicting_copies_the_first_in_the_log_counts_for_its_client_in_either_order() -> None:
    rules = with_bots(impressions_max=1, actions_max=1)
    first, second = shows("i", NOON, client="c"), shows("i", NOON, client="d")
    others = [shows("c1", NOON, client="c"), shows("d1", NOON, client="d")]
    acts = [does("i", 1, NOON + 500), does("i", 2, NOON + 5_000)]
    records = [(first, 0), (second, 1), (others[0], 2), (others[1], 3), (acts[0], 4), (acts[1], 5)]
    for order in (records, records[::-1], [records[n] for n in (1, 4, 0, 2, 5, 3)]):
        joiner = Joiner(rules)
        for event, offset in order:
            joiner.add(event, Position(topic="t", partition=0, offset=offset))
        finals = [each for each in joiner.finish() if isinstance(each, ImpressionOutcome)]
        found = {each.impression.impression_id: each.bot or "" for each in finals}
        assert found == {"i": "many_impressions", "c1": "many_impressions", "d1": ""}, order
