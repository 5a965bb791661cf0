"""Answers that rest: what is expensive is asked seldom, what is cheap each time, and one answer serves all who wait."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

import infra.ui.resting
from infra.ui.resting import KEPT, REST, Rested, Resting


class Clock:
    """A clock that questions move on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.asked = 0
        monkeypatch.setattr(infra.ui.resting, "time", SimpleNamespace(monotonic=lambda: self.now))

    async def ask(self, seconds: float) -> int:
        self.asked += 1
        number = self.asked
        await asyncio.sleep(0)
        self.now += seconds
        return number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_an_answer_rests_twenty_times_as_long_as_it_took(clock: Clock) -> None:
    async def run() -> None:
        resting = Resting()
        assert await resting.get("a", lambda: clock.ask(2.0)) == Rested(1, 2.0 * REST)
        clock.now += 2.0 * REST - 1
        assert await resting.get("a", lambda: clock.ask(2.0)) == Rested(1, 1.0)
        assert (await resting.get("b", lambda: clock.ask(0.0))).answer == 2
        clock.now += 1
        assert (await resting.get("a", lambda: clock.ask(2.0))).answer == 3

    asyncio.run(run())


def test_a_quick_answer_is_asked_anew_each_time(clock: Clock) -> None:
    async def run() -> None:
        resting = Resting()
        assert [(await resting.get("a", lambda: clock.ask(0.05))) for _ in range(3)] == [
            Rested(n, 0.0) for n in (1, 2, 3)
        ]

    asyncio.run(run())


def test_those_who_ask_at_once_wait_for_one_answer_and_an_error_is_not_kept(clock: Clock) -> None:
    async def fail() -> int:
        raise ValueError("away")

    async def run() -> None:
        resting = Resting()
        found = await asyncio.gather(*(resting.get("a", lambda: clock.ask(1.0)) for _ in range(5)))
        assert [each.answer for each in found] == [1] * 5
        with pytest.raises(ValueError, match="away"):
            await resting.get("b", fail)
        assert (await resting.get("b", lambda: clock.ask(1.0))).answer == 2

    asyncio.run(run())


def test_a_bounded_number_is_kept(clock: Clock) -> None:
    async def run() -> None:
        resting = Resting()
        for number in range(KEPT + 1):
            await resting.get(number, lambda: clock.ask(100.0))
        clock.now = 1000.0
        before = clock.asked
        await resting.get(KEPT, lambda: clock.ask(1.0))
        assert clock.asked == before
        await resting.get(0, lambda: clock.ask(1.0))
        assert clock.asked == before + 1

    asyncio.run(run())
