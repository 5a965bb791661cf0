"""Attribute intents: relevant is what the attributes say, and the held-out splits hold out what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_env.catalogue.analysis import analyze
from search_env.catalogue.attributes import document_attributes
from search_env.catalogue.corpora import CorpusError, Document
from search_env.queries.intents import (
    SPLITS,
    IntentSet,
    IntentSettings,
    load_intents,
    make_intents,
    pseudo_queries,
    write_intents,
)

COLOURS = ["Red", "Green", "Blue", "Black", "White", "Grey", "Pink", "Cyan"]
MATERIALS = ["Steel", "Cotton", "Oak", "Glass", "Paper", "Leather", "Plastic"]
SHAPES = ["Round", "Square", "Oval", "Long", "Star", "Heart"]


def catalogue(count: int = 1_000) -> list[Document]:
    """Products whose attributes are spread by three coprime steps, so that every pair of values occurs."""
    return [
        Document(
            id=f"d{n}",
            title=f"Thing {n}",
            text="",
            metadata={
                "brand": f"Brand{n % 5}",
                "attributes": {
                    "colour": COLOURS[n % 8],
                    "material": MATERIALS[n % 7],
                    "shape": SHAPES[(n // 3) % 6],
                    "foldable": n % 2 == 0,
                    "internal_memory": float(n % 9),
                    "package_weight": float(n),
                },
            },
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def intents() -> IntentSet:
    return make_intents(catalogue(), IntentSettings(queries=600, relevant_max=100))


def test_relevant_documents_hold_every_value_that_the_query_names(intents: IntentSet) -> None:
    values = {d.id: {(a.key, a.phrase.lower()) for a in document_attributes(d)} for d in catalogue()}
    brand_of = {d.id: d.metadata["brand"].lower() for d in catalogue()}
    brands = {f"brand{n}" for n in range(5)}
    for split in SPLITS:
        for query in intents.queries[split]:
            wanted = {(key, phrase) for key, phrase in query.metadata["attributes"]}
            brand = next((word for word in query.text.split() if word in brands), None)
            expected = {
                document_id
                for document_id, has in values.items()
                if wanted <= has and (brand is None or brand_of[document_id] == brand)
            }
            assert expected == set(intents.qrels[split][query.id]), query


def test_value_split_holds_out_whole_values(intents: IntentSet) -> None:
    def values(split: str) -> set[str]:
        return {phrase for query in intents.queries[split] for _, phrase in query.metadata["attributes"]}

    trained = values("train") | values("dev")
    assert intents.queries["test_value"]
    for query in intents.queries["test_value"]:
        assert any(phrase not in trained for _, phrase in query.metadata["attributes"])


def test_pair_split_holds_out_pairs_of_values_that_were_trained(intents: IntentSet) -> None:
    def pairs(split: str) -> set[frozenset[str]]:
        return {frozenset(p for _, p in query.metadata["attributes"][:2]) for query in intents.queries[split]}

    trained = {phrase for query in intents.queries["train"] for _, phrase in query.metadata["attributes"]}
    assert pairs("test_pair")
    assert not pairs("test_pair") & pairs("train")
    assert not pairs("test_pair") & pairs("dev")
    for query in intents.queries["test_pair"]:
        assert all(phrase in trained for _, phrase in query.metadata["attributes"])


def test_no_two_queries_have_the_same_terms(intents: IntentSet) -> None:
    terms = [frozenset(analyze(query.text)) for split in SPLITS for query in intents.queries[split]]
    assert len(terms) == len(set(terms))


def test_the_same_catalogue_and_seed_give_the_same_queries(intents: IntentSet) -> None:
    again = make_intents(catalogue(), IntentSettings(queries=600, relevant_max=100))
    assert again == intents
    other = make_intents(catalogue(), IntentSettings(queries=600, relevant_max=100, seed=8))
    assert other.queries["train"] != intents.queries["train"]


def test_no_query_asks_for_packing(intents: IntentSet) -> None:
    assert not any("package" in query.text for split in SPLITS for query in intents.queries[split])


def test_intents_come_back_from_their_files(tmp_path: Path, intents: IntentSet) -> None:
    write_intents(tmp_path, intents)
    for split in SPLITS:
        assert load_intents(tmp_path, split) == (intents.queries[split], intents.qrels[split])
    fewer = intents._replace(queries=intents.queries | {"dev": []}, qrels=intents.qrels | {"dev": {}})
    write_intents(tmp_path, fewer)
    assert load_intents(tmp_path, "dev") == ([], {})
    with pytest.raises(CorpusError, match="has no intent queries"):
        load_intents(tmp_path / "elsewhere", "train")
    with pytest.raises(CorpusError, match="expected a split of"):
        load_intents(tmp_path, "test")


def test_a_catalogue_without_attributes_gives_no_intents_but_pseudo_queries() -> None:
    documents = [
        Document(id=f"d{n}", title="", text=f"the {COLOURS[n % 8]} {SHAPES[n % 6]} thing made of {MATERIALS[n % 7]}")
        for n in range(200)
    ]
    assert make_intents(documents, IntentSettings()).queries == {split: [] for split in SPLITS}
    pseudo = pseudo_queries(documents, IntentSettings(queries=50))
    assert len(pseudo.queries["train"]) > 20
    assert all(2 <= len(query.text.split()) <= 4 for query in pseudo.queries["train"])


def test_a_catalogue_whose_values_never_meet_is_refused() -> None:
    documents = [
        Document(id=f"d{n}", title="", text="", metadata={"attributes": {"colour": COLOURS[n % 2], "own": f"x{n}"}})
        for n in range(40)
    ]
    with pytest.raises(CorpusError, match="no two attribute values are shared by 3 to 200 documents"):
        make_intents(documents, IntentSettings(value_share_max=0.9))
