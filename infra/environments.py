"""A search environment of an index, opened with everything that it needs and closed after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from infra.context import App
from infra.progress import Report
from infra.relevance import open_relevance
from infra.run_settings import RunSettings
from search_env.catalogue import Catalogue
from search_env.controls import Environment, ShuffledRewards
from search_env.environment import SearchEnvironment
from search_env.index import load_documents
from search_env.retrieval import Retriever


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@contextmanager
def open_environment(app: App, run: RunSettings, report: Report = silent) -> Iterator[Environment]:
    """Give the environment of a run: its index version, relevance model and reward as they were when it began."""
    kept = app.with_settings(run.settings)
    catalogue = Catalogue(load_documents(app.home.index(run.index)))
    relevance = open_relevance(kept, index=run.index, catalogue=catalogue, report=report)
    client = app.engine()
    retriever = Retriever(client, run.index_version, run.settings.retrieval)
    environment: Environment = SearchEnvironment(retriever, relevance, run.settings.environment)
    try:
        yield ShuffledRewards(environment) if run.settings.train.shuffle_rewards else environment
    finally:
        retriever.close()
        client.close()
