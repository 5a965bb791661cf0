"""The pace of requests to the engine, and the rankings that a worker remembers."""

from __future__ import annotations

import threading

import pytest

from search_env.catalogue.corpora import Ranking
from search_env.engine.pace import Pace
from search_env.engine.remembered import RememberedRankings


class Engine:
    """An engine with a clock of its own, and a number of requests that it can bear."""

    def __init__(self, bears: int) -> None:
        self.now = 0.0
        self.bears = bears

    def ask(self, pace: Pace, *, seconds: float = 0.1) -> bool:
        """Send one request when as many others are under way as the pace allows; return whether it was refused."""

        def send() -> bool:
            self.now += seconds
            return pace.limit > self.bears

        return pace.run(send, lambda refused: refused)


def test_the_pace_rises_by_one_a_round_and_halves_at_a_refusal() -> None:
    engine = Engine(bears=6)
    pace = Pace(16, slow_seconds=1, clock=lambda: engine.now)
    assert pace.limit == 2
    limits = []
    for _ in range(200):
        engine.ask(pace)
        limits.append(pace.limit)
    assert max(limits) == 7, "it goes one step too far, and learns from the refusal"
    assert min(limits[50:]) == 3, "half of what was too much"
    assert sum(limits[50:]) / len(limits[50:]) > 4


def test_slow_answers_lower_the_pace_to_one_and_quick_ones_raise_it_again() -> None:
    engine = Engine(bears=99)
    pace = Pace(4, slow_seconds=1, clock=lambda: engine.now)
    for _ in range(5):
        engine.ask(pace, seconds=3)
    assert pace.limit == 1
    for _ in range(20):
        engine.ask(pace, seconds=0.1)
    assert pace.limit == 4


def test_one_stall_of_the_engine_lowers_the_pace_once_however_many_requests_it_held_up() -> None:
    engine = Engine(bears=99)
    pace = Pace(16, slow_seconds=1, clock=lambda: engine.now)
    while pace.limit < 8:
        engine.ask(pace)
    pace.run(lambda: engine.ask(pace, seconds=10), lambda _: False)  # Both were under way when it stood still.
    assert pace.limit == 4
    engine.ask(pace)
    assert pace.limit == 4


def test_an_error_counts_as_too_much_and_is_raised() -> None:
    pace = Pace(8, slow_seconds=1)
    with pytest.raises(ConnectionError):
        pace.run(lambda: (_ for _ in ()).throw(ConnectionError()), lambda _: False)
    assert pace.limit == 1


def test_never_more_are_under_way_than_the_pace_allows() -> None:
    pace = Pace(3, slow_seconds=60)
    under_way, most = [0], [0]
    guard = threading.Lock()
    hold = threading.Event()

    def send() -> None:
        with guard:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        hold.wait(0.01)
        with guard:
            under_way[0] -= 1

    threads = [threading.Thread(target=lambda: [pace.run(send, lambda _: False) for _ in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 3


def test_rankings_are_remembered_in_the_order_of_use_and_never_shared() -> None:
    remembered = RememberedRankings(2)
    remembered.put(b"a", Ranking(["1"], [1.0]))
    remembered.put(b"b", Ranking(["2"], [2.0]))
    first = remembered.get(b"a")
    assert first == Ranking(["1"], [1.0])
    first.ids.clear()
    given = Ranking(["1"], [1.0])
    remembered.put(b"a", given)
    given.ids.clear()
    remembered.put(b"c", Ranking(["3"], [3.0]))
    assert remembered.get(b"b") is None
    assert remembered.get(b"a") == Ranking(["1"], [1.0])
    assert (remembered.asked, remembered.found) == (3, 2)


def test_remembering_none_is_a_choice() -> None:
    remembered = RememberedRankings(0)
    remembered.put(b"a", Ranking(["1"], [1.0]))
    assert remembered.get(b"a") is None
    assert remembered.asked == 0
