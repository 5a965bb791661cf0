"""Summaries by ReLSum's policy, within the budget of the cross-encoder that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from infra.app.home import RunFolder
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.recipes.relsum.ranked_index import RankedIndex
from infra.recipes.relsum.ranker import Writes
from infra.recipes.summarizing import Decoding, summarize
from search_env.catalogue.corpora import Query


def policy_writes(
    relsum: RankedIndex, run_dir: RunFolder, run: RunSettings, *, policy: str, report: Report, temperature: float = 0.0
) -> Writes:
    """Return a function that gives the summaries by a version of the run's policy, for any products."""

    def writes(pairs: Sequence[tuple[Query, str]]) -> list[str]:
        documents = sorted({document for _, document in pairs})
        written = policy_summaries(
            relsum, run_dir, run, documents, policy=policy, report=report, temperature=temperature
        )
        return [written[document] for _, document in pairs]

    return writes


def left_out(queries: Iterable[Query]) -> set[str]:
    """Return the texts of queries that must teach nothing, in small letters, to be compared with lists' queries."""
    return {query.text.lower() for query in queries}


def policy_summaries(
    relsum: RankedIndex,
    run_dir: RunFolder,
    run: RunSettings,
    documents: Sequence[str],
    *,
    policy: str,
    report: Report,
    temperature: float = 0.0,
) -> dict[str, str]:
    """Return the summaries of these documents by a version of the run's policy, within the budget."""
    return summarize(
        run_dir,
        run,
        documents,
        relsum.shown,
        budget=run.settings.relsum.summary,
        decoding=Decoding(policy=policy, temperature=temperature),
        report=report,
    )
