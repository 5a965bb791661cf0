"""The monitor's windows, from pages worked by hand and in every order that a log can be read in."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.monitoring.agents import publish
from storage.monitor.groups import REWARD_MAX
from storage.monitor.windows import MonitorSettings, Windows
from streams.codec import decode, decode_window, encode_event
from streams.events import DeadLetter, MonitorState, Outcome, Position, Reward, StageWindow, VersionWindow, WindowEvent
from streams.records import Received
from tests.monitored_log import POISON, messy_log
from tests.stored_events import RUN, hits, policy, raw_record, record, reward, update

WINDOWS = MonitorSettings(window_seconds=60, late_seconds=3600)
NOW_MS = 1_800_000_000_000
T = 1_700_000_040_000  # The beginning of a minute.


def fold(
    records: Iterable[Received], *, monitor: MonitorSettings = WINDOWS, now_ms: int = NOW_MS, every: int = 10**9
) -> tuple[dict[str, WindowEvent], Windows]:
    """Fold records, publishing after every `every` of them; return what was published last, and the tables."""
    windows = Windows(RUN, monitor, ends={})
    published: dict[str, WindowEvent] = {}

    def publish() -> None:
        for key, event in windows.changes().items():
            published.pop(key, None)
            if event is not None:
                published[key] = decode_window(encode_event(event))

    for number, item in enumerate(records, start=1):
        windows.add(item.position, item.value, timestamp_ms=item.timestamp_ms, now_ms=now_ms)
        if number % every == 0:
            publish()
    publish()
    return published, windows


def version_windows(published: dict[str, WindowEvent]) -> list[VersionWindow]:
    return [event for _, event in sorted(published.items()) if isinstance(event, VersionWindow)]


def state(published: dict[str, WindowEvent]) -> MonitorState:
    found = published["state"]
    assert isinstance(found, MonitorState)
    return found


def scored(number: int, rewards: list[float | None], *, at_ms: int = T, step: int = 0, **outcome: object) -> Reward:
    """A group with these rewards; None is a candidate that could not be scored."""
    base = reward(number, step=step)
    outcomes = tuple(
        Outcome(
            status="failed" if value is None else "scored",
            valid=True,
            reward=value,
            expansions=("a",),
            hits=hits(random.Random(number)),
        )
        for value in rewards
    )
    outcomes = tuple(msgspec.structs.replace(item, **outcome) for item in outcomes)
    return msgspec.structs.replace(base, outcomes=outcomes, made_at_ms=at_ms)


def test_a_page_worked_by_hand() -> None:
    records = [
        record(scored(0, [0.0, 1.0]), 0),  # mean .5, std .5
        record(scored(1, [0.2, 0.2, 0.2]), 1),  # mean .2, std 0, without spread
        record(scored(2, [None, 0.9]), 2),  # mean .9, std 0; of one scored candidate no spread is said
        record(scored(3, [None, None]), 3),  # counts as a group, and in no mean
        record(scored(4, [0.4, 0.8], at_ms=T + 60_000), 4),  # the next window
        record(update(1, [0, 1]), 0),  # from step 0 to 1: two groups, no staleness
        record(update(3, [2, 4], parent=policy(2)), 1),  # two steps behind
    ]
    first, second = version_windows(fold(records)[0])
    assert (first.start_ms, first.end_ms, first.closed) == (T, T + 60_000, False)
    assert (first.groups, first.measured, first.flat) == (4, 3, 1)
    assert (first.candidates, first.scored, first.failed) == (9, 6, 3)
    assert first.reward_mean == pytest.approx((0.5 + 0.2 + 0.9) / 3)
    assert first.reward_std == pytest.approx(0.5 / 3)
    assert (first.fates, first.staleness) == ({"trained": 3}, {0: 2, 2: 1})
    assert (second.groups, second.reward_mean, second.staleness) == (1, pytest.approx(0.6), {2: 1})


def test_a_valid_answer_without_effect_is_counted_and_an_invalid_one_is_not_valid() -> None:
    plain, same, empty = scored(0, [0.1, 0.2]), scored(1, [0.1, 0.2]), scored(2, [0.1, 0.2], expansions=())
    same = msgspec.structs.replace(same, raw_hits=same.outcomes[0].hits)
    invalid = scored(3, [0.0, 0.0], valid=False, expansions=(), hits=())
    records = [record(event, offset) for offset, event in enumerate((plain, same, empty, invalid))]
    (window,) = version_windows(fold(records)[0])
    assert (window.scored, window.valid, window.unchanged) == (8, 6, 4)


def test_of_two_records_for_a_group_the_first_in_the_log_counts_whichever_is_read_first() -> None:
    first = scored(0, [0.0, 1.0])
    redone = msgspec.structs.replace(
        scored(0, [1.0, 1.0], at_ms=T + 120_000), source=msgspec.structs.replace(first.source, offset=9)
    )
    forward = [record(first, 0), record(redone, 1)]
    for records, duplicates in ((forward, 1), (forward[::-1], 0), ([*forward, *forward], 1)):
        published, _ = fold(records, every=1)  # Offset 0 after offset 1 is no new record, so no counter has it.
        (window,) = version_windows(published)
        assert (window.start_ms, window.reward_mean) == (T, 0.5)
        assert state(published).duplicates == duplicates


def test_a_window_closes_after_the_time_for_what_is_late_and_what_comes_then_changes_nothing() -> None:
    monitor = MonitorSettings(window_seconds=60, late_seconds=120)
    on_time = [record(scored(0, [0.5, 0.5]), 0), record(scored(1, [0.5, 0.5], at_ms=T + 179_999), 1)]
    published, windows = fold(on_time, monitor=monitor)
    assert [window.closed for window in version_windows(published)] == [False, False]
    more = [
        record(scored(2, [0.1, 0.1], at_ms=T + 1), 2),  # late, but its window is still open
        record(scored(3, [0.5, 0.5], at_ms=T + 180_000), 3),  # closes the first window
        record(scored(4, [0.9, 0.9], at_ms=T + 2), 4),
        record(update(1, [0, 1]), 0),
    ]
    published, _ = fold([*on_time, *more], monitor=monitor, every=1)
    first, *_ = version_windows(published)
    assert (first.groups, first.reward_mean, first.closed) == (2, pytest.approx(0.3), True)
    assert state(published).late == 2  # Group 4, and what the update did with group 0.
    assert windows.state().late == 0


def test_a_record_from_the_future_closes_no_window() -> None:
    records = [record(scored(0, [0.5, 0.5]), 0), record(scored(1, [0.5, 0.5], at_ms=T + 10**12), 1)]
    published, _ = fold(records, now_ms=T + 1000)
    assert [window.closed for window in version_windows(published)] == [False, False]


def test_while_catching_up_the_partition_that_is_furthest_behind_tells_the_time() -> None:
    ends = {("rewards", 0): 2, ("rewards", 1): 2, ("updates", 0): 1}
    windows = Windows(RUN, MonitorSettings(window_seconds=60, late_seconds=0), ends=ends)

    def add(item: Received) -> None:
        windows.add(item.position, item.value, timestamp_ms=item.timestamp_ms, now_ms=NOW_MS)

    add(record(scored(0, [0.5, 0.5]), 0))
    add(record(scored(1, [0.5, 0.5], at_ms=T + 10_000_000), 1))
    assert not any(isinstance(e, VersionWindow) and e.closed for e in windows.changes().values())
    add(record(scored(2, [0.5, 0.5], at_ms=T + 1), 0, partition=1))
    add(record(scored(3, [0.5, 0.5], at_ms=T + 9_000_000), 1, partition=1))
    assert not any(isinstance(e, VersionWindow) and e.closed for e in windows.changes().values())
    add(record(update(1, [0, 2]), 0))
    closed = [e for e in windows.changes().values() if isinstance(e, VersionWindow) and e.closed]
    assert [(e.groups, e.staleness) for e in closed if e.start_ms == T] == [(2, {0: 2})]
    assert windows.state().late == 0


def test_while_catching_up_only_whole_windows_are_published() -> None:
    windows = Windows(RUN, MonitorSettings(window_seconds=60, late_seconds=0), ends={("rewards", 0): 4})
    items = [record(scored(n, [0.1, 0.2], at_ms=T + n * 30_000), n) for n in range(4)]
    shown = []
    for item in items:
        windows.add(item.position, item.value, timestamp_ms=item.timestamp_ms, now_ms=NOW_MS)
        found = [e for e in windows.changes().values() if isinstance(e, VersionWindow)]
        shown.append([(e.start_ms, e.groups, e.closed) for e in found])
    assert shown == [[], [], [(T, 2, True)], [(T + 60_000, 2, False)]]


def test_a_window_that_held_more_before_retention_took_them_stays_as_it_was() -> None:
    def published(truncated: bool, *numbers: int) -> dict[bytes, bytes]:
        windows = Windows(RUN, WINDOWS, ends={})
        for number in numbers:
            item = record(scored(number, [0.1, 0.2]), number)
            windows.add(item.position, item.value, timestamp_ms=0, now_ms=NOW_MS)
        publish(windows, table, truncated=truncated)
        return {key: value for key, value in table.items() if key != b"state"}

    table: dict[bytes, bytes] = {}
    whole = published(False, 0, 1)
    assert published(True, 1) == whole
    assert published(True, 0, 1, 2) != whole
    table[b"version/1700000040000/a-000000"] = b"[not a window"
    assert published(True, 0, 1) == whole


def test_memory_is_bounded_by_closing_the_oldest_windows_early() -> None:
    monitor = MonitorSettings(entries_max=1000)
    records = [record(scored(n, [0.1, 0.2], at_ms=T + n * 1000), n) for n in range(3000)]
    published, windows = fold(records, monitor=monitor, every=100)
    assert len(windows._groups) <= 1000
    assert sum(window.groups for window in version_windows(published)) == 3000
    assert version_windows(published)[0].closed


@pytest.mark.parametrize("value", [*POISON, b"[" * (10 * 1024 * 1024)], ids=lambda v: repr(v)[:24])
@pytest.mark.parametrize("kind", ["rewards", "updates", "dead-letters"])
def test_what_is_no_event_is_counted_and_passed_over(kind: str, value: bytes | None) -> None:
    published, _ = fold([raw_record(kind, 0, value), record(scored(0, [0.1, 0.2]), 1)])
    assert state(published).malformed == {kind: 1}
    assert [window.groups for window in version_windows(published)] == [1]


def test_an_event_of_another_topic_and_a_reward_beyond_measure_are_malformed() -> None:
    stranger = raw_record("updates", 0, encode_event(scored(0, [0.1, 0.2])))
    huge = record(scored(1, [REWARD_MAX * 10, 0.0]), 0)
    published, _ = fold([stranger, huge])
    assert state(published).malformed == {"rewards": 1, "updates": 1}
    assert version_windows(published) == []


def test_a_dead_letter_counts_once_by_the_record_that_it_buries() -> None:
    def letter(offset: int, stage: str, at_ms: int) -> DeadLetter:
        source = Position(topic="test.rewards", partition=0, offset=offset)
        return DeadLetter(
            source=source, key=None, value=b"", headers=(), stage=stage, error="", attempts=1, made_at_ms=at_ms
        )

    letters = [letter(0, "learner", T), letter(0, "learner", T + 70_000), letter(0, "sink", T), letter(1, "sink", T)]
    published, _ = fold([record(event, offset) for offset, event in enumerate(letters)])
    found = {(e.stage, e.start_ms): e.dead_letters for e in published.values() if isinstance(e, StageWindow)}
    assert found == {("learner", T): 1, ("sink", T): 2}
    assert state(published).duplicates == 1


LOG = messy_log(120, seed=3)


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(1, 200))
def test_neither_order_nor_repetition_changes_a_window(chance: random.Random, every: int) -> None:
    # Any order at all, which is more than Kafka does: it keeps the order within a partition.
    shuffled = [*LOG, *chance.choices(LOG, k=len(LOG) // 2)]
    chance.shuffle(shuffled)
    again, _ = fold(shuffled, every=every)
    once, _ = fold(LOG)
    assert {k: v for k, v in again.items() if k != "state"} == {k: v for k, v in once.items() if k != "state"}


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_records_that_a_rebalance_delivers_again_change_no_counter(chance: random.Random) -> None:
    once = list(LOG)
    for _ in range(5):  # A consumer that goes back to an older offset reads on from there.
        begin = chance.randrange(len(once))
        once[begin:begin] = once[max(begin - chance.randrange(50), 0) : begin]
    assert fold(once)[0] == fold(LOG)[0]


def test_the_bytes_of_a_window_are_no_event_of_the_loop() -> None:
    published, _ = fold(LOG)
    for event in published.values():
        with pytest.raises(Exception, match="not an event"):
            decode(encode_event(event))


def test_words_are_counted_in_the_answer_as_it_is_used() -> None:
    texts = ["Black, black; BLACK case", "2 gb", "", "never scored"]
    outcomes = tuple(
        Outcome(status="scored" if number < 3 else "failed", valid=True, reward=float(number), summary=text)
        for number, text in enumerate(texts)
    )
    about_product = msgspec.structs.replace(scored(0, [0.0]), outcomes=outcomes)
    about_query = scored(1, [0.0, 1.0], expansions=("red shoe", "shoe"))
    published, _ = fold([record(about_product, 0), record(about_query, 1)])
    [window] = version_windows(published)
    assert (window.words, window.repeated) == (4 + 2 + 3 + 3, 2 + 1 + 1)
