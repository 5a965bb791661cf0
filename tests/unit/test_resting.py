"""Answers that rest: what open pages use is made anew within a share of the processor, and only if the log changed."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

import infra.ui.resting
import storage.questions.spending
from infra.ui.resting import KEPT, LEAST_SHARE, OVERHEAD_SECONDS, Resting, spending
from storage.questions.spending import MEMORY_SECONDS, Spending

SHARE = 0.05


class Desk:
    """A clock, a log, and questions that take processor time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.log = 0
        self.asked = 0
        self.used = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now, thread_time=lambda: self.used)
        monkeypatch.setattr(infra.ui.resting, "time", clock)
        monkeypatch.setattr(storage.questions.spending, "time", clock)
        self.beside = Spending()
        self.whole = Spending()
        self.resting = Resting(SHARE, self.beside, self.whole)

    async def get(self, key: object, cost: float = 1.0) -> tuple[object, float]:
        return tuple(await self.resting.get(key, lambda: self.log, lambda: self._ask(cost)))

    async def _ask(self, cost: float) -> int:
        self.asked += 1
        number = self.asked
        await asyncio.sleep(0)
        with spending(self.beside):
            self.used += cost - OVERHEAD_SECONDS
        return number


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(monkeypatch)


def test_an_answer_is_given_again_as_long_as_the_log_is_the_same(desk: Desk) -> None:
    async def run() -> None:
        await desk.get("a")
        desk.now += 10_000
        assert await desk.get("a") == (1, 0.0)
        desk.log += 1
        assert (await desk.get("a"))[0] == 2

    asyncio.run(run())


def test_what_open_pages_use_is_made_anew_within_the_share(desk: Desk) -> None:
    async def run() -> None:
        for name, cost in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
            await desk.get(name, cost)
        began, used = desk.now, desk.used
        while desk.now < began + 1_000:
            desk.now += 1
            desk.log += 1
            for name, cost in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
                await desk.get(name, cost)
        spent = desk.used - used
        assert 0.8 * SHARE <= spent / 1_000 <= SHARE
        assert desk.asked == pytest.approx(3 * (1 + 1_000 * SHARE), abs=4), "no answer is forgotten for another one"

    asyncio.run(run())


def test_a_cheap_page_is_made_anew_soon_and_a_new_question_at_once(desk: Desk) -> None:
    async def run() -> None:
        assert (await desk.get("a", 0.05))[1] == pytest.approx(0.05 / SHARE)
        desk.now, desk.log = desk.now + 0.5, 1
        answer, rest = await desk.get("a", 0.05)
        assert (answer, rest) == (1, pytest.approx(0.5))
        assert (await desk.get("b", 5.0))[0] == 2

    asyncio.run(run())


def test_answers_about_a_run_that_has_ended_do_not_rest(desk: Desk) -> None:
    async def run() -> None:
        for number in range(1, 4):
            found = await desk.resting.get("a", lambda: desk.log, lambda: desk._ask(5.0), live=lambda: False)
            assert found == (number, 0.0)
            desk.log += 1

    asyncio.run(run())


def test_answers_that_nobody_uses_any_more_take_nothing_from_the_others(desk: Desk) -> None:
    async def run() -> None:
        await desk.get("old", 10.0)
        desk.now += 10_000
        assert (await desk.get("a", 1.0))[1] == pytest.approx(1.0 / SHARE)

    asyncio.run(run())


def test_what_copies_take_is_taken_from_the_answers_except_for_a_part(desk: Desk) -> None:
    async def run() -> None:
        for _ in range(3_000):  # 0.03 of a core, for longer than is remembered.
            desk.now += 0.1
            desk.beside.spend(0.003)
        assert desk.beside.rate() == pytest.approx(0.03, rel=0.05)
        assert (await desk.get("a", 1.0))[1] == pytest.approx(1.0 / 0.02, rel=0.1)
        desk.beside.spend(100.0)
        assert (await desk.get("a", 1.0))[1] == pytest.approx(1.0 / (LEAST_SHARE * SHARE))
        desk.now += 20 * MEMORY_SECONDS
        assert desk.beside.rate() < 1e-6

    asyncio.run(run())


def test_what_no_thread_of_ours_has_counted_is_taken_from_the_answers_too(desk: Desk) -> None:
    async def run() -> None:
        await desk.get("a", 0.3)  # A hundredth of a core within what is remembered, which the process has spent, too.
        desk.whole.spend(0.3 + 0.9)
        rest = (await desk.get("a"))[1]
        assert rest == pytest.approx(0.3 / (SHARE - 0.9 / MEMORY_SECONDS), rel=0.1)

    asyncio.run(run())


def test_those_who_ask_at_once_wait_for_one_answer_and_an_error_is_not_kept(desk: Desk) -> None:
    async def fail() -> int:
        raise ValueError("away")

    async def run() -> None:
        found = await asyncio.gather(*(desk.get("a") for _ in range(5)))
        assert [each[0] for each in found] == [1] * 5
        with pytest.raises(ValueError, match="away"):
            await desk.resting.get("b", lambda: 0, fail)
        assert (await desk.get("b"))[0] == 2
        for number in range(1_000):
            with pytest.raises(ValueError, match="away"):
                await desk.resting.get(number, lambda: 0, fail)
        assert len(desk.resting._locks) <= KEPT

    asyncio.run(run())


def test_a_bounded_number_is_kept(desk: Desk) -> None:
    async def run() -> None:
        for number in range(KEPT + 1):
            await desk.get(number)
        before = desk.asked
        await desk.get(KEPT)
        assert desk.asked == before
        await desk.get(0)
        assert desk.asked == before + 1

    asyncio.run(run())


def test_the_work_in_a_thread_is_counted_for_its_answer_and_other_work_beside_answers() -> None:
    beside = Spending()

    def work() -> int:
        with spending(beside):
            began = time.thread_time()
            while time.thread_time() - began < 0.05:
                pass
        return 1

    async def run() -> None:
        resting = Resting(SHARE)
        answer, rest = await resting.get("a", lambda: 0, lambda: asyncio.to_thread(work))
        assert answer == 1 and rest > 0.05 / SHARE / 2
        assert beside.rate() == 0
        await asyncio.to_thread(work)
        assert beside.rate() == pytest.approx(0.05 / MEMORY_SECONDS, rel=0.5)

    asyncio.run(run())
