"""Somebody's own search: where the query and the expansions stand in it, and that they stay values."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_env.engine.attachments import AttachedForm, Attachment
from search_env.engine.forms import Boosted
from search_env.engine.marked_query import EXPANSIONS, QUERY, fill, mark_expansions, read_body
from search_env.engine.ownership import IndexingError

LEAF = {"multi_match": {"query": QUERY, "fields": ["title^2", "text"]}}
PLAIN = {"query": LEAF}
FILTERED = {
    "query": {
        "function_score": {
            "query": {"bool": {"must": [LEAF], "filter": [{"term": {"in_stock": True}}]}},
            "field_value_factor": {"field": "popularity"},
        }
    },
    "size": 24,
    "_source": ["title"],
    "aggs": {"brands": {"terms": {"field": "brand"}}},
}
TWO_OPTIONAL = {"query": {"bool": {"should": [{"match": {"title": QUERY}}, {"match": {"text": QUERY}}]}}}
MUST_AND_SHOULD = {
    "query": {"bool": {"must": [LEAF], "should": [{"match_phrase": {"title": {"query": QUERY, "boost": 5}}}]}}
}
CLAUSE = {"multi_match": {"query": "cup", "fields": ["title"], "boost": 1.0}}


def attached(body: Any) -> AttachedForm:
    marked = mark_expansions(read_body(body, source="search.json"), source="search.json")
    return AttachedForm(Attachment(index="shop", searched=("title^2", "text"), raw=marked.raw, helped=marked.helped))


@pytest.mark.parametrize("body", [PLAIN, FILTERED, TWO_OPTIONAL, MUST_AND_SHOULD])
def test_the_raw_query_is_the_owners_search(body: dict[str, Any]) -> None:
    found = attached(body).body("red mug", size=10)
    expected = msgspec.json.decode(msgspec.json.encode(body["query"]).replace(QUERY.encode(), b"red mug"))
    assert found == {"query": expected, "size": 10, "_source": False, "track_total_hits": False}


def test_expansions_stand_beside_the_clause_of_the_query_inside_the_owners_filters() -> None:
    form = attached(FILTERED)
    body = form.body("red mug", [Boosted("cup", 0.5)], whole_boost=20.0, size=10)
    scored = body["query"]["function_score"]
    assert scored["field_value_factor"] == {"field": "popularity"}
    assert scored["query"]["bool"]["filter"] == [{"term": {"in_stock": True}}]
    (must,) = scored["query"]["bool"]["must"]
    raw, cup, whole = must["bool"]["should"]
    assert raw == {"multi_match": {"query": "red mug", "fields": ["title^2", "text"]}}
    assert (cup["multi_match"]["query"], cup["multi_match"]["boost"]) == ("cup", 0.5)
    assert (whole["multi_match"]["query"], whole["multi_match"]["operator"]) == ("red mug", "and")


def test_of_several_clauses_the_one_that_must_match_takes_the_expansions() -> None:
    body = attached(MUST_AND_SHOULD).body("mug", [Boosted("cup", 1.0)], size=10)["query"]["bool"]
    assert [*body["must"][0]["bool"]["should"][0]] == ["multi_match"]
    assert body["should"] == [{"match_phrase": {"title": {"query": "mug", "boost": 5}}}]


def test_of_optional_clauses_the_first_takes_them() -> None:
    first, second = attached(TWO_OPTIONAL).body("mug", [Boosted("cup", 1.0)], size=10)["query"]["bool"]["should"]
    assert first["bool"]["should"][0] == {"match": {"title": "mug"}}
    assert second == {"match": {"text": "mug"}}


def test_a_place_of_their_own_is_theirs_and_goes_without_them() -> None:
    body = {"query": {"bool": {"must": [LEAF, {"match": {"text": QUERY}}], "should": [EXPANSIONS]}}}
    form = attached(body)
    assert (
        form.body("mug", [Boosted("cup", 1.0)], size=10)["query"]["bool"]["should"][0]["multi_match"]["query"] == "cup"
    )
    assert form.body("mug", size=10)["query"]["bool"]["should"] == []


def test_a_variable_of_their_own_takes_their_words() -> None:
    body = {"query": {"bool": {"should": [LEAF, {"match": {"text": {"query": EXPANSIONS, "boost": 0.3}}}]}}}
    form = attached(body)
    helped = form.body("mug", [Boosted("cup", 1.0), Boosted("glass jar", 0.5)], size=10)["query"]["bool"]["should"]
    assert helped[1] == {"match": {"text": {"query": "cup glass jar", "boost": 0.3}}}
    assert len(form.body("mug", size=10)["query"]["bool"]["should"]) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "expected a search body"),
        (LEAF, "got the query alone"),
        ({"query": {"match_all": {}}}, r"expected \{\{query\}\}"),
        ({"query": {"match": {"title": "mug"}}}, r"expected \{\{query\}\}"),
        ({"query": {"query_string": {"query": QUERY}}}, "use simple_query_string"),
        ({"query": {"script_score": {"query": {"match_all": {}}, "script": {"source": QUERY}}}}, "read as code"),
        ({"query": {"regexp": {"title": QUERY}}}, "use match"),
        ({"query": LEAF, "script_stuff": 1}, "unknown part 'script_stuff'"),
    ],
)
def test_a_search_that_cannot_take_a_query_as_a_value_is_refused_with_the_reason(body: Any, said: str) -> None:
    with pytest.raises(IndexingError, match=rf"search\.json.*{said}"):
        read_body(body, source="search.json")


@pytest.mark.parametrize(
    "body",
    [
        {"query": {"bool": {"filter": [LEAF]}}},
        {"query": {"bool": {"must": [LEAF, {"match": {"text": QUERY}}]}}},
        {"query": {"bool": {"must": [LEAF], "filter": {"match": {"text": EXPANSIONS}}}}},
    ],
)
def test_a_search_without_a_place_for_expansions_says_how_to_mark_one(body: Any) -> None:
    with pytest.raises(IndexingError, match="list of clauses"):
        mark_expansions(read_body(body, source="search.json"), source="search.json")


HOSTILE = [
    '"}}, "query": {"match_all": {}}',
    QUERY,
    EXPANSIONS,
    "{{#x}}",
    "\u202emug\u0000",
    "*:* OR _exists_:price",
    "]" * 50,
]


@given(
    st.one_of(st.text(max_size=200), st.sampled_from(HOSTILE)),
    st.one_of(st.text(max_size=200), st.sampled_from(HOSTILE)),
)
def test_whatever_a_query_holds_the_structure_of_the_search_stays(query: str, expansion: str) -> None:
    form = attached(FILTERED)

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(each) for key, each in value.items()}
        return [shape(each) for each in value] if isinstance(value, list) else type(value).__name__

    harmless = form.body("mug", [Boosted("cup", 1.0)], whole_boost=2.0, size=10)
    hostile = form.body(query, [Boosted(expansion, 1.0)], whole_boost=2.0, size=10)
    assert shape(hostile) == shape(harmless)
    leaf, said, _ = hostile["query"]["function_score"]["query"]["bool"]["must"][0]["bool"]["should"]
    assert (leaf["multi_match"]["query"], said["multi_match"]["query"]) == (query, expansion)


def test_a_mark_in_the_query_is_not_filled_again() -> None:
    filled = fill({"query": {"bool": {"should": [{"match": {"t": QUERY}}, EXPANSIONS]}}}, EXPANSIONS, [CLAUSE], "cup")
    assert filled == {"query": {"bool": {"should": [{"match": {"t": EXPANSIONS}}, CLAUSE]}}}


@pytest.mark.parametrize(
    ("hits", "expected"),
    [
        ([("b", 2.0), ("a", 2.0), ("c", 1.0)], [("a", 2.0), ("b", 2.0), ("c", 1.0)]),
        ([("b", None), ("a", None)], [("b", 1.0), ("a", 0.5)]),
        ([("b", 1.0), ("a", 3.0)], [("b", 1.0), ("a", 0.5)]),
        ([("a", 3.0), ("a", 2.0), ("b", 1.0)], [("a", 3.0), ("b", 1.0)]),
        ([], []),
    ],
)
def test_a_ranking_keeps_the_owners_order_with_scores_that_fall(
    hits: list[tuple[str, float | None]], expected: list[tuple[str, float]]
) -> None:
    ranking = attached(PLAIN).ranking([{"_id": name, "_score": score} for name, score in hits])
    assert list(zip(ranking.ids, ranking.scores, strict=True)) == expected
