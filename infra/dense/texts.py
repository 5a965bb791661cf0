"""What stands for each document where a whole corpus is searched by vectors: all of it, a part, or a summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra.context import App
from search_env.attributes import key_name
from search_env.index import load_documents
from search_env.intents import load_intents
from search_env.products import asked_names, description_of, lead, most_asked_values, product_of, random_values
from search_env.resume_environment import embedded_text
from search_env.wordpieces import wordpiece_count
from streams.errors import SettingsError
from streams.events import Product

TEXTS = ("documents", "titles", "lead", "random", "key-prior")
"""What can stand for documents without a policy."""


def document_embedded(product: Product) -> str:
    """Return the whole document as the retriever reads it."""
    return embedded_text(product.title, description_of(product))


def summary_texts(directory: Path, summaries: Mapping[str, str]) -> dict[str, str]:
    """Return what stands for each document of an index: its title and its summary, if it has one."""
    return {
        document.id: embedded_text(document.title, summaries.get(document.id, ""))
        for document in load_documents(directory)
    }


def texts_without_policy(app: App, index: str, kind: str, *, seed: int) -> dict[str, str]:
    """Return what stands for each document where no policy writes it, summaries at the budget of `resume.summary`.

    kind: "documents" (whole), "titles", "lead" (the description's first words), "random" (values), "key-prior" (the
    values whose names training queries ask for most). Raises SettingsError for any other.
    """
    directory = app.home.index(index)
    budget = app.settings.resume.summary
    products = [product_of(document) for document in load_documents(directory)]
    if kind == "documents":
        return {each.document_id: document_embedded(each) for each in products}
    if kind == "titles":
        return {each.document_id: each.title for each in products}
    if kind == "lead":
        made = {each.document_id: lead(each, budget, wordpiece_count) for each in products}
    elif kind == "random":
        made = {each.document_id: random_values(each, budget, wordpiece_count, seed=seed) for each in products}
    elif kind == "key-prior":
        queries, _ = load_intents(directory / "intents", "train")
        names = {key: key_name(key) for query in queries for key, _ in query.metadata.get("attributes", ())}
        asked = asked_names(queries, names)
        made = {each.document_id: most_asked_values(each, asked, budget, wordpiece_count) for each in products}
    else:
        raise SettingsError(f"texts: expected documents, titles, lead, random or key-prior, got {kind!r}")
    return {each.document_id: embedded_text(each.title, made[each.document_id]) for each in products}
