"""Saved questions: each is whole, answers on a real ledger, and gives what is worked out by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from scipy.stats import t

from infra.ui.api import DEFAULTS
from infra.ui.pages import PAGES
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.questions.asking import ask, connect_reading
from storage.questions.question import read_question, saved_questions
from streams.events import DeadLetter, Event, Position
from streams.records import Received
from tests.shown_pages import in_log_order, whole_run, write_run
from tests.stored_events import (
    RUN,
    dev_score,
    generation,
    impression,
    impression_outcome,
    policy,
    reward,
    update,
    user_action,
)

QUESTIONS = saved_questions()
WIDE = {**DEFAULTS, "from_high": 0, "to_low": 1, "to_high": 9}


def rows(folder: Path, name: str, **given: object) -> list[dict[str, object]]:
    question = QUESTIONS[name]
    with connect_reading(folder / LEDGER) as connection:
        values = {each: {**WIDE, **given}[each] for each in question.parameters}
        return ask(connection.cursor(), question.sql, values).dicts()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("home"), whole_run(12))


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_is_whole_and_draws_columns_that_its_answer_has(name: str, run: Path) -> None:
    question = QUESTIONS[name]
    assert question.page in {page for page, _ in PAGES.values()}
    assert question.title and question.says.endswith(".") and question.parameters <= set(DEFAULTS)
    with connect_reading(run / LEDGER) as connection:
        columns = ask(connection.cursor(), question.sql, {each: WIDE[each] for each in question.parameters}).columns
    drawn = {question.x, *question.y, *question.band, question.series} - {""}
    assert drawn <= set(columns)
    assert (question.draw == "table") == (not drawn)
    assert len(question.band) in (0, 2)


def test_the_reward_by_version_is_the_mean_of_its_groups(run: Path) -> None:
    found = rows(run, "reward_by_version")
    assert [row["step"] for row in found] == [0, 1, 2]
    for row, numbers in zip(found, ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]), strict=True):
        groups = [[each.reward or 0 for each in reward(n, step=n // 4).outcomes] for n in numbers]
        assert row["reward_mean"] == pytest.approx(sum(map(sum, groups)) / 32)


def test_queries_of_two_versions_are_compared_by_their_means(run: Path) -> None:
    found = {str(row["query_id"]): row for row in rows(run, "version_queries")}
    # Query 0 is asked by group 0 (version 0) and group 7 (version 1), query 4 first by version 1.
    assert set(found) == {"q0", "q1", "q2", "q3"}
    before, after = ([each.reward or 0 for each in reward(n, step=n // 4).outcomes] for n in (0, 7))
    assert found["q0"]["change"] == pytest.approx(sum(after) / 8 - sum(before) / 8)


def test_groups_are_chosen_by_version_query_and_spread(run: Path) -> None:
    assert {row["step"] for row in rows(run, "groups", step=1)} == {1}
    assert {row["group_id"] for row in rows(run, "groups", query="q0")} == {generation(n).group_id for n in (0, 7)}
    assert len(rows(run, "groups", query="NOISE cancelling")) == 12
    assert rows(run, "groups", query="' OR 1=1 --") == []
    assert rows(run, "groups", sort="flat") == []
    spreads = [row["spread"] for row in rows(run, "groups", sort="spread")]
    assert spreads == sorted(spreads, key=lambda value: -float(str(value)))


def test_the_time_between_updates_is_cut_at_the_way_of_its_last_group(tmp_path: Path) -> None:
    # The record of update 1 is written at 10.0 s. Of the groups of update 2, the last reward comes at 14 s, for a text
    # of 11 s; the update is written at 15.5 s: so 1 s of generation, 3 s of search, 1.5 s of learning.
    at = {0: (1.0, 2.0), 1: (10.5, 10.7), 2: (11.0, 14.0)}
    events = []
    for number, (written, judged) in at.items():
        events += [("generations", generation(number), written), ("rewards", reward(number), judged)]
    made = [update(step, groups, parent=policy(step - 1)) for step, groups in ((1, [0]), (2, [1, 2]))]
    records = in_log_order([event for _, event, _ in events] + made)
    times = {n: seconds for n, (_, _, seconds) in enumerate(events)} | {len(events): 10.0, len(events) + 1: 15.5}
    records = [msgspec.structs.replace(each, timestamp_ms=int(1000 * times[n])) for n, each in enumerate(records)]
    found = rows(write_run(tmp_path, records), "time_by_stage")
    assert {row["stage"]: row["seconds"] for row in found} == {"generation": 1.0, "search": 3.0, "learning": 1.5}
    assert {row["step"] for row in found} == {2}


def test_dev_scores_are_shown_once_for_each_version(tmp_path: Path) -> None:
    found = rows(write_run(tmp_path, in_log_order([dev_score(0), dev_score(5), dev_score(5)])), "dev_by_version")
    assert [(row["step"], row["value"]) for row in found] == [(0, 0.25), (5, 0.25)]


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_empty_ledger_answers_with_no_rows_or_with_nothing_known(name: str, tmp_path: Path) -> None:
    write_run(tmp_path, [])
    assert rows(tmp_path / "runs" / "demo", name) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-- title\nSELECT 1", "line 1: expected `-- field: value`"),
        ("-- title: A\nSELECT 1", "missing required field"),
        ("-- title: A\n-- page: p\n-- order: x\n-- draw: line\n-- says: B.\nSELECT 1", "order"),
        ("-- title: A\n-- page: p\n-- order: 1\n-- draw: pie\n-- says: B.\nSELECT 1", "draw"),
    ],
)
def test_a_malformed_question_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(StorageError, match=said):
        read_question("wrong", text)


def test_a_list_that_is_limited_says_how_many_rows_there_are_in_all(tmp_path: Path) -> None:
    found = rows(write_run(tmp_path, whole_run(240)), "groups")
    assert len(found) == 200 and {row["in_all"] for row in found} == {240}
    for name, question in QUESTIONS.items():
        limited = "LIMIT" in question.sql
        assert not limited or "in_all" in question.sql, f"{name} has a limit and does not say how many rows there are"


def test_the_interval_of_few_groups_is_students(tmp_path: Path) -> None:
    for groups in (2, 3, 4, 5, 8, 16, 60):
        events = [reward(number) for number in range(groups)]
        (found,) = rows(write_run(tmp_path, in_log_order(list(events)), run=f"r{groups}"), "reward_by_version")
        means = [sum(each.reward or 0 for each in event.outcomes) / 8 for event in events]
        mean = sum(means) / groups
        error = (sum((each - mean) ** 2 for each in means) / (groups - 1) / groups) ** 0.5
        reach = (float(str(found["high"])) - float(str(found["low"]))) / 2
        assert reach / error == pytest.approx(t.ppf(0.975, groups - 1), rel=0.002)
    (alone,) = rows(write_run(tmp_path, in_log_order([reward(0)]), run="alone"), "reward_by_version")
    assert (alone["low"], alone["high"]) == (None, None)


def test_late_clicks_and_bots_are_counted_by_reason(tmp_path: Path) -> None:
    impressions = [impression(n) for n in range(10)]
    actions = [
        msgspec.structs.replace(user_action(n), at_ms=impressions[n].at_ms + 30 * 3_600_000 if n < 2 else 0)
        for n in range(8)
    ]
    letters = [
        DeadLetter(
            source=Position(topic=f"{RUN}.actions", partition=0, offset=n),
            key=None,
            value=None,
            headers=(),
            stage="joiner",
            error="after_window: it came later than the window",
            attempts=1,
        )
        for n in range(2)
    ]
    outcomes = [
        msgspec.structs.replace(impression_outcome(n), bot="too_fast" if n < 3 else "judged" if n == 3 else "")
        for n in range(10)
    ]
    folder = write_run(tmp_path, in_log_order([*impressions, *actions, *outcomes, *letters]))
    (late,) = rows(folder, "live_late_clicks")
    assert (late["reason"], late["actions"], late["share_of_actions"]) == ("after_window", 2, 0.25)
    assert late["median_hours_after"] == 30.0
    (bots,) = rows(folder, "live_bots")
    assert (bots["mark"], bots["searches"], bots["share"]) == ("too_fast", 9, pytest.approx(3 / 9))


def two_lives() -> list[Received]:
    """A learner goes to version 4 and dies; its next life begins at version 2, and goes another way to version 4."""
    events: list[Event] = []
    numbers = iter(range(1_000))
    for lineage, first, last in (("a", 0, 4), ("b", 2, 4)):
        for step in range(first, last):
            begins = lineage == "b" and step == first
            mine = range(next(numbers) * 4, 10**6)[:4]
            for number in mine:
                made = reward(number, step=step)
                weights = policy(step, lineage="a" if begins else lineage)
                events.append(
                    msgspec.structs.replace(made, generation=msgspec.structs.replace(made.generation, policy=weights))
                )
            parent = policy(step, lineage="a" if begins else lineage)
            events.append(update(step + 1, mine, parent=parent, lineage=lineage))
            score = dev_score(step + 1)
            events.append(msgspec.structs.replace(score, policy=policy(step + 1, lineage=lineage)))
    return in_log_order(events)


def test_a_life_that_was_lost_is_a_line_of_its_own(tmp_path: Path) -> None:
    folder = write_run(tmp_path, two_lives())
    lines: dict[str, list[object]] = {}
    for row in rows(folder, "dev_by_version"):
        lines.setdefault(str(row["line"]).partition(",")[2], []).append((row["lineage"], row["step"]))
    assert lines == {
        "": [("a", 1), ("a", 2), ("b", 3), ("b", 4)],
        " left behind: a": [("a", 3), ("a", 4)],
    }
    lines = {}
    for row in rows(folder, "reward_by_version"):
        lines.setdefault(str(row["line"]), []).append((row["lineage"], row["step"]))
    assert lines == {"reward": [("a", 0), ("a", 1), ("a", 2), ("b", 3)], "left behind: a": [("a", 3)]}
    groups = {row["step"]: row["groups"] for row in rows(folder, "advantage_spread")}
    assert groups == {0: 4, 1: 4, 2: 8, 3: 4}, "version 2 wrote groups in both lives"
    candidates = {row["step"]: row["candidates"] for row in rows(folder, "reward_spread")}
    assert candidates == {step: 8 * count for step, count in ((0, 4), (1, 4), (2, 8), (3, 4))}
    for name in ("shares", "text_length", "reward_parts"):
        assert {row["step"] for row in rows(folder, name)} <= {0, 1, 2, 3}
