"""The training queries that each document answers: q⁺ of ReSuMe's reward, and its retriever's training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from search_env.catalogue.analysis import plain_words
from search_env.catalogue.corpora import Query, write_whole
from search_env.queries.intents import load_intents
from streams.errors import SettingsError

QUERIES_FILE = "answered.json"


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The training queries of a run by id, and the ids of the queries that each document answers (q⁺)."""

    queries: dict[str, str]
    by_document: dict[str, tuple[str, ...]]


def answered_queries(directory: Path, held_out: Sequence[Query]) -> Answered:
    """Return an index's training queries, without held-out texts, and the documents that answer them.

    Raises SettingsError if no document answers any query: only queries made from attributes come with their answers.
    """
    queries, qrels = load_intents(directory / "intents", "train")
    left_out = {plain_words(query.text) for query in held_out}
    kept = {query.id: query.text for query in queries if plain_words(query.text) not in left_out}
    by_document: dict[str, list[str]] = {}
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if grade > 0 and query in kept:
                by_document.setdefault(document, []).append(query)
    if not by_document:
        raise SettingsError(
            f"index {directory.name!r} has {len(kept)} training queries, but no document answers any of them: expected "
            "queries made from attributes. ReSuMe needs a catalogue whose products have attributes that repeat"
        )
    return Answered(queries=kept, by_document={key: tuple(sorted(ids)) for key, ids in by_document.items()})


def write_answered(run_dir: Path, answered: Answered) -> None:
    """Write a run's training queries into its folder, completely or not at all."""
    write_whole(run_dir / QUERIES_FILE, msgspec.json.encode(answered, order="deterministic"))


def read_answered(run_dir: Path) -> Answered:
    """Return a run's training queries. Raises SettingsError if the file is missing or damaged."""
    try:
        return msgspec.json.decode((run_dir / QUERIES_FILE).read_bytes(), type=Answered)
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{run_dir / QUERIES_FILE}: {error}. Start a new run with --run NAME") from error
