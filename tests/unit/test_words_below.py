"""Results below raw ones: a query of one word gets a version's words there, and nowhere else."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from infra.app.app import App
from infra.promotion.held_out import HeldOutRuns, measured, without_trained
from infra.promotion.served import served_rankings
from infra.recipes.leser import expanding, searching
from infra.serving.engine import AsyncSearcher
from infra.serving.finding import _ranking
from search_env.catalogue.corpora import Query, Ranking
from search_env.engine.forms import OwnForm
from search_env.engine.searching import RetrievalSettings
from search_env.serving.routing import Part, RouteAction, Routes, RouteSettings

ONE, TWO = Query(id="one", text="mug"), Query(id="two", text="red mug")
RUN = RetrievalSettings(expanded_terms_min=2)


def routes(terms_min: int | None, action: RouteAction = "below", top: int = 1) -> Routes:
    return Routes(
        version="v", by="all", top=top, parts={"all": Part(action=action, explored=action)}, terms_min=terms_min
    )


class FakeEngine:
    """Answers a raw query with raw documents, and one with words with other documents."""

    async def perform_request(self, *_: Any, body: bytes, **__: Any) -> Any:
        raw = "match" in msgspec.json.decode(body)["query"]
        hits = [{"sort": [1.0, name]} for name in (("r1", "r2") if raw else ("h1", "r1"))]
        return SimpleNamespace(body={"hits": {"hits": hits}})


@pytest.mark.parametrize(
    ("query", "action", "terms_min", "expected"),
    [
        ("mug", "below", 1, ["r1", "h1", "r2"]),
        ("mug", "below", 2, ["r1", "r2"]),
        ("mug", "below", None, ["r1", "r2"]),  # Routes of an older file.
        ("mug", "helped", 1, ["r1", "r2"]),
        ("red mug", "below", 1, ["r1", "h1", "r2"]),
        ("red mug", "helped", 1, ["h1", "r1"]),
    ],
)
def test_the_server_searches_one_word_with_its_words_only_below_raw_results(
    query: str, action: RouteAction, terms_min: int | None, expected: list[str]
) -> None:
    searcher = AsyncSearcher(cast(Any, FakeEngine()), OwnForm("shop"), RUN)
    service = cast(Any, SimpleNamespace(searcher=searcher))
    found = asyncio.run(_ranking(service, query, ("cup",), action, size=3, routes=routes(terms_min)))
    assert found.ids == expected


@pytest.mark.parametrize(("terms_min", "again"), [(1, ["one"]), (2, []), (3, ["two"]), (None, [])])
def test_only_queries_that_the_two_limits_treat_differently_are_searched_again(
    monkeypatch: pytest.MonkeyPatch, terms_min: int | None, again: list[str]
) -> None:
    def find_run(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(retrieval=RUN))

    def search_queries(_: App, queries: list[Query], **given: Any) -> dict[str, Ranking]:
        assert given["terms_min"] == terms_min
        return {query.id: Ranking(["again"], [1.0]) for query in queries}

    monkeypatch.setattr(expanding, "find_run", find_run)
    monkeypatch.setattr(searching, "search_queries", search_queries)
    helped = {query.id: Ranking(["helped"], [1.0]) for query in (ONE, TWO)}
    found = searching.search_added(
        cast(Any, SimpleNamespace(home=None)),
        [ONE, TWO],
        helped,
        index="shop",
        policy="v",
        run="r",
        top=10,
        report=lambda *_: None,
        terms_min=terms_min,
    )
    assert sorted(found) == ["one", "two"]
    assert [name for name, ranking in found.items() if ranking.ids == ["again"]] == again


def test_rankings_below_come_from_the_search_for_them_and_others_do_not() -> None:
    raw = {"one": Ranking(["r1", "r2"], [2.0, 1.0])}
    added = {"one": Ranking(["h1", "r1"], [2.0, 1.0])}
    assert served_rankings([ONE], raw, raw, added, routes(1))["one"].ids == ["r1", "h1"]
    assert served_rankings([ONE], raw, raw, added, routes(1, "helped")) == raw


def test_the_gate_measures_what_stands_below_by_the_search_for_it() -> None:
    raw = {"one": {"r1": 2.0, "r2": 1.0}}
    held = HeldOutRuns({"one": "mug"}, raw, raw, {"one": {"h1": 1}}, {"one": {"h1": 1.0}})
    found = measured(held, ["R@100"], top=1)
    assert (found.raw["R@100"], found.helped["R@100"]) == ({"one": 0.0}, {"one": 0.0})
    assert found.below["R@100"] == {"one": 1.0}
    assert measured(held._replace(added=None), ["R@100"], top=1).below["R@100"] == {"one": 0.0}
    assert without_trained(held, set()).added == held.added
    assert without_trained(held, {"mug"}).added == {}


def test_a_query_of_any_length_gets_words_below_by_default_and_an_older_file_says_nothing() -> None:
    assert RouteSettings().terms_min == 1
    older = msgspec.to_builtins(routes(1))
    del older["terms_min"]
    assert msgspec.convert(older, Routes).terms_min is None
