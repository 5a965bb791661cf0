"""Texts that stand for documents in a search of a whole corpus by vectors: all of a document, a part, or a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.app.home import IndexFolder
from learner.product_prompts import ProductPromptSettings
from search_env.catalogue.corpora import Document, Query
from search_env.catalogue.named_documents import DocumentTexts, NamedDocuments
from search_env.engine.index import kept_catalogue
from search_env.models.wordpieces import wordpiece_count
from search_env.queries.intents import load_intents
from search_env.resume.answered import Answered, answered_queries
from search_env.resume.environment import embedded_text
from search_env.summaries.products import asked_keys, description_of, lead, product_of, random_values
from search_env.summaries.reading import SummarySettings, fit_values
from search_env.summaries.values import ProductValues
from streams.errors import SettingsError

TEXTS = ("description", "title", "lead", "random", "key-counts")
"""Kinds of texts that can stand for documents without a policy."""


def index_documents(index: IndexFolder) -> NamedDocuments:
    """Return the documents of an index by id; they lie in a mapped file, so no process holds them all."""
    catalogue = kept_catalogue(index)
    return NamedDocuments(catalogue.documents, catalogue.row_of)


def document_texts(index: IndexFolder) -> Mapping[str, str]:
    """Return the whole text of each document of an index, as the retriever reads it, by document id."""
    return DocumentTexts(index_documents(index), _whole_text)


def _whole_text(document: Document) -> str:
    return embedded_text(document.title, description_of(product_of(document)))


def summarized_values(index: IndexFolder, answered: Answered, prompts: ProductPromptSettings) -> ProductValues:
    """Return the products of an index with the values that a summary chooses among, ordered as in prompts.

    answered: the training queries that count, without held-out texts.
    """
    queries, _ = load_intents(index.intents, "train")
    asked = asked_keys(query for query in queries if query.id in answered.queries)
    return ProductValues(index_documents(index), asked, order=prompts.order)


def summary_texts(index: IndexFolder, summaries: Mapping[str, str]) -> Mapping[str, str]:
    """Return title and summary (if any) of each document of an index, by document id."""
    return DocumentTexts(
        index_documents(index), lambda document: embedded_text(document.title, summaries.get(document.id, ""))
    )


def texts_without_policy(
    index: IndexFolder,
    kind: str,
    *,
    budget: SummarySettings,
    prompts: ProductPromptSettings,
    seed: int,
    held_out: Sequence[Query] = (),
) -> Mapping[str, str]:
    """Return the texts that stand for documents without a policy, by document id.

    budget: of summaries, `resume.summary`. Their values are those that the title lacks, as for a policy.
    kind: "description" (whole documents), "title", "lead", "random" (random values), "key-counts"
    (the values whose attributes training queries ask for most, without RL).
    held_out: queries that no count may include. Raises SettingsError for any other kind.
    """
    if kind == "description":
        return document_texts(index)
    documents = index_documents(index)
    if kind == "title":
        made = {}
    elif kind == "lead":
        made = {each.id: lead(product_of(each), budget, wordpiece_count) for each in documents.rows}
    elif kind in ("random", "key-counts"):
        values, made = summarized_values(index, answered_queries(index, held_out), prompts), {}
        for name in documents:
            product = values.product(name)
            if kind == "random":
                made[name] = random_values(product, budget, wordpiece_count, seed=seed)
            else:
                made[name] = fit_values(product, values.by_key_counts(name), budget, wordpiece_count).text
    else:
        raise SettingsError(f"texts: expected description, title, lead, random or key-counts, got {kind!r}")
    return summary_texts(index, made)
