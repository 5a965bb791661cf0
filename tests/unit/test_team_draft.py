"""Team-draft interleaving against all enumerated cases of another library's tests, and cases worked by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from search_env.serving.team_draft import interleave
from storage.online.credits import credits, preference

# The rankings, the number of shown documents, and every list that may come: the cases of mpkato/interleaving.
CASES: list[tuple[list[list[int]], int, set[tuple[int, ...]]]] = [
    ([[1, 2], [2, 3]], 2, {(1, 2), (2, 1)}),
    ([[1, 2], [2, 3]], 3, {(1, 2, 3), (2, 1, 3)}),
    ([[1, 2], [2, 3]], 4, {(1, 2, 3), (2, 1, 3)}),
    ([[1, 2], [3, 4]], 2, {(1, 3), (3, 1)}),
    ([[1, 2], [3, 4]], 3, {(1, 3, 2), (1, 3, 4), (3, 1, 2), (3, 1, 4)}),
    ([[1, 2], [2, 3], [3, 4]], 2, {(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)}),
    ([[1, 2], [3, 4], [5, 6]], 2, {(1, 3), (1, 5), (3, 1), (3, 5), (5, 1), (5, 3)}),
]
# Shown documents, their teams, places of the clicks, and the preference of team a over team b.
CREDITS = [
    ("12", "ab", [0, 1], 0),
    ("12", "ab", [0], 1),
    ("12", "ab", [1], -1),
    ("12", "ab", [], 0),
    ("134", "abb", [0, 1, 2], -1),
    ("134", "abb", [0, 1], 0),
    ("134", "abb", [0, 2], 0),
    ("134", "abb", [1, 2], -1),
    ("134", "abb", [0], 1),
    ("134", "abb", [1], -1),
    ("134", "abb", [2], -1),
    ("134", "abb", [], 0),
]


@pytest.mark.parametrize(("rankings", "size", "possible"), CASES)
def test_every_list_of_the_enumerated_cases_comes_and_no_other(
    rankings: list[list[int]], size: int, possible: set[tuple[int, ...]]
) -> None:
    named = {str(number): list(map(str, ranking)) for number, ranking in enumerate(rankings)}
    found = Counter(tuple(map(int, interleave(named, size=size, impression_id=f"i{draw}")[0])) for draw in range(2_000))
    assert set(found) == possible
    # The six lists of two out of three rankings come from six orders, and (1, 3) of the third case from two rounds.
    fewest = 2_000 / len(possible) * 0.4
    assert min(found.values()) > fewest


def test_each_document_is_in_the_team_that_chose_it() -> None:
    for draw in range(50):
        shown, teams = interleave({"a": ["1", "2"], "b": ["3", "4"]}, size=4, impression_id=str(draw))
        assert {document for document, team in zip(shown, teams, strict=True) if team == "a"} == {"1", "2"}
        assert teams[:2] in (["a", "b"], ["b", "a"])


def test_the_draw_depends_on_the_impression_alone() -> None:
    rankings = {"a": list("123456"), "b": list("654321")}
    once = interleave(rankings, size=6, impression_id="x")
    assert interleave(dict(reversed(rankings.items())), size=6, impression_id="x") == once
    assert len({tuple(interleave(rankings, size=6, impression_id=str(n))[1]) for n in range(40)}) > 1


@pytest.mark.parametrize(("shown", "teams", "clicks", "expected"), CREDITS)
def test_credits_equal_the_enumerated_ones(shown: str, teams: str, clicks: list[int], expected: int) -> None:
    credit = credits(list(shown), list(teams), [shown[place] for place in clicks])
    assert preference(credit, "a", "b") == expected
    assert preference(credit, "b", "a") == -expected


def test_a_document_that_is_clicked_twice_counts_once_and_one_that_was_not_shown_not_at_all() -> None:
    assert credits(["1", "2"], ["a", "b"], ["1", "1", "9"]) == {"a": 1, "b": 0}
