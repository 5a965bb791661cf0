"""The tables in the recipes' pages: made from kept results, and changed nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.experiments.markdown import RECIPES, kept_results, markdown_table, page_of, with_table
from infra.experiments.tables import ArmRow, Results, SetTable
from storage.evaluation.comparison import Interval
from storage.evaluation.tables import Difference
from streams.errors import SettingsError

PAGES = sorted(RECIPES.glob("*/README.md"))


def arm(name: str, value: float, gain: float | None = None) -> ArmRow:
    found = {}
    if gain is not None:
        found = {"nDCG@10": Difference(interval=Interval(value=gain, low=gain - 0.01, high=gain + 0.01), p_holm=None)}
    return ArmRow(
        name=name,
        seeds=(0, 1),
        measures={"nDCG@10": Interval(value=value, low=0.0, high=1.0), "R@100": Interval(value=1.0, low=1.0, high=1.0)},
        by_seed={},
        differences=found,
    )


BY_HAND = Results(
    title="by hand",
    index="shop",
    baseline="raw",
    measures=("nDCG@10", "retrieval gain", "R@100"),
    samples=2000,
    sets=(
        SetTable(
            name="pairs", queries=1234, without_relevant=0, arms=(arm("raw", 0.25), arm("policy", 0.2405, -0.0095))
        ),
    ),
    curves={},
    commands=(),
)


def test_a_table_worked_by_hand() -> None:
    assert markdown_table(BY_HAND) == (
        "nDCG@10 / R@100 on index shop; 2,000 draws.\n"
        "\n"
        "| arm (seeds) | pairs (1,234) | nDCG@10 over raw: pairs |\n"
        "| --- | --- | --- |\n"
        "| raw (0, 1) | .250 / 1.000 |  |\n"
        "| policy (0, 1) | .240 / 1.000 | −.009 [−.019, +.001] |\n"
    )


def test_only_the_text_between_the_two_comments_changes() -> None:
    page = "before\n<!-- x: this table is generated -->\nold\n<!-- end of x -->\nafter\n"
    assert with_table(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(SettingsError, match="found neither; add both lines"):
        with_table(page, "y", "new\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_of_a_recipes_page_are_those_of_its_kept_results(page: Path) -> None:
    assert page_of(page.parent) == page.read_text()
    shown = re.findall(r"<!-- (\S+): this table is generated -->", page.read_text())
    assert sorted(shown) == sorted(kept_results(page.parent))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_kept_results_name_no_file_of_a_machine(page: Path) -> None:
    for results in kept_results(page.parent).values():
        assert (results.curves, results.commands) == ({}, ())
