"""What stands for each document where a whole corpus is searched by vectors: all of it, a part, or a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.app.app import App
from search_env.catalogue.corpora import Query
from search_env.engine.index import load_documents
from search_env.models.wordpieces import wordpiece_count
from search_env.queries.intents import load_intents
from search_env.resume.answered import Answered, answered_queries
from search_env.resume.environment import embedded_text
from search_env.summaries.products import asked_keys, description_of, lead, product_of, random_values
from search_env.summaries.reading import fit_values
from search_env.summaries.values import ProductValues
from streams.errors import SettingsError

TEXTS = ("documents", "titles", "lead", "random", "key-prior")
"""What can stand for documents without a policy."""


def document_texts(directory: Path) -> dict[str, str]:
    """Return each document of an index whole, as the retriever reads it."""
    products = map(product_of, load_documents(directory))
    return {each.document_id: embedded_text(each.title, description_of(each)) for each in products}


def summarized_values(app: App, index: str, answered: Answered) -> ProductValues:
    """Return the products of an index with the values that a summary chooses among, ordered as prompts show them.

    answered: the training queries that count; held-out texts are not among them.
    """
    directory = app.home.index(index)
    queries, _ = load_intents(directory / "intents", "train")
    asked = asked_keys(query for query in queries if query.id in answered.queries)
    return ProductValues(load_documents(directory), asked, order=app.settings.product_prompts.order)


def summary_texts(directory: Path, summaries: Mapping[str, str]) -> dict[str, str]:
    """Return what stands for each document of an index: its title and its summary, if it has one."""
    return {
        document.id: embedded_text(document.title, summaries.get(document.id, ""))
        for document in load_documents(directory)
    }


def texts_without_policy(
    app: App, index: str, kind: str, *, seed: int, held_out: Sequence[Query] = ()
) -> dict[str, str]:
    """Return what stands for each document where no policy writes it, summaries at the budget of `resume.summary`.

    kind: "documents" (whole), "titles", "lead" (the description's first words), "random" (values), "key-prior" (the
    values whose attributes training queries ask for most, without RL). Values are those that the title lacks, as a
    policy chooses among. held_out: queries that no count may know. Raises SettingsError for any other kind.
    """
    directory = app.home.index(index)
    budget = app.settings.resume.summary
    if kind == "documents":
        return document_texts(directory)
    documents = load_documents(directory)
    if kind == "titles":
        made = {}
    elif kind == "lead":
        made = {each.id: lead(product_of(each), budget, wordpiece_count) for each in documents}
    elif kind in ("random", "key-prior"):
        values, made = summarized_values(app, index, answered_queries(directory, held_out)), {}
        for each in documents:
            product = values.product(each.id)
            if kind == "random":
                made[each.id] = random_values(product, budget, wordpiece_count, seed=seed)
            else:
                made[each.id] = fit_values(product, values.by_log(each.id), budget, wordpiece_count).text
    else:
        raise SettingsError(f"texts: expected documents, titles, lead, random or key-prior, got {kind!r}")
    return summary_texts(directory, made)
