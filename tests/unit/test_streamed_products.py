"""ReLSum and ReSuMe read products from a mapped file, and get what a catalogue in memory gives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from infra.app.home import IndexFolder
from infra.app.settings import Settings
from infra.recipes.relsum.index import RelsumIndex
from infra.recipes.resume.texts import TEXTS, document_texts, summary_texts, texts_without_policy
from learner.product_prompts import ProductPromptSettings, render_product
from learner.retriever_versions import texts_sha256
from search_env.catalogue.corpora import Document
from search_env.catalogue.demand import DemandSettings, make_demand
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.catalogue.named_documents import NamedDocuments
from search_env.engine.index import IndexVersion, SavedDocuments
from search_env.models.wordpieces import wordpiece_count
from search_env.queries.intents import IntentSettings, make_intents, write_intents
from search_env.queries.judged_lists import JudgedLists, ListSettings, make_lists
from search_env.resume.environment import embedded_text
from search_env.summaries import values as values_module
from search_env.summaries.products import asked_keys, description_of, lead, product_of, random_values
from search_env.summaries.reading import SummarySettings
from search_env.summaries.values import ProductValues

DEMAND = DemandSettings(key_documents_min=5)
LISTS = ListSettings(values_min=1, train=60, dev=20, test=30, candidates=8)
BUDGET = SummarySettings(tokens_max=24)
# sha256 of the lists below, as they were made when every product and its values lay in memory.
LISTS_SHA256 = "b9c2a7a75b85a1bc1dc65e1f5238852998524d3437544d6d0142f57ec5a6188a"


def varied_catalogue() -> list[Document]:
    """Products of which some say one value in several ways."""
    made = []
    for number, each in enumerate(demo_catalogue(DemoSettings(products=400))):
        charging = [True, "true", "Y", "yes"][number % 4] if number % 3 else "no"
        values = {**each.metadata["attributes"], "wireless_charging": charging, "ports": [2, 2.0, "2"][number % 3]}
        made.append(msgspec.structs.replace(each, metadata={**each.metadata, "attributes": values}))
    return made


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return varied_catalogue()


@pytest.fixture
def index(documents: list[Document], tmp_path: Path) -> IndexFolder:
    folder = IndexFolder(tmp_path / "shop")
    saved = SavedDocuments(folder)
    for _ in saved.keep(documents):
        pass
    saved.accept(IndexVersion(name="shop-1", alias="shop", documents=saved.count, sha256=saved.sha256.hexdigest()))
    folder.intents.mkdir()
    write_intents(folder.intents, make_intents(documents, IntentSettings(queries=200)))
    return folder


def opened(index: IndexFolder) -> RelsumIndex:
    return RelsumIndex(index, Settings(demand=DEMAND, lists=LISTS), lambda *_: None)


def test_judged_lists_are_those_that_were_made_in_memory(documents: list[Document]) -> None:
    digest = hashlib.sha256()
    for settings in (
        LISTS,
        ListSettings(values_min=2, train=200, dev=40, test=60, candidates=16, second_value_share=0.6, brand_share=0.5),
        ListSettings(values_min=3, train=50, dev=10, test=10, candidates=40),
    ):
        made = make_lists(documents, make_demand(documents, DEMAND), settings)
        digest.update(msgspec.json.encode({split: [each.queries, each.qrels] for split, each in made.items()}))
    assert digest.hexdigest() == LISTS_SHA256


def test_lists_products_and_prompts_of_a_mapped_catalogue_are_equal(
    documents: list[Document], index: IndexFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values_module, "SHOWN_MAX", 3)  # Most products are made several times.
    mapped, made = opened(index), make_lists(documents, make_demand(documents, DEMAND), LISTS)
    assert {split: mapped.lists(split) for split in made} == {split: JudgedLists(*each) for split, each in made.items()}
    whole = ProductValues(NamedDocuments(documents), asked_keys(made["train"].queries))
    assert list(mapped.documents) == list(mapped.values.documents) == [each.id for each in documents]
    prompts = ProductPromptSettings()
    for each in documents:
        ours, theirs = mapped.values.product(each.id), whole.product(each.id)
        assert render_product(ours, prompts, pointers=True) == render_product(theirs, prompts, pointers=True)
        assert ours == theirs and mapped.values.keys(each.id) == whole.keys(each.id)
        for order in ("by_key_counts", "by_key_rates", "by_rarity", "by_chance"):
            assert getattr(mapped.values, order)(each.id) == getattr(whole, order)(each.id)


def test_texts_of_a_mapped_catalogue_are_equal(documents: list[Document], index: IndexFolder) -> None:
    prompts = ProductPromptSettings()
    made = {kind: dict(texts_without_policy(index, kind, budget=BUDGET, prompts=prompts, seed=7)) for kind in TEXTS}
    titled = {each.id: embedded_text(each.title, "") for each in documents}
    whole = {each.id: embedded_text(each.title, description_of(product_of(each))) for each in documents}
    assert made["title"] == titled
    assert made["description"] == whole == dict(document_texts(index))
    assert made["lead"] == {
        each.id: embedded_text(each.title, lead(product_of(each), BUDGET, wordpiece_count)) for each in documents
    }
    some = {documents[3].id: "a summary"}
    assert dict(summary_texts(index, some)) == {
        **titled,
        documents[3].id: embedded_text(documents[3].title, "a summary"),
    }
    assert all(list(of) == [each.id for each in documents] for of in made.values())


def test_random_values_of_a_mapped_catalogue_are_equal(documents: list[Document], index: IndexFolder) -> None:
    prompts = ProductPromptSettings(order="document")
    whole = ProductValues(NamedDocuments(documents), {}, order="document")
    assert dict(texts_without_policy(index, "random", budget=BUDGET, prompts=prompts, seed=7)) == {
        each.id: embedded_text(each.title, random_values(whole.product(each.id), BUDGET, wordpiece_count, seed=7))
        for each in documents
    }


def test_the_hash_of_texts_is_that_of_one_json_list(index: IndexFolder) -> None:
    texts = document_texts(index)
    assert texts_sha256(texts) == hashlib.sha256(msgspec.json.encode(sorted(texts.items()))).hexdigest()
    assert texts_sha256({}) == hashlib.sha256(b"[]").hexdigest()


def test_an_unknown_product_is_a_key_error(index: IndexFolder) -> None:
    texts = document_texts(index)
    assert "nothing" not in texts and len(texts) == 400
    with pytest.raises(KeyError):
        texts["nothing"]
