"""Plans of experiments: what they say, what is refused, and what an arm's seeds add up to."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.experiments.arms import begin, commands, run_name
from infra.experiments.plan import PLANS, Plan, plan_path, read_plan
from infra.experiments.tables import mean_over_seeds
from infra.layers import assignments_layer, combine, read_toml
from infra.recipes import recipe_path
from infra.settings import Settings
from streams.errors import SettingsError

TWO_ARMS = """
title = "two"
recipe = "leser"
baseline = "raw"
seeds = [3, 5]
[[arms]]
name = "raw"
search = "none"
[[arms]]
name = "SFT+GRPO"
train = {}
[[arms]]
name = "no λ"
seeds = [5]
train = { start = "SFT+GRPO", change = ["environment.reward.size_weight=0"] }
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in PLANS.glob("*.toml")))
def test_every_plan_of_ours_can_be_read_and_changes_settings_that_exist(name: str) -> None:
    plan = read_plan(plan_path(name))
    recipe = (plan.recipe, read_toml(recipe_path(plan.recipe)))
    for arm in plan.arms:
        changes = assignments_layer(arm.train.change) if arm.train else {}
        assert combine(Settings, [recipe, (arm.name, changes)])


def test_an_untrained_arm_is_run_once_and_a_later_one_with_the_seeds_it_asks_for(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, TWO_ARMS))
    assert [plan.seeds_of(arm) for arm in plan.arms] == [(3,), (3, 5), (5,)]
    assert run_name("x", plan.arms[2], 5) == "x-no-5"


def test_some_arms_bring_those_that_they_need(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, TWO_ARMS), arms=("no λ",), seeds=(5,))
    assert [arm.name for arm in plan.arms] == ["raw", "SFT+GRPO", "no λ"]
    alone = read_plan(written(tmp_path, TWO_ARMS), arms=("SFT+GRPO",))
    assert [arm.name for arm in alone.arms] == ["raw", "SFT+GRPO"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('baseline = "raw"', 'baseline = "BM25"', "baseline: expected one of the arms .raw, SFT"),
        ('name = "no λ"', 'name = "raw"', "names of their own"),
        ('start = "SFT+GRPO"', 'start = "SFT"', "expected an arm that is trained .SFT.GRPO., got 'SFT'"),
        ('search = "none"', 'search = "knn"', "searches with 'knn' and needs a run"),
        ("train = {}", "trian = {}", "unknown field `trian`"),
        ("seeds = [3, 5]", "seeds = []", "length >= 1"),
        ('title = "two"', "title = ", "plan.toml: expected TOML, got: Invalid"),
    ],
)
def test_a_plan_that_cannot_be_says_where_and_what(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_plan(written(tmp_path, TWO_ARMS.replace(before, after)))


def test_an_unknown_plan_or_arm_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="leser, leser-ablations"):
        plan_path("laser")
    with pytest.raises(SettingsError, match="got 'GRPO'"):
        read_plan(written(tmp_path, TWO_ARMS), arms=("GRPO",))


def test_a_folder_never_holds_two_experiments(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, TWO_ARMS))
    begin(tmp_path / "kept", plan, index="shop", sets=[])
    begin(tmp_path / "kept", read_plan(written(tmp_path, TWO_ARMS), seeds=(3, 5, 7)), index="shop", sets=[])
    other = read_plan(written(tmp_path, TWO_ARMS.replace("size_weight=0", "size_weight=1")))
    with pytest.raises(SettingsError, match="arm 'no λ' was another one; choose another --into"):
        begin(tmp_path / "kept", other, index="shop", sets=[])
    with pytest.raises(SettingsError, match="index, recipe"):
        begin(tmp_path / "kept", plan, index="other", sets=[])


def test_the_commands_name_every_change_and_where_a_run_begins(tmp_path: Path) -> None:
    lines = commands(read_plan(written(tmp_path, TWO_ARMS)), name="x", index="shop")
    assert (
        "SEARCHLOOP_ENVIRONMENT__REWARD__SIZE_WEIGHT=0 searchloop train --recipe leser --index shop --seed 5 "
        "--from x-sft-grpo-5 --run x-no-5"
    ) in lines
    assert sum("searchloop search" in line for line in lines) == 4


def test_an_arm_is_the_mean_over_its_seeds_query_by_query() -> None:
    assert mean_over_seeds([{"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}]) == {"a": 0.5, "b": 1.0}


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_is_whole_without_its_defaults() -> None:
    assert Plan(title="t", recipe="leser", baseline="raw", arms=()).seeds == (0, 1, 2)
