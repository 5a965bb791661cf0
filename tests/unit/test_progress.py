"""Progress without a terminal: each thing once, and signs of life only from what takes long."""

from __future__ import annotations

from infra.app.progress import LINE_SECONDS, plain_lines


class FakeClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_done_at_once_is_said_once() -> None:
    lines: list[str] = []
    report = plain_lines(lines.append, FakeClock())
    for done in range(11):
        report("indexing", done, 10)
    report("indexing", 10, 10)
    report("opening the index", 0, 0)
    report("opening the index", 0, 0)
    assert lines == ["indexing", "opening the index"]


def test_what_takes_long_gives_signs_of_life_and_its_end() -> None:
    lines, clock = list[str](), FakeClock()
    report = plain_lines(lines.append, clock)
    for done in range(41):
        report("updates: reward 0.5", done, 40)
        clock.now += LINE_SECONDS / 8
    assert lines == [
        "updates: reward 0.5",
        *(f"updates: reward 0.5 {done}/40" for done in (8, 16, 24, 32, 40)),
    ]


def test_what_does_not_get_on_is_not_repeated() -> None:
    lines, clock = list[str](), FakeClock()
    report = plain_lines(lines.append, clock)
    for _ in range(5):
        report("waiting for rewards", 3, 8)
        clock.now += LINE_SECONDS
    assert lines == ["waiting for rewards 3/8"]
