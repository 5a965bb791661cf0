"""Rankings stored as TREC files, in one folder per query set: its judgments, and one run file per ranked row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from infra.recipes.recipe import Ranked
from search_env.catalogue.corpora import Qrels, load_qrels, rank_by_score, read_run, write_qrels, write_run, write_whole
from storage.errors import EvaluationError
from streams.names import is_name

SETS_FILE = "sets.json"
QRELS_FILE = "qrels.tsv"


def keep_rankings(folder: Path, row: str, ranked: Sequence[Ranked]) -> None:
    """Write a row's ranking of each set, each file completely or not at all.

    Raises EvaluationError if the folder holds another row with different judgments.
    """
    names = set_names(folder)
    for each in ranked:
        qrels = set_folder(folder, each.name) / QRELS_FILE
        if each.name not in names:
            write_qrels(qrels, each.qrels)
            names.append(each.name)
            write_whole(folder / SETS_FILE, msgspec.json.encode(names))
        elif load_qrels(qrels) != each.qrels:
            raise EvaluationError(f"{qrels}: {row} has other judgments for {each.name!r}; keep it in another folder")
        rankings = {query: rank_by_score(list(of), list(of.values())) for query, of in each.run.items()}
        write_run(row_file(folder, each.name, row), rankings, tag=row)


def set_names(folder: Path) -> list[str]:
    """Return the names of the ranked sets, in the recipe's order.

    Raises EvaluationError if the file that lists them is damaged.
    """
    path = folder / SETS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[str]) if path.is_file() else []
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{path}: expected a list of names in JSON, got: {error}. Rank into another folder"
        ) from error


def set_folder(folder: Path, name: str) -> Path:
    """Return the folder of a set's judgments and rankings.

    Raises EvaluationError if the set's name is not valid for a folder.
    """
    return folder / _named("set", name.replace(" ", "-"))


def row_file(folder: Path, set_name: str, row: str) -> Path:
    """Return the path of a row's run file on a set.

    Raises EvaluationError if the row's name is not valid for a file.
    """
    return set_folder(folder, set_name) / f"{_named('row', row)}.run"


def _named(what: str, name: str) -> str:
    if not is_name(name):
        raise EvaluationError(
            f"{what}: expected a name of letters, digits, '_', '.', '+' and '-', got {name!r}; choose another (--row)"
        )
    return name


def read_qrels(folder: Path, set_name: str) -> Qrels:
    """Return a set's judgments."""
    return load_qrels(set_folder(folder, set_name) / QRELS_FILE)


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Return a run file as {query: {document: score}}."""
    found = read_run(path, may_be_empty=True)  # A row may have found nothing.
    return {query: dict(zip(ranking.ids, ranking.scores, strict=True)) for query, ranking in found.items()}
