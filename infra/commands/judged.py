"""The options `--queries` and `--qrels`: the user's judged queries, for measuring only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from infra.recipes.recipe import Judged


def judged_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the two options to a verb."""
    queries = click.option(
        "--queries",
        type=click.Path(path_type=Path),
        help="Judged queries (JSONL) for one more table; they train nothing.",
    )
    qrels = click.option(
        "--qrels", type=click.Path(path_type=Path), help="Judgments of these queries; required with --queries."
    )
    return queries(qrels(command))


def read_judged(
    queries: Path | None,
    qrels: Path | None,
    *,
    index_folder: Path | None = None,
    options: tuple[str, str] = ("--queries", "--qrels"),
) -> Judged | None:
    """Return the queries and their judgments, or None if none are given.

    index_folder: folder of the index whose documents are judged; at least one judgment must be about one of them.
    options: the names of the two options in errors.
    Raises UsageError if only one of the files is given, and CorpusError if a file holds no valid queries or judgments.
    """
    from search_env.catalogue.corpora import check_qrels, load_qrels, load_queries
    from search_env.engine.index import kept_catalogue, load_manifest

    if (queries is None) != (qrels is None):
        raise click.UsageError(f"{options[0]} and {options[1]} belong together: give both, or neither")
    if queries is None or qrels is None:
        return None
    asked, judged = load_queries(queries), load_qrels(qrels)
    # Of an attached index only a sample is here, so no judgment can be about an unknown document.
    if index_folder is not None and load_manifest(index_folder).attached is None:
        check_qrels(
            judged,
            query_ids=(query.id for query in asked),
            document_ids=kept_catalogue(index_folder).row_of,
            source=str(qrels),
        )
    return asked, judged
