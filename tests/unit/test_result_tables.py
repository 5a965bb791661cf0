"""The tables in the recipes' pages: made from kept results, and changed nowhere else."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from infra.app.home import Home
from infra.commands.experiment import print_results
from infra.experiments.arms import begin, row_name
from infra.experiments.markdown import RECIPES, kept_results, markdown_table, pages_of, with_table
from infra.experiments.page import render_experiment
from infra.experiments.plan import read_plan
from infra.experiments.rankings import keep_rankings
from infra.experiments.tables import ArmRow, Results, SetTable, read_results
from infra.recipes.recipe import Ranked
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


def test_a_set_with_unjudged_documents_shows_what_is_believed(tmp_path: Path) -> None:
    app_home, folder = Home(tmp_path), Home(tmp_path).experiment("x")
    plan_file = tmp_path / "plan.toml"
    plan_file.write_text(
        'title = "t"\nrecipe = "leser"\nbaseline = "raw"\nmeasures = ["nDCG@10", "RR@10"]\nsamples = 100\n'
        '[[arms]]\nname = "raw"\nsearch = "none"\n[[arms]]\nname = "rm3"\nsearch = "rm3"\n'
    )
    qrels = {"human": {"q": {"a": 0, "b": 2, "c": 1}}, "pairs": {"q": {"b": 1}}}  # Pairs list relevant documents only.
    begin(folder, read_plan(plan_file), index="shop", given=None)
    for row, ranking in (("raw", "abc"), ("rm3", "xybc")):
        run = {"q": {document: -float(rank) for rank, document in enumerate(ranking)}}
        ranked = [Ranked(name=name, run=run, qrels=of) for name, of in qrels.items()]
        keep_rankings(folder / "rankings", row_name(read_plan(plan_file).arm(row), 0), ranked)
    results = read_results(app_home, read_plan(plan_file), name="x", index="shop")
    human, pairs = results.sets
    assert (pairs.added, pairs.believed) == ((), None)
    assert human.added == ("Judged@10", "judged-nDCG@10", "Bpref")
    raw, rm3 = human.arms
    assert rm3.measures["judged-nDCG@10"].value == pytest.approx(1) and rm3.measures["Judged@10"].value == 0.5
    assert raw.measures["judged-nDCG@10"].value == raw.measures["nDCG@10"].value
    assert rm3.differences["Judged@10"].p_holm is None and rm3.differences["Bpref"].p_holm is not None
    line = "believed: judged-nDCG@10, since Judged@10 is 1.000 against .500"
    console = Console(file=StringIO(), width=120)
    print_results(results, console)
    assert line in console.file.getvalue() and line in render_experiment(results)  # type: ignore[attr-defined]
    page = markdown_table(results)
    assert "| nDCG@10 over raw: human | judged-nDCG@10 over raw: human | nDCG@10 over raw: pairs |" in page
    assert page.endswith(f"\n\nhuman: {line}.\n")


def test_only_the_text_between_the_two_comments_changes() -> None:
    page = "before\n<!-- x: this table is generated -->\nold\n<!-- end of x -->\nafter\n"
    assert with_table(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(SettingsError, match="found neither; add both lines"):
        with_table(page, "y", "new\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_of_a_recipes_page_are_those_of_its_kept_results(page: Path) -> None:
    pages = pages_of(page.parent)
    assert page in pages
    assert pages == {path: path.read_text() for path in pages}
    shown = re.findall(r"<!-- (\S+): this table is generated -->", "".join(pages.values()))
    assert sorted(shown) == sorted(kept_results(page.parent))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_kept_results_name_no_file_of_a_machine(page: Path) -> None:
    for results in kept_results(page.parent).values():
        assert (results.curves, results.commands) == ({}, ())


def test_only_the_zero_before_the_point_is_left_out() -> None:
    (each,) = BY_HAND.sets
    large = msgspec.structs.replace(each, arms=(arm("raw", 10.0), arm("policy", 0.0, 10.0)))
    table = markdown_table(msgspec.structs.replace(BY_HAND, sets=(large,)))
    assert "| raw (0, 1) | 10.000 / 1.000 |" in table
    assert "| policy (0, 1) | .000 / 1.000 | +10.000 [+9.990, +10.010] |" in table
