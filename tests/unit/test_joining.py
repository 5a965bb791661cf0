"""The join of impressions and late actions: worked by hand, and against references that look at the whole log."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_env.feedback.attribution import DAY_MS, HOUR_MS, MINUTE_MS, JoinSettings
from search_env.feedback.joining import Joiner
from search_env.feedback.outcomes import (
    REASONS,
    Decided,
    JoinCounts,
    LeftOutAction,
    LeftOutImpression,
)
from search_env.feedback.snapshots import FeedbackError, decode_state, encode_state
from streams.errors import SettingsError
from streams.events import Position
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction

Event = Impression | UserAction
Record = tuple[Event, Position]
SMALL = JoinSettings(window_ms=10, lateness_ms=8, early_ms=2, memory_ms=20)
DAYS = JoinSettings()


def at(offset: int) -> Position:
    return Position(topic="run.clicks", partition=0, offset=offset)


def shows(name: str, at_ms: int, *documents: str, query: str = "lamp") -> Impression:
    shown = tuple(Shown(document_id=document, rank=rank) for rank, document in enumerate(documents or ("a", "b"), 1))
    return Impression(impression_id=name, query_id="q", query=query, shown=shown, at_ms=at_ms)


def clicks(name: str, impression: str, at_ms: int, document: str = "a", kind: str = "click") -> UserAction:
    return UserAction(action_id=name, impression_id=impression, kind=kind, document_id=document, at_ms=at_ms)


def logged(events: Iterable[Event]) -> list[Record]:
    return [(event, at(offset)) for offset, event in enumerate(events)]


def join(records: Iterable[Record], rules: JoinSettings, *, finish: bool = True) -> tuple[list[Decided], JoinCounts]:
    joiner = Joiner(rules)
    decided = [each for event, position in records for each in joiner.add(event, position)]
    return decided + (joiner.finish() if finish else []), joiner.counts()


def outcomes(decided: Iterable[Decided]) -> dict[str, list[str]]:
    """Return the ids of the actions in each final outcome; a second final outcome of an impression fails."""
    found: dict[str, list[str]] = {}
    for each in decided:
        if isinstance(each, ImpressionOutcome):
            assert each.final
            assert each.impression.impression_id not in found
            found[each.impression.impression_id] = [action.action_id for action in each.actions]
    return found


def reasons(decided: Iterable[Decided]) -> dict[str, str]:
    return {each.action.action_id: each.reason for each in decided if isinstance(each, LeftOutAction)}


def assert_every_record_is_counted(counts: JoinCounts) -> None:
    left_out = sum(counts.impressions_left_out.values())
    assert counts.impressions == counts.final + counts.open + counts.impressions_doubled + left_out
    left_out = sum(counts.actions_left_out.values())
    assert counts.actions == counts.counted + counts.waiting + counts.actions_doubled + left_out
    assert {*counts.impressions_left_out, *counts.actions_left_out} <= REASONS.keys()


# By hand, with a window of 10, a lateness of 8, a tolerance of 2 and a memory of 20.


def test_actions_in_the_window_count_in_the_order_of_their_times() -> None:
    decided, counts = join(
        logged([shows("i", 100), clicks("2", "i", 109, "b"), clicks("1", "i", 100), clicks("0", "i", 109)]), SMALL
    )
    assert outcomes(decided) == {"i": ["1", "0", "2"]}
    assert (counts.final, counts.counted, counts.open, counts.waiting) == (1, 3, 0, 0)


@pytest.mark.parametrize(
    ("at_ms", "document", "reason"),
    [
        (89, "a", "orphan"),
        (90, "a", "before_impression"),
        (97, "a", "before_impression"),
        (98, "a", ""),
        (109, "a", ""),
        (109, "z", "not_shown"),
        (97, "z", "before_impression"),
        (110, "a", "after_window"),
        (129, "z", "after_window"),
        (130, "a", "orphan"),
    ],
)
@pytest.mark.parametrize("first", ["impression", "action"])
def test_the_time_of_an_action_decides_whichever_comes_first(
    at_ms: int, document: str, reason: str, first: str
) -> None:
    events: list[Event] = [shows("i", 100), clicks("c", "i", at_ms, document)]
    rules = msgspec.structs.replace(SMALL, lateness_ms=100)
    decided, _ = join(logged(events if first == "impression" else events[::-1]), rules)
    assert outcomes(decided) == {"i": [] if reason else ["c"]}
    assert reasons(decided) == ({"c": reason} if reason else {})


def test_an_outcome_is_final_when_the_watermark_reaches_the_end_of_the_window_and_not_before() -> None:
    joiner = Joiner(SMALL)
    joiner.add(shows("i", 100), at(0))
    assert joiner.add(shows("other", 117), at(1)) == []
    assert joiner.watermark_ms == 109
    (decided,) = joiner.add(clicks("any", "unknown", 118), at(2))
    assert isinstance(decided, ImpressionOutcome)
    assert decided == ImpressionOutcome(impression=shows("i", 100), actions=(), final=True)


def test_an_action_after_the_final_outcome_is_too_late_and_kept_and_changes_nothing() -> None:
    late = clicks("late", "i", 105)
    joiner = Joiner(SMALL)
    joiner.add(shows("i", 100), at(0))
    assert len(joiner.add(clicks("any", "unknown", 118), at(1))) == 1
    assert joiner.add(late, at(2)) == [LeftOutAction(action=late, position=at(2), reason="too_late")]
    assert joiner.add(late, at(3)) == []
    assert joiner.counts().actions_doubled == 1
    assert outcomes(joiner.finish()) == {}
    assert_every_record_is_counted(joiner.counts())


def test_an_event_below_the_watermark_still_counts_while_its_outcome_is_open() -> None:
    decided, _ = join(logged([shows("i", 100), clicks("any", "unknown", 117), clicks("c", "i", 101)]), SMALL)
    assert outcomes(decided) == {"i": ["c"]}


def test_an_action_waits_for_its_impression_and_becomes_an_orphan_if_none_comes() -> None:
    joiner = Joiner(SMALL)
    orphan = clicks("c", "i", 100)
    joiner.add(orphan, at(0))
    assert joiner.add(shows("x", 118), at(1)) == []
    assert joiner.add(shows("y", 119), at(2)) == [LeftOutAction(action=orphan, position=at(0), reason="orphan")]


def test_an_impression_that_comes_after_its_window_is_final_at_once() -> None:
    joiner = Joiner(SMALL)
    joiner.add(clicks("c", "i", 105), at(0))
    joiner.add(shows("x", 121), at(1))
    assert joiner.watermark_ms == 113
    assert outcomes(joiner.add(shows("i", 101), at(2))) == {"i": ["c"]}
    assert joiner.add(shows("i", 101), at(3)) == []


def test_what_comes_after_its_impression_was_forgotten_is_kept_and_says_so() -> None:
    joiner = Joiner(SMALL)
    joiner.add(shows("i", 100), at(0))
    joiner.add(shows("x", 138), at(1))
    assert joiner.watermark_ms == 130  # The horizon is at 110, the end of the window of "i".
    again, click = shows("i", 100), clicks("c", "i", 105)
    assert joiner.add(again, at(2)) == [LeftOutImpression(impression=again, position=at(2), reason="forgotten")]
    assert joiner.add(click, at(3)) == [LeftOutAction(action=click, position=at(3), reason="forgotten")]
    assert joiner.counts().evicted == 1
    assert_every_record_is_counted(joiner.counts())


def test_of_copies_the_first_in_the_log_counts_in_whichever_order_they_come() -> None:
    records: list[Record] = [
        (shows("i", 100, "a", query="first"), at(0)),
        (shows("i", 100, "b", query="second"), at(1)),
        (clicks("c", "i", 101, "a"), at(2)),
        (clicks("c", "i", 101, "b"), at(3)),
        (clicks("d", "j", 102, "b"), at(4)),
        (clicks("d", "i", 102, "a"), at(5)),
    ]
    for order in (records, records[::-1]):
        decided, counts = join(order, SMALL)
        (final,) = (each for each in decided if isinstance(each, ImpressionOutcome))
        assert final.impression.query == "first"
        assert final.actions == (clicks("c", "i", 101, "a"),)
        assert reasons(decided) == {"d": "orphan"}
        assert (counts.impressions_doubled, counts.actions_doubled) == (1, 2)
        assert_every_record_is_counted(counts)


def test_an_earlier_copy_with_a_forgotten_time_does_not_replace_an_open_impression() -> None:
    joiner = Joiner(SMALL)
    joiner.add(shows("x", 147), at(0))
    joiner.add(shows("i", 130), at(2))
    assert joiner.add(shows("i", 100), at(1)) == []
    joiner.add(shows("i", 130), at(3))
    finals = [each.impression for each in joiner.finish() if isinstance(each, ImpressionOutcome)]
    assert finals == [shows("i", 130), shows("x", 147)]
    assert joiner.counts().impressions_doubled == 2


def test_a_copy_that_contradicts_and_comes_second_takes_its_action_away_from_the_provisional_outcome() -> None:
    joiner = Joiner(SMALL)
    joiner.add(shows("i", 100), at(0))
    joiner.add(clicks("c", "i", 101), at(2))
    assert [len(each.actions) for each in joiner.provisional()] == [1]
    joiner.add(clicks("c", "j", 101), at(1))
    assert joiner.provisional() == [ImpressionOutcome(impression=shows("i", 100), actions=(), final=False)]


def test_an_orphan_keeps_its_fate_when_its_impression_and_a_copy_of_it_come_later() -> None:
    joiner = Joiner(SMALL)
    joiner.add(clicks("c", "i", 100), at(0))
    assert reasons(joiner.add(shows("x", 138), at(1))) == {"c": "orphan"}
    assert joiner.watermark_ms == 130  # The horizon is at 110; the impression below ends at 111.
    assert outcomes(joiner.add(shows("i", 101), at(2))) == {"i": []}
    assert joiner.add(clicks("c", "i", 100), at(3)) == []
    assert joiner.counts().actions_doubled == 1


def test_only_an_action_before_the_horizon_is_forgotten() -> None:
    joiner = Joiner(SMALL)
    joiner.add(shows("x", 138), at(0))
    joiner.add(shows("y", 138), at(1))
    assert reasons(joiner.add(clicks("c", "i", 110), at(2))) == {"c": "orphan"}
    assert reasons(joiner.add(clicks("d", "i", 109), at(3))) == {"d": "forgotten"}


def test_an_event_ahead_of_its_record_or_without_a_time_moves_no_watermark() -> None:
    joiner = Joiner(SMALL)
    joiner.add(shows("i", 100), at(0), logged_ms=100)
    ahead = joiner.add(clicks("c", "i", 101 + HOUR_MS), at(1), logged_ms=100)
    timeless = joiner.add(clicks("d", "i", 0), at(2), logged_ms=100)
    impression = joiner.add(shows("j", 10**15), at(3), logged_ms=100)
    assert reasons(ahead + timeless) == {"c": "ahead", "d": "without_time"}
    assert [each.reason for each in impression if isinstance(each, LeftOutImpression)] == ["ahead"]
    assert reasons(joiner.add(clicks("f", "i", 10**13), at(5))) == {"f": "ahead"}
    assert joiner.watermark_ms == 92
    assert joiner.add(clicks("e", "i", 100 + HOUR_MS), at(4), logged_ms=100) != []
    assert_every_record_is_counted(joiner.counts())


def test_provisional_outcomes_are_those_that_changed_since_the_last_call() -> None:
    joiner = Joiner(SMALL)
    joiner.add(shows("i", 100), at(0))
    joiner.add(shows("j", 100), at(1))
    assert [each.impression.impression_id for each in joiner.provisional()] == ["i", "j"]
    joiner.add(clicks("c", "i", 101), at(2))
    assert joiner.provisional() == [
        ImpressionOutcome(impression=shows("i", 100), actions=(clicks("c", "i", 101),), final=False)
    ]
    joiner.add(clicks("c", "i", 101), at(3))
    joiner.add(clicks("d", "i", 101, "not shown"), at(4))
    joiner.add(clicks("e", "i", 99 - 2), at(5))
    assert joiner.provisional() == []
    joiner.add(clicks("f", "j", 101), at(6))
    joiner.add(clicks("any", "unknown", 500), at(7))
    assert joiner.provisional() == []  # Both are final now.


def test_memory_is_bounded_by_time_and_what_goes_is_counted() -> None:
    joiner = Joiner(SMALL)
    largest = 0
    for step in range(1, 2_000):
        joiner.add(shows(f"i{step}", step), at(2 * step))
        joiner.add(clicks(f"c{step}", f"i{step}", step), at(2 * step + 1))
        counts = joiner.counts()
        largest = max(largest, counts.open + counts.waiting + counts.remembered)
    span = SMALL.lateness_ms + SMALL.window_ms + SMALL.memory_ms + SMALL.early_ms + 1
    assert largest <= 2 * span
    assert counts.evicted == 2 * 1_999 - counts.open - counts.waiting - counts.remembered
    assert counts.evicted_early == counts.final_early == 0


def test_beyond_its_limit_memory_goes_early_but_no_impression_has_two_final_outcomes() -> None:
    rules = msgspec.structs.replace(DAYS, held_max=50)
    joiner = Joiner(rules)
    decided: list[Decided] = []
    for step in range(1_000):
        for copy in range(2):
            decided += joiner.add(shows(f"i{step // 2}", 1 + step // 2), at(4 * step + 2 * copy))
            decided += joiner.add(clicks(f"c{step}", f"i{step // 2}", 1 + step // 2), at(4 * step + 2 * copy + 1))
        counts = joiner.counts()
        assert counts.open + counts.waiting + counts.remembered <= 50
        assert_every_record_is_counted(counts)
    decided += joiner.finish()
    assert outcomes(decided).keys() == {f"i{number}" for number in range(500)}
    counts = joiner.counts()
    assert counts.final_early > 400
    assert counts.evicted_early > 400
    assert_every_record_is_counted(counts)


def test_lengths_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(SettingsError, match="early_ms: expected at most window_ms"):
        JoinSettings(window_ms=10, early_ms=11, memory_ms=10)
    with pytest.raises(SettingsError, match="memory_ms: expected at least window_ms"):
        JoinSettings(window_ms=10, early_ms=1, memory_ms=9)
    with pytest.raises(SettingsError, match="lateness_ms: expected at least 0"):
        JoinSettings(lateness_ms=-1)


# Against references.


def by_sorting(records: Sequence[Record], rules: JoinSettings) -> list[Decided]:
    """Join a whole log by hand: the first copy of each id, and every action against every impression."""
    impressions: dict[str, Impression] = {}
    actions: dict[str, Record] = {}
    for event, position in sorted(records, key=lambda record: record[1]):
        if isinstance(event, Impression):
            impressions.setdefault(event.impression_id, event)
        else:
            actions.setdefault(event.action_id, (event, position))
    found: list[tuple[tuple[int, int, str, int, int, str], Decided]] = []
    counted: dict[str, list[UserAction]] = {name: [] for name in impressions}
    for action, position in actions.values():
        assert isinstance(action, UserAction)
        reason, decided_at, sort = "orphan", action.at_ms + rules.window_ms + 1, (1, action.action_id, 0, 0, "")
        for impression in impressions.values():
            delay = action.at_ms - impression.at_ms
            if impression.impression_id != action.impression_id or not (
                -rules.window_ms <= delay < rules.window_ms + rules.memory_ms
            ):
                continue
            if delay >= rules.window_ms:
                reason, decided_at = "after_window", action.at_ms + 1
                continue
            decided_at = impression.at_ms + rules.window_ms
            sort = (0, impression.impression_id, 1, action.at_ms, action.action_id)
            if delay < -rules.early_ms:
                reason = "before_impression"
            elif action.document_id not in [shown.document_id for shown in impression.shown]:
                reason = "not_shown"
            else:
                reason = ""
                counted[impression.impression_id].append(action)
        if reason:
            found.append(((decided_at, *sort), LeftOutAction(action=action, position=position, reason=reason)))
    for name, impression in impressions.items():
        in_order = tuple(sorted(counted[name], key=lambda action: (action.at_ms, action.action_id)))
        outcome = ImpressionOutcome(impression=impression, actions=in_order, final=True)
        found.append(((impression.at_ms + rules.window_ms, 0, name, 0, 0, ""), outcome))
    return [decided for _, decided in sorted(found, key=lambda each: each[0])]


def by_arrival(records: Sequence[Record], rules: JoinSettings) -> dict[str, list[str]]:
    """Return the final outcomes for any order, without a limit on memory: look through all that came up to each end."""
    found = {}
    for name in {event.impression_id for event, _ in records if isinstance(event, Impression)}:
        came = min(
            step for step, (event, _) in enumerate(records) if isinstance(event, Impression) and _id(event) == name
        )
        impression = records[came][0]
        end = impression.at_ms + rules.window_ms
        watermarks = [max(e.at_ms for e, _ in records[: step + 1]) - rules.lateness_ms for step in range(len(records))]
        closed = next((step for step in range(came, len(records)) if watermarks[step] >= end), len(records))
        counted = {
            (event.at_ms, event.action_id)
            for step, (event, _) in enumerate(records[: closed + 1])
            if isinstance(event, UserAction)
            and event.impression_id == name
            # An action that waited for more than a window before its impression came is an orphan already.
            and (step > came or max(watermarks[step:came]) <= event.at_ms + rules.window_ms)
            and impression.at_ms - rules.early_ms <= event.at_ms < end
            and isinstance(impression, Impression)
            and event.document_id in [shown.document_id for shown in impression.shown]
        }
        found[name] = [action_id for _, action_id in sorted(counted)]
    return found


def _id(event: Event) -> str:
    return event.impression_id if isinstance(event, Impression) else event.action_id


def within_lateness(records: Sequence[Record], delays: Sequence[int]) -> list[Record]:
    """Return the records as they come if each is delayed by at most the lateness: none is below the watermark then."""
    order = sorted(range(len(records)), key=lambda number: (records[number][0].at_ms + delays[number], number))
    return [records[number] for number in order]


@st.composite
def small_logs(draw: st.DrawFn) -> list[Record]:
    """A log of a few ids at times so close that every boundary occurs; copies agree about the time alone."""
    impression_times = draw(st.lists(st.integers(30, 90), min_size=1, max_size=4))
    action_times = draw(st.lists(st.integers(1, 130), max_size=8))
    picks: list[Callable[[], Event]] = []
    for number, time in enumerate(impression_times):
        picks.append(
            lambda number=number, time=time: shows(f"i{number}", time, draw(st.sampled_from("ab")), query=draw(QUERIES))
        )
    for number, time in enumerate(action_times):
        picks.append(
            lambda number=number, time=time: clicks(
                f"c{number}", f"i{draw(st.integers(0, 4))}", time, draw(st.sampled_from("ab"))
            )
        )
    events = [pick() for pick in picks for _ in range(draw(st.integers(1, 3)))]
    return logged(draw(st.permutations(events)))


QUERIES = st.sampled_from(["lamp", "chair"])


@settings(max_examples=300, deadline=None)
@given(small_logs(), st.data())
def test_any_order_within_the_lateness_gives_the_decisions_of_the_ordered_log(
    records: list[Record], data: st.DataObject
) -> None:
    delay = st.integers(0, SMALL.lateness_ms)
    delays = data.draw(st.lists(delay, min_size=len(records), max_size=len(records)))
    decided, counts = join(within_lateness(records, delays), SMALL)
    assert decided == by_sorting(records, SMALL)
    assert counts.impressions_doubled + counts.actions_doubled == len(records) - len({_id(e) for e, _ in records})
    assert_every_record_is_counted(counts)


@settings(max_examples=200, deadline=None)
@given(small_logs(), st.data())
def test_every_permutation_is_the_ordered_log_if_the_lateness_covers_it(
    records: list[Record], data: st.DataObject
) -> None:
    rules = msgspec.structs.replace(SMALL, lateness_ms=130)
    decided, _ = join(data.draw(st.permutations(records)), rules)
    assert decided == by_sorting(records, rules)


@settings(max_examples=200, deadline=None)
@given(small_logs(), st.data())
def test_in_any_order_at_all_no_event_is_lost_and_each_decision_is_made_once(
    records: list[Record], data: st.DataObject
) -> None:
    first = {_id(event): (event, position) for event, position in reversed(records)}
    came = data.draw(st.permutations(list(first.values())))
    rules = msgspec.structs.replace(SMALL, memory_ms=10_000, lateness_ms=data.draw(st.integers(0, 30)))
    decided, counts = join(came, rules)
    assert outcomes(decided) == by_arrival(came, rules)
    counted = [name for names in outcomes(decided).values() for name in names]
    fates = Counter([*counted, *reasons(decided)])
    assert fates == Counter(_id(event) for event, _ in came if isinstance(event, UserAction))
    assert_every_record_is_counted(counts)


@settings(max_examples=100, deadline=None)
@given(small_logs(), st.data())
def test_a_join_restored_at_any_position_goes_on_as_if_it_had_not_stopped(
    records: list[Record], data: st.DataObject
) -> None:
    came = data.draw(st.permutations(records))
    held_max = data.draw(st.sampled_from([3, 8, 1_000]))
    joiner = Joiner(msgspec.structs.replace(SMALL, held_max=held_max))
    snapshots, decided = [joiner.snapshot()], []
    for event, position in came:
        decided.append(joiner.add(event, position))
        snapshots.append(joiner.snapshot())
    last, changed, end = joiner.counts(), joiner.provisional(), joiner.finish()
    for position, snapshot in enumerate(snapshots):
        again = Joiner.restore(snapshot)
        assert again.snapshot() == snapshot
        assert [again.add(*record) for record in came[position:]] == decided[position:]
        assert again.counts() == last
        assert again.provisional() == changed
        assert again.finish() == end
        assert again.snapshot() == joiner.snapshot()


def test_a_snapshot_of_another_version_or_with_a_changed_byte_is_refused() -> None:
    joiner = Joiner(SMALL)
    joiner.add(shows("i", 100), at(0))
    snapshot = joiner.snapshot()
    for number in range(len(snapshot)):
        changed = bytearray(snapshot)
        changed[number] ^= 1
        with pytest.raises(FeedbackError, match="SHA-256 differs"):
            Joiner.restore(bytes(changed))
    for damaged in (b"", snapshot[:-1], snapshot + b"\0"):
        with pytest.raises(FeedbackError, match="SHA-256 differs"):
            Joiner.restore(damaged)

    class JoinState2(msgspec.Struct, tag="join/2", tag_field="state"):
        pass

    with pytest.raises(FeedbackError, match=r"expected a snapshot of version 'join/1', got another .*join/2"):
        Joiner.restore(encode_state(JoinState2()))  # type: ignore[arg-type]
    assert encode_state(decode_state(snapshot)) == snapshot


def traffic(impressions: int, seed: int) -> list[Record]:
    """Return days of traffic: several actions an impression, orphans, copies, wrong clocks and wrong documents."""
    source = random.Random(seed)
    events: list[Event] = []
    for number in range(impressions):
        time = 10**12 + source.randrange(5 * DAY_MS)
        impression = shows(f"i{number}", time, *(f"d{source.randrange(50)}" for _ in range(10)))
        if source.random() < 0.95:
            events.append(impression)
        for action in range(source.choice([0, 0, 0, 1, 1, 2, 4])):
            minute, late = source.randrange(-2 * MINUTE_MS, MINUTE_MS), source.randrange(3 * DAY_MS)
            delay = source.choice([source.randrange(HOUR_MS), minute, late])
            document = source.choice([*(shown.document_id for shown in impression.shown), "other"])
            events.append(clicks(f"c{number}-{action}", f"i{number}", time + delay, document))
    events += source.choices(events, k=len(events) // 10)
    source.shuffle(events)
    return logged(events)


def test_days_of_traffic_each_event_up_to_24_hours_late_are_the_ordered_log() -> None:
    records = traffic(2_000, seed=1)
    source = random.Random(2)
    late = within_lateness(records, [source.randrange(DAYS.lateness_ms + 1) for _ in records])
    decided, counts = join(late, DAYS)
    assert decided == sorted_join(records, DAYS)
    assert counts.final > 1_800
    assert counts.counted > 1_000
    assert counts.actions_left_out.keys() == {"orphan", "not_shown", "before_impression", "after_window"}
    assert_every_record_is_counted(counts)


def sorted_join(records: Sequence[Record], rules: JoinSettings) -> list[Decided]:
    """Return `by_sorting` of each impression id by itself, because it looks at all pairs."""
    by_impression: dict[str, list[Record]] = {}
    for record in records:
        by_impression.setdefault(record[0].impression_id, []).append(record)
    found = [each for group in by_impression.values() for each in by_sorting(group, rules)]
    finals = [each for each in found if isinstance(each, ImpressionOutcome)]
    times = {each.impression.impression_id: each.impression.at_ms for each in finals}

    def order(each: Decided) -> tuple[int, int, str, int, int, str]:
        if isinstance(each, ImpressionOutcome):
            return each.impression.at_ms + rules.window_ms, 0, each.impression.impression_id, 0, 0, ""
        assert isinstance(each, LeftOutAction)
        action = each.action
        if each.reason in ("not_shown", "before_impression"):
            name = action.impression_id
            return times[name] + rules.window_ms, 0, name, 1, action.at_ms, action.action_id
        wait = 0 if each.reason == "after_window" else rules.window_ms
        return action.at_ms + wait + 1, 1, action.action_id, 0, 0, ""

    return sorted(found, key=order)


def test_days_of_traffic_beyond_the_lateness_lose_nothing_and_change_no_final_outcome() -> None:
    records = traffic(2_000, seed=3)
    source = random.Random(4)
    delays = [source.randrange(6 * DAY_MS) if source.random() < 0.3 else 0 for _ in records]
    came = within_lateness(records, delays)
    decided, counts = join(came, DAYS)
    in_time = outcomes(sorted_join(records, DAYS))
    found, left_out = outcomes(decided), reasons(decided)
    assert found.keys() == in_time.keys()  # The memory of 7 days covers every delay.
    for name, actions in found.items():
        assert set(actions) <= set(in_time[name])
        assert {left_out[missing] for missing in set(in_time[name]) - set(actions)} <= {"too_late", "orphan"}
    assert counts.actions_left_out["too_late"] > 50
    assert_every_record_is_counted(counts)


def test_a_worker_that_is_killed_often_and_reads_on_from_its_snapshots_gives_the_same_outcomes() -> None:
    records = traffic(300, seed=5)
    source = random.Random(6)
    came = within_lateness(records, [source.randrange(2 * DAY_MS) for _ in records])
    whole, _ = join(came, DAYS)
    joiner, decided, kept, snapshot = Joiner(), [], 0, Joiner().snapshot()
    position = 0
    while position < len(came):
        if source.random() < 0.1:  # Killed: what came after the snapshot is gone, decisions included.
            joiner, position = Joiner.restore(snapshot), kept
            decided = decided[: len([each for each in decided if each[0] < kept])]
            continue
        decided += [(position, each) for each in joiner.add(*came[position])]
        position += 1
        if source.random() < 0.3:
            snapshot, kept = joiner.snapshot(), position
    assert [each for _, each in decided] + joiner.finish() == whole
