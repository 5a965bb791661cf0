"""Searching opens what it needs and no more: the raw query needs no documents, and a baseline no policy."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.recipes.leser.searching import search_queries
from search_env.catalogue.corpora import Query
from search_env.engine.index import IndexingError, IndexVersion
from search_env.leser.nearest_terms import NearestTermsSettings
from services.local import Endpoints
from streams.errors import SettingsError
from tests.engine_fakes import FakeEngine, fake_engine, hits, responses

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    {"_id": "a", "title": "steel mug", "text": "camping", "metadata": {}},
    {"_id": "b", "title": "glass cup", "text": "kitchen", "metadata": {}},
]
QUERIES = [Query(id="1", text="mug"), Query(id="2", text="cup")]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """Give an engine that finds document a for every query."""
    with fake_engine(lambda number, bodies: responses(*(hits(("a", 2.0)) for _ in bodies))) as engine:
        yield engine


@pytest.fixture
def app(tmp_path: Path, engine: FakeEngine) -> App:
    """Give an app whose index `shop` has a manifest and nothing else."""
    lines = b"".join(msgspec.json.encode(document) + b"\n" for document in DOCUMENTS)
    version = IndexVersion(name="shop-1", alias="shop", documents=2, sha256=hashlib.sha256(lines).hexdigest())
    directory = tmp_path / "indexes" / "shop"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_bytes(msgspec.json.encode(version))
    return App(Home(tmp_path)).at(Endpoints(kafka="127.0.0.1:1", elasticsearch=engine.url))


def quiet(what: str, done: int, total: int) -> None:
    """Report nothing."""


def search(app: App, policy: str) -> dict[str, list[str]]:
    found = search_queries(app, QUERIES, index="shop", policy=policy, run=None, top=10, report=quiet)
    return {query: ranking.ids for query, ranking in found.items()}


def test_the_raw_query_is_searched_without_reading_a_document(app: App, engine: FakeEngine) -> None:
    assert search(app, "none") == {"1": ["a"], "2": ["a"]}
    assert [body["query"] for body in engine.requests[0]] == [
        {"match": {"contents": {"query": "mug"}}},
        {"match": {"contents": {"query": "cup"}}},
    ]


@pytest.mark.parametrize("method", ["rm3", "bo1"])
def test_feedback_terms_need_the_documents_and_no_relevance_model(app: App, engine: FakeEngine, method: str) -> None:
    documents = app.home.index("shop") / "documents.jsonl.gz"
    with gzip.open(documents, "wb") as stream:
        stream.writelines(msgspec.json.encode(document) + b"\n" for document in DOCUMENTS)
    assert search(app, method) == {"1": ["a"], "2": ["a"]}
    should = engine.requests[1][1]["query"]["bool"]["should"]
    assert {each["match"]["contents"]["query"] for each in should} == {"cup", "steel", "mug", "camping"}
    assert sorted(path.name for path in documents.parent.iterdir()) == [
        "catalogue",
        "documents.jsonl.gz",
        "manifest.json",
    ]


def test_the_nearest_words_are_embedded_once_and_searched_beside_the_query(app: App, engine: FakeEngine) -> None:
    documents = app.home.index("shop") / "documents.jsonl.gz"
    with gzip.open(documents, "wb") as stream:
        stream.writelines(msgspec.json.encode(document) + b"\n" for document in DOCUMENTS)
    near = NearestTermsSettings(terms=2, weight=0.5, documents_min=1)
    app = app.with_settings(Settings(nearest_terms=near)).at(Endpoints(kafka="127.0.0.1:1", elasticsearch=engine.url))
    assert search(app, "minilm") == {"1": ["a"], "2": ["a"]}
    (kept,) = (documents.parent / "embeddings").iterdir()
    raw, *words = engine.requests[0][0]["query"]["bool"]["should"]
    assert raw == {"match": {"contents": {"query": "mug"}}}
    best, second = [each["match"]["contents"] for each in words[:2]]
    assert best == {"query": "cup", "boost": 0.5}  # Of steel, camping, glass, cup and kitchen.
    assert second["query"] != "mug" and 0 < second["boost"] < 0.5
    touched = kept.stat().st_mtime_ns
    search(app, "minilm")
    assert kept.stat().st_mtime_ns == touched


def test_a_missing_index_says_what_to_run(app: App) -> None:
    with pytest.raises(IndexingError, match="searchloop index CORPUS --name other"):
        search_queries(app, QUERIES, index="other", policy="none", run=None, top=10, report=quiet)


@pytest.mark.parametrize("policy", ["knn", "latest"])
def test_a_policy_without_a_run_says_what_to_run(app: App, policy: str) -> None:
    with pytest.raises(SettingsError, match="searchloop train --index shop"):
        search(app, policy)


def test_a_search_without_a_policy_loads_no_torch() -> None:
    code = "import sys, infra.commands.search, infra.recipes.leser.searching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
