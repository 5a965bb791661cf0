"""What an attachment takes from an index of others: its fields, its template, its documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search_env.engine.attachments import Attachment
from search_env.engine.documents import document_of
from search_env.engine.guessed_fields import Fields, guess_fields
from search_env.engine.ownership import IndexingError
from search_env.engine.template_files import read_parameters, read_template


def test_fields_are_guessed_from_names_and_types() -> None:
    types = {
        "sku": "keyword",
        "name": "text",
        "name.raw": "keyword",
        "description": "text",
        "specs": "object",
        "specs.colour": "keyword",
        "brand": "keyword",
        "price": "double",
        "order_id": "keyword",
    }
    assert guess_fields(types, id_field="sku") == Fields("name", ("description",), ("brand", "specs.colour"))


@pytest.mark.parametrize(
    ("types", "said"),
    [({"price": "double"}, "expected a text field, got none"), ({"a": "text", "b": "text"}, "--title FIELD")],
)
def test_fields_that_cannot_be_guessed_are_asked_for(types: dict[str, str], said: str) -> None:
    with pytest.raises(IndexingError, match=said):
        guess_fields(types, id_field="_id")


def attachment(**changes: Any) -> Attachment:
    fields: dict[str, Any] = {"index": "shop", "title": "name", "searched": ("name",), "raw": {}, "helped": {}}
    return Attachment(**(fields | changes))


@pytest.mark.parametrize(
    ("source", "attributes"),
    [
        ({"specs": {"colour": "red", "sizes": ["S", "M"]}}, {"colour": "red", "sizes": ["S", "M"]}),
        (
            {"specs": [{"name": "colour", "value": "red"}, {"name": "size", "value": "S"}]},
            {"colour": "red", "size": "S"},
        ),
        ({"specs": "red"}, {"specs": "red"}),
        ({"specs": ["red"]}, {"specs": "red"}),
        ({"specs": None}, {}),
        ({}, {}),
    ],
)
def test_attributes_come_as_values_objects_or_pairs(source: dict[str, Any], attributes: dict[str, Any]) -> None:
    document = document_of({"_id": "1", "_source": {"name": "mug", **source}}, attachment(attributes=("specs",)))
    assert (document.id, document.title) == ("1", "mug")
    assert document.metadata.get("attributes", {}) == attributes


def test_a_document_is_read_from_dotted_nested_and_stored_fields_and_comes_clean() -> None:
    asked = attachment(id_field="ids.sku", title="product.name", texts=("body", "more"))
    hit = {
        "_id": "x",
        "_source": {"product": {"name": "red\u202e mug\n"}, "ids.sku": 17},
        "fields": {"body": ["a cup"], "more": ["of", "tea"]},
    }
    document = document_of(hit, asked)
    assert (document.id, document.title, document.text) == ("17", "red mug", "a cup of tea")


def test_a_template_file_gets_its_variables_and_keeps_the_marks(tmp_path: Path) -> None:
    path, values = tmp_path / "t.json", tmp_path / "v.json"
    path.write_text(
        '{"query": {"bool": {"must": {"match": {"name": "{{{ q }}}"}}, '
        '"filter": {"range": {"stock": {"gte": {{least}}}}}}},'
        ' "size": {{ n }}, "sort": ["{{by}}"]}'
    )
    values.write_text('{"least": 1, "n": 10, "by": "_score"}')
    body = read_template(path, query="q", expansions="", parameters=read_parameters(values))
    assert body == {
        "query": {"bool": {"must": {"match": {"name": "{{query}}"}}, "filter": {"range": {"stock": {"gte": 1}}}}},
        "size": 10,
        "sort": ["_score"],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"query": {"match": {"name": "{{q}}"}}, "size": {{n}}}', r"variable \{\{n\}\} has no value.*--parameters"),
        ('{"query": {"match": {"name": "{{other}}"}}}', "--query-variable"),
        ('{{#filters}}{"query": 1}{{/filters}}', "got a section"),
        ('{"query": ', "expected the JSON of a search body"),
    ],
)
def test_a_template_file_that_cannot_be_read_says_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(IndexingError, match=said):
        read_template(path, query="q", expansions="", parameters={})
