"""The worked example of `infra/RECIPES.md`: a recipe of one's own, through the loop in one process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.app.home import RunFolder
from infra.experiments.plan import check_methods, read_plan
from infra.recipes.recipe import load_recipe
from infra.runs.loop import run_loop
from learner.batches import BatchSettings
from learner.generation import GenerationSettings
from learner.learning import LearnerSettings, write_first_checkpoint
from learner.objectives import ObjectiveSettings
from learner.policy import build_tiny
from learner.policy_settings import TinySettings
from learner.product_prompts import ProductPromptSettings, tokenize_product_request
from learner.updates import UpdateSettings
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.summaries.reading import ParsedSummary
from streams.errors import SettingsError
from streams.events import Product, Request
from tests.recipe_example import COST, Distinction, DistinctionEnvironment, distinction_reward, product_of

ROOT = Path(__file__).parents[2]


def test_the_example_learns_in_the_loop_that_knows_nothing_of_it(tmp_path: Path) -> None:
    documents = list(demo_catalogue(DemoSettings(products=200)))
    products = [product_of(document, values=8) for document in documents]
    tiny = TinySettings(vocabulary_size=600, hidden_size=32, layers=2, heads=2, feedforward_size=64)
    policy = build_tiny((f"{n} {v}" for p in products for n, v in p.values), tiny, pointers=8)
    write_first_checkpoint(tmp_path / "checkpoints", policy)
    requests = [
        Request(request_id=str(number), run="own", query_id=p.document_id, query="", index="i", product=p)
        for number, p in enumerate(products * 3)
    ]
    updates = list(
        run_loop(
            requests,
            run="own",
            run_dir=RunFolder(tmp_path),
            environment=DistinctionEnvironment(documents, "i"),
            generation=GenerationSettings(candidates=4, tokens_max=4),
            encode_prompt=lambda tokenizer, request: tokenize_product_request(
                tokenizer, request, ProductPromptSettings(values=8)
            ),
            batch=BatchSettings(groups=16, staleness_max=0),
            learner=LearnerSettings(
                objective=ObjectiveSettings(advantage="mean_std"), update=UpdateSettings(learning_rate=4e-3)
            ),
            seed=0,
        )
    )
    rewards = [update.metrics["reward_mean"] for update in updates]
    assert all(update.metrics["validity"] == 1 for update in updates)
    assert not any(update.failed for update in updates)
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05


def test_the_reward_is_the_mean_rarity_less_the_cost() -> None:
    product = Product(document_id="d", title="t", values=(("a", "x"), ("b", "y")))
    both = ParsedSummary(text="x, y", tokens=3, values=(1, 2), repeats=0.0)
    assert distinction_reward(both, product, {"x": 0.5, "y": 0.9}) == pytest.approx(0.7 - 2 * COST)
    nothing = ParsedSummary(text="", tokens=0, values=(), repeats=0.0)
    assert distinction_reward(nothing, product, {}) == 0.0


def test_a_recipe_is_found_by_its_name() -> None:
    assert isinstance(load_recipe("tests.recipe_example:Distinction"), Distinction)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("expansions", "expected one of leser, relsum, resume"),
        ("no.such.module:Recipe", "cannot load"),
        ("tests.recipe_example:Nothing", "cannot load"),
        ("tests.recipe_example:COST", "has no carried, methods, prepare"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        load_recipe(name)


def test_the_page_names_the_example_and_its_parts() -> None:
    page = (ROOT / "infra" / "RECIPES.md").read_text()
    assert 'recipe = "tests.recipe_example:Distinction"' in page
    for part in ("carried", "methods", "prepare", "encoder", "open_environment", "rank"):
        assert re.search(rf"\| `{part}\b", page)


def test_the_pages_plan_is_a_plan(tmp_path: Path) -> None:
    *_, text = re.findall(r"```toml\n(.*?)```", (ROOT / "infra" / "RECIPES.md").read_text(), flags=re.DOTALL)
    (tmp_path / "plan.toml").write_text(text)
    plan = read_plan(tmp_path / "plan.toml")
    check_methods(plan, Distinction().methods)
    assert [plan.seeds_of(arm) for arm in plan.arms] == [(0, 1, 2)] * 3
