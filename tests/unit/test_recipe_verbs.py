"""Every recipe and every verb that only some recipes offer: the right one acts, the wrong one is refused by name."""

from __future__ import annotations

import pytest

from infra.recipes.files import recipes
from infra.recipes.recipe import BUILT_IN, load_recipe, partner_of, premise_of, writer_of
from streams.errors import SettingsError

VERBS = {
    "write_catalogue": (writer_of, "writes no texts about products. For query expansions: searchloop expand"),
    "check_premise": (premise_of, "has no premise to check"),
    "partner": (partner_of, "takes no turns"),
}
OFFERED = {
    "leser": set(),
    "relsum": set(VERBS),
    "resume": set(VERBS),
    "tests.recipe_example:Distinction": set(),
}


def test_each_recipe_of_ours_is_in_the_table_and_has_a_file() -> None:
    assert set(BUILT_IN) == {name for name in OFFERED if ":" not in name}
    assert set(BUILT_IN) <= set(recipes())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("recipe", OFFERED)
def test_a_recipe_offers_a_verb_or_says_which_recipes_do(recipe: str, verb: str) -> None:
    find, refusal = VERBS[verb]
    if verb in OFFERED[recipe]:
        assert find(recipe) is not None
        assert type(load_recipe(recipe)).__module__ == f"infra.recipes.{recipe}.recipe"
        return
    with pytest.raises(SettingsError) as raised:
        find(recipe)
    assert str(raised.value) == f"recipe {recipe!r} {refusal}. Recipes that offer it: relsum, resume"


def test_each_recipe_has_its_own_partner() -> None:
    assert partner_of("relsum").setting == "cross_encoder.version"
    assert partner_of("resume").setting == "resume.retriever"
