"""Demand is one file, and lists judge by attributes alone, with products that no split shares with the test."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from search_env.catalogue.attributes import document_attributes, document_brand
from search_env.catalogue.corpora import CorpusError, Document, Query
from search_env.catalogue.demand import DemandSettings, load_or_make_demand, make_demand
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.catalogue.named_documents import NamedDocuments
from search_env.queries.judged_lists import JudgedLists, ListSettings, load_lists, make_lists, write_lists
from search_env.queries.shops import lacks
from search_env.summaries.products import asked_keys
from search_env.summaries.values import ProductValues, ValuesOrder

DEMAND = DemandSettings(key_documents_min=5)
LISTS = ListSettings(values_min=1, train=60, dev=20, test=30, candidates=8)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(demo_catalogue(DemoSettings(products=400)))


@pytest.fixture(scope="module")
def lists(documents: list[Document]) -> dict[str, JudgedLists]:
    return make_lists(documents, make_demand(documents, DEMAND), LISTS)


def test_demand_is_made_once_and_found_again(documents: list[Document], tmp_path: Path) -> None:
    path = tmp_path / "demand.json"
    first = load_or_make_demand(path, documents, DEMAND)
    assert load_or_make_demand(path, documents[:3], DEMAND) == first
    with pytest.raises(CorpusError, match="other \\[demand\\] settings"):
        load_or_make_demand(path, documents, msgspec.structs.replace(DEMAND, seed=99))


def test_demand_does_not_depend_on_the_order_of_the_catalogue(documents: list[Document]) -> None:
    assert make_demand(documents[::-1], DEMAND).weights == make_demand(documents, DEMAND).weights


def test_demand_is_skewed_as_the_exponent_says(documents: list[Document]) -> None:
    weights = sorted(make_demand(documents, DEMAND).weights.values(), reverse=True)
    assert weights[:3] == pytest.approx([1, 1 / 2, 1 / 3])
    assert set(make_demand(documents, msgspec.structs.replace(DEMAND, exponent=0)).weights.values()) == {1.0}


def test_a_grade_is_a_match_of_all_asked_values(documents: list[Document], lists: dict[str, JudgedLists]) -> None:
    by_id = {document.id: document for document in documents}
    for queries, qrels in lists.values():
        for query in queries:
            relevant = [by_id[each] for each, grade in qrels[query.id].items() if grade]
            keys = query.metadata["keys"]
            said = [
                tuple(a.phrase.lower() for key in keys for a in document_attributes(document) if a.key == key)
                for document in relevant
            ]
            assert relevant
            assert all(any(phrase in query.text for phrase in each) for each in said)


def test_a_relevant_title_lacks_what_is_asked(documents: list[Document], lists: dict[str, JudgedLists]) -> None:
    by_id = {document.id: document for document in documents}
    for queries, qrels in lists.values():
        for query in queries:
            for each, grade in qrels[query.id].items():
                if grade:
                    brand = document_brand(by_id[each]).lower()
                    assert lacks(by_id[each].title, query.text.removeprefix(brand).strip())


def test_no_product_of_a_test_list_stands_in_a_training_list(lists: dict[str, JudgedLists]) -> None:
    held = {each for of in lists["test"].qrels.values() for each in of}
    taught = {each for split in ("train", "dev") for of in lists[split].qrels.values() for each in of}
    assert held
    assert not held & taught
    texts = [query.text for split in lists.values() for query in split.queries]
    assert len(texts) == len(set(texts))


def test_lists_survive_the_disk(lists: dict[str, JudgedLists], tmp_path: Path) -> None:
    write_lists(tmp_path, lists)
    for split, made in lists.items():
        assert load_lists(tmp_path, split) == made


def test_methods_order_the_same_values_differently(documents: list[Document], lists: dict[str, JudgedLists]) -> None:
    values = ProductValues(NamedDocuments(documents), asked_keys(lists["train"].queries))
    document = max(documents, key=lambda each: len(values.product(each.id).values)).id
    count = len(values.product(document).values)
    for method in (
        values.by_key_counts,
        values.by_key_counts_per_word,
        values.by_key_rates,
        values.by_rarity,
        values.by_chance,
    ):
        assert sorted(method(document)) == list(range(1, count + 1))
    counts = [values.counts.get(values.keys(document)[number - 1], 0) for number in values.by_key_counts(document)]
    assert counts == sorted(counts, reverse=True)
    rates = [
        values.rate(key, v) for key, (_, v) in zip(values.keys(document), values.product(document).values, strict=True)
    ]
    assert rates == sorted(rates, reverse=True)
    last = values.keys(document)[-1]
    assert values.keys(document)[values.asked(document, [last])[0] - 1] == last
    assert all(lacks(values.product(document).title, phrase) for _, phrase in values.product(document).values)


def shop(asked: list[str], *, order: ValuesOrder = "rates") -> ProductValues:
    """Return 120 products with a colour, of which 10 have a lens too, and a log that asks for these keys."""

    def attributes(number: int) -> dict[str, str]:
        colour = {"colour": "black" if number < 90 else f"shade of {number % 7}"}
        return colour | ({"lens": f"zoom of {number % 3}"} if number >= 110 else {})

    documents = [
        Document(id=str(n), title="camera", text="", metadata={"attributes": attributes(n)}) for n in range(120)
    ]
    return ProductValues(NamedDocuments(documents), Counter(asked), order=order)


def test_a_key_of_few_products_that_is_asked_often_of_them_comes_first_by_rate_alone() -> None:
    values = shop(["colour"] * 20 + ["lens"] * 15)
    first = {
        name: values.keys("119")[method("119")[0] - 1]
        for name, method in (("log", values.by_key_counts), ("rate", values.by_key_rates))
    }
    assert first == {"log": "colour", "rate": "lens"}


@pytest.mark.parametrize(("order", "keys"), [("counts", ("colour", "lens")), ("rates", ("lens", "colour"))])
def test_values_are_shown_in_the_order_that_was_asked_for(order: ValuesOrder, keys: tuple[str, str]) -> None:
    values = shop(["colour"] * 20 + ["lens"] * 15, order=order)
    assert values.keys("119") == keys
    assert values.product("119").values[0][0] == keys[0]
    best = {"counts": values.by_key_counts, "rates": values.by_key_rates}[order]
    assert best("119") == [1, 2]


def test_in_the_catalogues_order_nothing_is_sorted() -> None:
    values = shop(["lens"] * 15, order="document")
    assert values.keys("119") == ("colour", "lens")
    assert values.by_key_counts("119") == [2, 1]


def test_a_log_names_its_keys_in_either_way() -> None:
    queries = [
        Query(id="a", text="red cable", metadata={"keys": ["colour", "type"]}),
        Query(id="b", text="red 2 m", metadata={"attributes": [["colour", "red"], ["length", "2 m"]]}),
        Query(id="c", text="a human's"),
    ]
    assert asked_keys(queries) == {"colour": 2, "type": 1, "length": 1}


def test_a_value_that_most_holders_share_has_a_twentieth_of_its_keys_rate() -> None:
    values = shop(["colour"] * 20)
    assert values.rate("colour", "black") == pytest.approx(values.rate("colour", "shade of 5") / 20)
