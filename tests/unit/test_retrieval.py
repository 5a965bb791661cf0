"""Retrieval: how expanded queries are searched and merged, and that no failure ever looks like an empty ranking."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from search_env.catalogue.corpora import Ranking
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.forms import OwnForm
from search_env.engine.searching import (
    EngineUnavailable,
    ExpandedQuery,
    Mode,
    RetrievalError,
    RetrievalSettings,
    Searcher,
    expanded_bodies,
    fusion_of,
    union_of,
)
from streams.errors import SettingsError
from tests.engine_fakes import FakeEngine, Script, fake_engine, hits, responses

QUICK = ElasticsearchSettings(retries_max=2, backoff_first_seconds=0.001, backoff_seconds_max=0.002, timeout_seconds=5)


def expanded_query(query: str, expansions: Sequence[str], settings: RetrievalSettings) -> list[dict[str, Any]]:
    return [body["query"] for body in expanded_bodies(OwnForm("things-1"), query, expansions, settings, size=10)]


@contextmanager
def retriever(script: Script, **changes: object) -> Iterator[tuple[Searcher, FakeEngine]]:
    with fake_engine(script) as engine:
        settings = ElasticsearchSettings(**{**_fields(QUICK), "url": engine.url})
        client = connect(settings)
        made = Searcher(client, "things-1", RetrievalSettings(**{"item_pause_seconds": 0.001, **changes}))
        try:
            yield made, engine
        finally:
            made.close()
            client.close()


def _fields(settings: ElasticsearchSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def test_generated_text_is_only_ever_matched() -> None:
    evil = 'red") OR *:* {"query_string": {"query": "*"}} ~/.*/'
    (query,) = expanded_query("mug", [evil, "cup"], RetrievalSettings(weight=0.5, rank_discount=0, whole_boost=0))
    assert query == {
        "bool": {
            "should": [
                {"match": {"contents": {"query": "mug"}}},
                {"match": {"contents": {"query": evil, "boost": 0.5}}},
                {"match": {"contents": {"query": "cup", "boost": 0.5}}},
            ]
        }
    }


def test_what_is_said_first_is_said_loudest() -> None:
    (query,) = expanded_query("mug", ["cup", "glass", "jar", "pot"], RetrievalSettings(weight=2.0, rank_discount=0.5))
    raw, *said, whole = (part["match"]["contents"] for part in query["bool"]["should"])
    assert raw == {"query": "mug"}
    assert [(part["query"], part["boost"]) for part in said] == [
        ("cup", 2.0),
        ("glass", 1.414214),
        ("jar", 1.154701),
        ("pot", 1.0),
    ]
    assert whole["operator"] == "and"


def test_no_expansion_is_the_raw_query_in_every_mode() -> None:
    modes: list[Mode] = ["weighted", "union", "fusion"]
    for mode in modes:
        assert expanded_query("mug", [], RetrievalSettings(mode=mode)) == [{"match": {"contents": {"query": "mug"}}}]


@pytest.mark.parametrize("mode", ["weighted", "union", "fusion"])
def test_a_query_of_fewer_terms_than_are_asked_for_is_searched_as_it_is(mode: Mode) -> None:
    settings = RetrievalSettings(mode=mode, expanded_terms_min=2)
    for query in ("mug", "the mugs mug"):  # One term, once analysed.
        assert expanded_query(query, ["cup"], settings) == expanded_query(query, [], settings)
    assert expanded_query("red mug", ["cup"], settings) != expanded_query("red mug", [], settings)


def test_union_orders_by_best_rank_with_the_query_first() -> None:
    merged = union_of([Ranking(["a", "b", "c"], [3, 2, 1]), Ranking(["c", "d"], [9, 8])], size=10)
    assert merged.ids == ["a", "c", "b", "d"]
    assert merged.scores == [1.0, 1.0, 0.5, 0.5]


def test_fusion_sums_reciprocal_ranks_and_breaks_ties_by_id() -> None:
    merged = fusion_of([Ranking(["b", "a"], [2, 1]), Ranking(["a", "b"], [2, 1]), Ranking(["c"], [1])], size=10)
    assert merged.ids == ["a", "b", "c"]
    assert merged.scores == pytest.approx([1 / 61 + 1 / 62, 1 / 61 + 1 / 62, 1 / 61])
    assert fusion_of([Ranking(["b", "a"], [2, 1])], size=1).ids == ["b"]


@pytest.mark.parametrize(("mode", "ids"), [("union", ["a", "b", "c"]), ("fusion", ["b", "a", "c"])])
def test_lists_are_searched_apart_and_merged(mode: str, ids: list[str]) -> None:
    found = {"mug": hits(("a", 2.0), ("b", 1.0)), "cup": hits(("b", 2.0), ("c", 1.0))}

    def script(number: int, bodies: list[dict]) -> object:  # type: ignore[type-arg]
        return responses(*(found[body["query"]["match"]["contents"]["query"]] for body in bodies))

    with retriever(script, mode=mode) as (searcher, _):
        assert searcher.search_many([ExpandedQuery("mug", ("cup",))], size=10)[0].ids == ids


def test_answers_come_back_in_order_over_many_batches() -> None:
    def script(number: int, bodies: list[dict]) -> object:  # type: ignore[type-arg]
        return responses(*(hits((body["query"]["match"]["contents"]["query"], 1.0)) for body in bodies))

    with retriever(script, batch_searches=3, in_flight=2) as (searcher, engine):
        queries = [f"q{number}" for number in range(10)]
        assert [ranking.ids[0] for ranking in searcher.search_many(queries, size=1)] == queries
        assert sorted(len(bodies) for bodies in engine.requests) == [1, 3, 3, 3]
        assert searcher.search_many([], size=1) == []


def test_a_search_that_finds_nothing_is_an_empty_ranking() -> None:
    with retriever(lambda number, bodies: responses({"status": 200})) as (searcher, _):
        assert searcher.search_many(["nothing"], size=5) == [Ranking([], [])]


ERROR = {"type": "x_error", "reason": "all shards failed", "root_cause": [{"type": "x_error", "reason": "too deep"}]}


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ({"status": 400, "error": ERROR}, "status 400: x_error: too deep"),
        ({"status": 404, "error": {"type": "index_not_found_exception", "reason": "no such index"}}, "no such index"),
        ({"status": 200, "error": ERROR}, "too deep"),
    ],
)
def test_one_failed_search_fails_alone(item: dict, complaint: str) -> None:  # type: ignore[type-arg]
    with retriever(lambda number, bodies: responses(hits(("a", 1.0)), item)) as (searcher, _):
        good, bad = searcher.try_many(["one", "two"], size=5)
        assert good == Ranking(["a"], [1.0])
        assert isinstance(bad, RetrievalError)
        assert not isinstance(bad, EngineUnavailable)
        assert complaint in str(bad)
        with pytest.raises(RetrievalError, match=complaint):
            searcher.search_many(["three", "two"], size=5)


def test_a_search_that_was_answered_is_not_asked_again_and_a_failed_one_is() -> None:
    wrong = {"status": 400, "error": ERROR}
    answers = [responses(hits(("a", 1.0)), wrong), responses(hits(("b", 2.0)))]
    with retriever(lambda number, bodies: answers[number]) as (searcher, engine):
        searcher.try_many(["one", "two"], size=5)
        assert searcher.try_many(["one", "two"], size=5) == [Ranking(["a"], [1.0]), Ranking(["b"], [2.0])]
        assert searcher.search_many(["two", "one"], size=5) == [Ranking(["b"], [2.0]), Ranking(["a"], [1.0])]
        assert [len(bodies) for bodies in engine.requests] == [2, 1]


@pytest.mark.parametrize(
    "refusal",
    [
        {"status": 429, "error": {"reason": "queue is full"}},
        {"status": 200, "timed_out": True, "hits": {"hits": []}},
        {"status": 200, "_shards": {"failed": 1}, "hits": {"hits": [{"sort": [1.0, "x"]}]}},
    ],
)
def test_a_search_refused_or_answered_in_part_is_sent_again_alone(refusal: dict) -> None:  # type: ignore[type-arg]
    def script(number: int, bodies: list[dict]) -> object:  # type: ignore[type-arg]
        if number == 0:
            return responses(hits(("a", 1.0)), refusal)
        return responses(hits(("b", 1.0)))

    with retriever(script) as (searcher, engine):
        assert [ranking.ids for ranking in searcher.search_many(["one", "two"], size=5)] == [["a"], ["b"]]
        assert [len(bodies) for bodies in engine.requests] == [2, 1]


def test_a_search_refused_again_and_again_means_the_engine_is_unavailable() -> None:
    refused = {"status": 429, "error": {"type": "es_rejected", "reason": "queue is full"}}
    with (
        retriever(lambda number, bodies: responses(refused), item_retries=2) as (searcher, engine),
        pytest.raises(
            EngineUnavailable, match="refused 1 of 1 searches on 'things-1' 3 times: es_rejected: queue is full"
        ),
    ):
        searcher.search_many(["one"], size=5)
    assert len(engine.requests) == 3


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (None, "did not answer"),
        ((200, b'{"responses": [{"status": 20'), "did not answer"),
        ((200, b'{"responses": []}'), "cut its answer off"),
        ((200, b""), "cut its answer off"),
        ((503, b'{"error": {"reason": "no master"}}'), "status 503"),
        ((429, b"{}"), "status 429"),
    ],
)
def test_an_engine_that_is_down_raises_and_is_asked_again_first(answer: object, complaint: str) -> None:
    with (
        retriever(lambda number, bodies: answer) as (searcher, engine),
        pytest.raises(EngineUnavailable, match=complaint),
    ):
        searcher.try_many(["one"], size=5)
    if answer is None or answer[0] != 200:  # type: ignore[index]
        assert len(engine.requests) == 3


def test_an_engine_that_recovers_between_retries_is_not_noticed() -> None:
    def script(number: int, bodies: list[dict]) -> object:  # type: ignore[type-arg]
        return (503, b"{}") if number < 2 else responses(hits(("a", 1.0)))

    with retriever(script) as (searcher, _):
        assert searcher.search_many(["one"], size=5)[0].ids == ["a"]


@pytest.mark.parametrize("retries", [0, 1])
def test_an_address_where_nothing_answers_is_named_in_one_line(retries: int) -> None:
    with fake_engine(lambda number, bodies: None) as engine:
        url = engine.url  # Free again after this.
    client = connect(ElasticsearchSettings(url=url, retries_max=retries, backoff_first_seconds=0.001))
    with (
        contextlib.closing(Searcher(client, "things-1", RetrievalSettings())) as searcher,
        pytest.raises(EngineUnavailable) as caught,
    ):
        searcher.search_many(["one"], size=5)
    assert str(caught.value) == (
        f"Elasticsearch did not answer: ConnectionError: {url.removeprefix('http://')}: Failed to establish a new "
        "connection: [Errno 111] Connection refused. Look with: searchloop status"
    )


def test_a_missing_index_says_what_to_run() -> None:
    body = b'{"error": {"type": "index_not_found_exception", "reason": "no such index [things-1]"}, "status": 404}'
    with (
        retriever(lambda number, bodies: (404, body)) as (searcher, _),
        pytest.raises(RetrievalError, match=r"no such index \[things-1\].*searchloop index"),
    ):
        searcher.search_many(["one"], size=5)


@pytest.mark.parametrize("size", [0, 10_001])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with (
        retriever(lambda number, bodies: None) as (searcher, engine),
        pytest.raises(RetrievalError, match="1 to 10000 documents"),
    ):
        searcher.search_many(["one"], size=size)
    assert engine.requests == []


def test_no_url_says_what_to_run_and_keys_are_never_shown() -> None:
    with pytest.raises(SettingsError, match="searchloop up"):
        connect(ElasticsearchSettings())
    assert "hunter2" not in repr(ElasticsearchSettings(url="https://x:1", api_key="hunter2"))
