"""A training query that the search engine refuses for good does not end its run at each start."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.app.home import IndexFolder, RunFolder
from infra.recipes.leser import later
from infra.recipes.leser.later import REFUSED_MAX, LaterContexts
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.errors import EngineUnavailable, RetrievalError, SearchRefusedError
from search_env.engine.searching import RetrievalSettings, Searcher
from streams.events import Context
from tests.engine_fakes import FakeEngine, fake_engine, hits, responses

FOUND, NONE = Context(terms=("mug",), documents=3), Context()


class FakeIndex:
    """An index that answers each query with what is said of it."""

    def __init__(self, said: dict[str, Exception]) -> None:
        self.said = said
        self.asked: list[str] = []

    def contexts(self, queries: Sequence[str], words: object = None) -> list[Context]:
        self.asked += queries
        for query in queries:
            if (error := self.said.get(query)) is not None:
                raise error
        return [FOUND for _ in queries]

    def no_context(self) -> Context:
        return NONE


def contexts_of(index: FakeIndex, tmp_path: Path) -> LaterContexts:
    app: Any = None
    found = LaterContexts(app, IndexFolder(tmp_path), RunFolder(tmp_path), file="x", report=lambda *_: None)
    found._opened = index  # type: ignore[assignment]
    return found


def test_a_refused_query_is_asked_without_context_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused = SearchRefusedError("search failed with status 400: too_many_clauses")
    contexts = contexts_of(FakeIndex({"a\x1b[2J" * 100: refused}), tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [contexts.context(query) for query in ("mug", "a\x1b[2J" * 100, "cup")] == [FOUND, NONE, FOUND]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "refuses the training query 'a\\x1b[2Ja" in line and "too_many_clauses" in line
    assert "\x1b" not in line and len(line) < 1000


def test_an_engine_that_refuses_every_query_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    refused = SearchRefusedError("search failed with status 400: no such field")
    contexts = contexts_of(FakeIndex({f"q{n}": refused for n in range(2 * REFUSED_MAX)}), tmp_path)
    for number in range(REFUSED_MAX):
        assert contexts.context(f"q{number}") == NONE
    with pytest.raises(RetrievalError, match=rf"refused the last {REFUSED_MAX + 1} training queries: .*no such field"):
        contexts.context(f"q{REFUSED_MAX}")
    assert contexts.context("mug") == FOUND
    assert contexts.context("q1") == NONE


def test_another_refusal_ends_the_run_and_an_engine_that_is_away_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(later, "PAUSE_SECONDS", 0.0)
    index = FakeIndex({"mug": RetrievalError("no index"), "cup": EngineUnavailable("away")})
    contexts = contexts_of(index, tmp_path)
    with pytest.raises(RetrievalError, match="no index"):
        contexts.context("mug")
    assert index.asked == ["mug"]
    with pytest.raises(EngineUnavailable):
        contexts.context("cup")
    assert index.asked.count("cup") == later.TRIES


def searcher_of(engine: FakeEngine) -> Searcher:
    return Searcher(connect(ElasticsearchSettings(url=engine.url, retries_max=0)), "shop-1", RetrievalSettings())


@pytest.mark.parametrize(("status", "kind"), [(400, SearchRefusedError), (404, RetrievalError)])
def test_one_search_of_a_batch_may_be_refused(status: int, kind: type[RetrievalError]) -> None:
    refusal = {"status": status, "error": {"type": "x", "reason": "too_many_clauses"}}
    with fake_engine(lambda number, bodies: responses(hits(("a", 1.0)), refusal)) as engine:
        searcher = searcher_of(engine)
        fine, refused = searcher.msearch([{"size": 1}, {"size": 2}])
        searcher.close()
    assert not isinstance(fine, RetrievalError)
    assert type(refused) is kind and "too_many_clauses" in str(refused)


@pytest.mark.parametrize(("status", "kind"), [(413, SearchRefusedError), (404, RetrievalError)])
def test_a_whole_request_may_be_refused(status: int, kind: type[RetrievalError]) -> None:
    with fake_engine(lambda number, bodies: (status, b'{"error": {"reason": "too large"}}')) as engine:
        searcher = searcher_of(engine)
        with pytest.raises(RetrievalError) as raised:
            searcher.msearch([{"size": 1}])
        searcher.close()
    assert type(raised.value) is kind
