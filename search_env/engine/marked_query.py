"""A search body of somebody else, with the places of the query marked in it.

A marked text is a JSON value, never a piece of JSON. So a query or an expansion replaces a value, and cannot change the
body. The marks are `{{query}}`, for the user's query, and `{{expansions}}`, for the words beside it.

Expansions need a place where they can add documents without passing the owner's filters. Without a mark of their own,
they stand beside the clause that holds the query: that clause becomes `bool.should` of itself and of them. Of several
such clauses, it is the one that each document must match; if none must be matched, it is the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from search_env.engine.forms import Body
from search_env.engine.ownership import IndexingError
from streams.inputs.json_rows import json_kind

QUERY, EXPANSIONS = "{{query}}", "{{expansions}}"

RANKING_PARTS = frozenset({
    "query", "sort", "collapse", "rescore", "post_filter", "min_score", "runtime_mappings", "indices_boost", "knn",
    "retriever", "track_scores",
})  # fmt: skip
"""The parts of a body that decide the ranking; they stay as they are."""

DROPPED_PARTS = frozenset({
    "size", "from", "_source", "fields", "stored_fields", "docvalue_fields", "highlight", "aggs", "aggregations",
    "suggest", "explain", "profile", "track_total_hits", "timeout", "version", "seq_no_primary_term", "script_fields",
    "stats", "ext", "terminate_after",
})  # fmt: skip
"""The parts of a body that only add to the answer or limit it; searchloop asks for what it needs."""

CLAUSES = frozenset({
    "match", "multi_match", "match_phrase", "match_phrase_prefix", "match_bool_prefix", "combined_fields",
    "simple_query_string", "term", "terms", "prefix", "fuzzy", "more_like_this", "semantic", "knn", "text_expansion",
    "sparse_vector",
})  # fmt: skip
"""The clauses in which a query may stand as a value."""

_AS_CODE = {
    "query_string": "its syntax would be read in a person's words; use simple_query_string or multi_match",
    "script": "it would be read as code",
    "script_score": "it would be read as code",
    "regexp": "it would be read as a pattern; use match",
    "wildcard": "it would be read as a pattern; use match",
    "wrapper": "its content is encoded",
}
_OPTIONAL = frozenset({"should", "queries", "dis_max"})
_NO_PLACE = frozenset({"filter", "must_not", "post_filter", "rescore", "functions", "negative", "knn", "nested"})

_Path = tuple[str | int, ...]


class Marked(NamedTuple):
    """A checked body. raw: searched without expansions. helped: searched with them; both hold the mark of the query."""

    raw: Body
    helped: Body


def read_body(body: Any, *, source: str) -> Body:
    """Return the parts of a search body that decide the ranking.

    source: the name of the body in errors. Raises IndexingError for another value, an unknown part, or a body without a
    query, or whose query stands where it would be read as code.
    """
    if not isinstance(body, dict):
        raise IndexingError(f"{source}: expected a search body (an object), got {json_kind(body)}")
    if "query" not in body and "retriever" not in body and len(body) == 1 and next(iter(body)) in {*CLAUSES, "bool"}:
        raise IndexingError(f'{source}: expected a search body such as {{"query": …}}, got the query alone. Wrap it')
    if unknown := sorted(set(body) - RANKING_PARTS - DROPPED_PARTS):
        raise IndexingError(
            f"{source}: unknown part {', '.join(map(repr, unknown))}. Expected {', '.join(sorted(RANKING_PARTS))}"
        )
    kept = {name: part for name, part in body.items() if name in RANKING_PARTS}
    places = list(_marks(kept, QUERY))
    if not places:
        raise IndexingError(f"{source}: expected {QUERY} where a person's query stands, as a whole value; got none")
    for path in [*places, *_marks(kept, EXPANSIONS)]:
        for step in path:
            if step in _AS_CODE:
                raise IndexingError(
                    f"{source}: {_named(path)}: a query may not stand in {step!r}: {_AS_CODE[str(step)]}"
                )
    return kept


def mark_expansions(raw: Body, helped: Body | None = None, *, source: str) -> Marked:
    """Return a body together with the place of its expansions.

    raw, helped: from `read_body`; None takes one body for both. If `helped` has no mark for expansions, they get a
    place beside the query. Raises IndexingError if there is none, and says how to mark it.
    """
    helped = raw if helped is None else helped
    if not list(_marks(helped, EXPANSIONS)):
        helped = _with_place(helped, source)
    raw = without_expansions(raw)
    if left := [*_marks(raw, EXPANSIONS)]:
        raise IndexingError(
            f"{source}: {_named(left[0])}: expected {EXPANSIONS} inside a list of clauses (bool.should), because its "
            "clause goes if there are no expansions; got it elsewhere"
        )
    if not list(_marks(raw, QUERY)):
        raise IndexingError(f"{source}: expected {QUERY} also outside the clauses of {EXPANSIONS}")
    return Marked(raw=raw, helped=helped)


def fill(body: Body, query: str, clauses: Sequence[dict[str, Any]] = (), words: str = "") -> Body:
    """Return a body with its marks replaced: by the query, by the clauses as elements of a list, or by the words."""
    return dict(_filled(body, query, list(clauses), words))


def without_expansions(body: Body) -> Body:
    """Return a body without the places of the expansions; a clause that holds their mark goes with it."""
    return dict(_dropped(body))


def _with_place(body: Body, source: str) -> Body:
    found = [path for path in map(_clause, _marks(body, QUERY)) if path]
    places = list(dict.fromkeys(path for path in found if not _NO_PLACE.intersection(path)))
    needed = [path for path in places if not _OPTIONAL.intersection(path)]
    if not places or len(needed) > 1:
        said = (
            "the query stands in filters or rescorers only"
            if not places
            else f"a document must match the query in {len(needed)} clauses ({', '.join(map(_named, needed))})"
        )
        raise IndexingError(
            f"{source}: expansions have no place: {said}. Put {EXPANSIONS} as an element of the list of clauses "
            "(bool.should) where they belong"
        )
    return dict(_beside((needed or places)[0], body))


def _beside(path: _Path, value: Any) -> Any:
    if not path:
        return {"bool": {"should": [value, EXPANSIONS]}}
    step, *rest = path
    if isinstance(value, dict):
        return {key: _beside(tuple(rest), each) if key == step else each for key, each in value.items()}
    return [_beside(tuple(rest), each) if number == step else each for number, each in enumerate(value)]


def _clause(path: _Path) -> _Path:
    """Return the path of the innermost clause that holds a mark; empty if none does."""
    for place in range(len(path) - 1, -1, -1):
        if path[place] in CLAUSES:
            return path[:place]
    return ()


def _marks(value: Any, mark: str, path: _Path = ()) -> Iterator[_Path]:
    if isinstance(value, str):
        if mark in value:
            yield path
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _marks(each, mark, (*path, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _marks(each, mark, (*path, number))


_MARK = re.compile(r"\{\{(query|expansions)\}\}")


def _filled(value: Any, query: str, clauses: list[dict[str, Any]], words: str) -> Any:
    if isinstance(value, str):
        # In one pass: a query that holds a mark is not replaced again.
        return _MARK.sub(lambda found: query if found[1] == "query" else words, value)
    if isinstance(value, dict):
        return {key: _filled(each, query, clauses, words) for key, each in value.items()}
    if isinstance(value, list):
        filled: list[Any] = []
        for each in value:
            filled.extend(clauses if each == EXPANSIONS else [_filled(each, query, clauses, words)])
        return filled
    return value


def _dropped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _dropped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_dropped(each) for each in value if not list(_marks(each, EXPANSIONS)) or list(_marks(each, QUERY))]
    return value


def _named(path: _Path) -> str:
    return ".".join(map(str, path))
