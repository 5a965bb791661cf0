"""Which training queries a document answers: what ReSuMe's reward and its retriever learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_env.catalogue.corpora import Query, write_qrels, write_queries
from search_env.resume.answered import answered_queries
from streams.errors import SettingsError


def index_folder(path: Path, qrels: dict[str, dict[str, int]]) -> Path:
    intents = path / "shop" / "intents"
    intents.mkdir(parents=True)
    write_queries(
        intents / "queries.train.jsonl", [Query(id="q1", text="red cable"), Query(id="q2", text="blue cable")]
    )
    write_qrels(intents / "qrels.train.tsv", qrels)
    return path / "shop"


def test_a_document_answers_what_is_graded_above_zero_and_not_held_out(tmp_path: Path) -> None:
    folder = index_folder(tmp_path, {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": 3, "d2": 1}})
    assert answered_queries(folder, []).by_document == {"d1": ("q1", "q2"), "d2": ("q2",)}
    left = answered_queries(folder, [Query(id="h1", text="Blue  CABLE")])
    assert left.by_document == {"d1": ("q1",)} and list(left.queries) == ["q1"]


def test_queries_that_nothing_answers_say_what_catalogue_is_needed(tmp_path: Path) -> None:
    folder = index_folder(tmp_path, {"q1": {"d1": 0}})
    with pytest.raises(
        SettingsError, match=r"'shop' has 2 training queries, but no document answers any of them.*attributes"
    ):
        answered_queries(folder, [])
