"""What a catalogue's attributes say, in whatever form they come, and what queries were made from them."""

from __future__ import annotations

import pytest

from search_env.catalogue.attributes import (
    Unread,
    document_attributes,
    document_brand,
    key_name,
    query_attributes,
    query_keys,
    raw_attributes,
    unread_attributes,
    value_phrase,
)
from search_env.catalogue.corpora import Document, Query


def product(**metadata: object) -> Document:
    return Document(id="p", title="Pen", text="", metadata=metadata)


@pytest.mark.parametrize(
    ("attributes", "said", "unread"),
    [
        ({"colour": "Red", "memory": [4, "8 GB"]}, ["Red", "memory 4", "8 GB"], None),
        (None, [], None),
        ({"colour": None, "size": []}, [], None),
        ([{"name": "colour", "value": "Red"}], [], Unread(1, "p", "an array for an object")),
        ("red", [], Unread(1, "p", "a string for an object")),
        ({"colour": "Red", "weight": {"kg": 2}}, ["Red"], Unread(1, "p", "an object as a value of 'weight'")),
        ({"sizes": [["S", "M"]]}, [], Unread(1, "p", "an array as a value of 'sizes'")),
    ],
)
def test_attributes_in_another_form_are_passed_over_and_told(
    attributes: object, said: list[str], unread: Unread | None
) -> None:
    document = product(attributes=attributes)
    assert [attribute.phrase for attribute in document_attributes(document)] == said
    assert unread_attributes([product(), document]) == unread
    assert document_brand(document) == ""
    assert raw_attributes(document) == (attributes if isinstance(attributes, dict) else {})


@pytest.mark.parametrize(
    ("metadata", "pairs", "keys"),
    [
        (
            {"attributes": [["colour", "Red"], ["shape", "Oval"]]},
            [("colour", "Red"), ("shape", "Oval")],
            ["colour", "shape"],
        ),
        ({"keys": ["colour"]}, [], ["colour"]),
        ({}, [], []),
        ({"attributes": {"colour": "Red"}, "keys": 5}, [], []),
        ({"attributes": ["Red", ""], "keys": "colour"}, [], []),
        ({"attributes": [["colour", 5]], "keys": [1]}, [], []),
        ({"attributes": [[]], "keys": None}, [], []),
    ],
)
def test_queries_of_a_users_own_may_hold_anything_beside_their_text(
    metadata: dict[str, object], pairs: list[tuple[str, str]], keys: list[str]
) -> None:
    query = Query(id="q", text="red pen", metadata=metadata)
    assert query_attributes(query) == pairs
    assert query_keys(query) == keys


@pytest.mark.parametrize(
    ("key", "value", "phrase"),
    [
        ("touchscreen", True, "touchscreen"),
        ("touchscreen", "Y", "touchscreen"),
        ("touchscreen", False, ""),
        ("internal_memory", 4.0, "4 gb"),
        ("cable_length", 1.8, "1.8 m"),
        ("hdmi_ports_quantity", 2.0, "hdmi ports quantity 2"),
        ("operating_temperature__t_t", "0 - 40", "operating temperature 0 - 40"),
        ("ink_type", "Pigment-based ink", "Pigment-based ink"),
        ("features", "x" * 61, ""),
        ("features", None, ""),
        ("features", {"a": 1}, ""),
    ],
)
def test_values_are_said_as_a_shopper_says_them(key: str, value: object, phrase: str) -> None:
    assert value_phrase(key, value) == phrase


def test_keys_are_said_as_words() -> None:
    assert key_name("intel_hyper_threading_technology__intel__ht_technology").startswith("intel hyper threading")
    assert key_name("operating_temperature__t_t") == "operating temperature"
