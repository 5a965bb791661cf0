"""An index as summaries see it: its products, their values, one demand, and the judged lists made from it.

Everything is a file under the index's folder. It is made once, and every run, worker and evaluation finds it again. The
products lie in a mapped file, so no process holds them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import msgspec

from infra.app.home import IndexFolder
from infra.app.progress import Report
from infra.app.settings import Settings
from search_env.catalogue.corpora import Qrels, Query
from search_env.catalogue.demand import load_or_make_demand
from search_env.catalogue.named_documents import NamedDocuments
from search_env.engine.index import kept_catalogue
from search_env.models.crossencoder import product_text
from search_env.models.wordpieces import wordpiece_count
from search_env.queries.judged_lists import JudgedLists, load_lists, make_lists, write_lists
from search_env.summaries.products import asked_keys
from search_env.summaries.reading import fit_values
from search_env.summaries.values import ProductValues
from streams.events import Product


class RelsumIndex:
    """The products to summarize and the lists to rank; missing files are made at first use."""

    def __init__(self, folder: IndexFolder, settings: Settings, report: Report) -> None:
        self.folder = folder
        self.settings = settings
        self.report = report
        catalogue = kept_catalogue(folder, report)
        self.documents = NamedDocuments(catalogue.documents, catalogue.row_of)
        self._lists: dict[str, JudgedLists] = {}

    def lists(self, split: str) -> JudgedLists:
        """Return a split's judged lists, made from the index's one demand."""
        if not (self.folder.lists / "qrels.test.tsv").is_file():
            self.report("making judged lists", 0, 0)
            demand = load_or_make_demand(self.folder.demand, self.documents.rows, self.settings.demand)
            write_lists(self.folder.lists, make_lists(self.documents.rows, demand, self.settings.lists))
        if split not in self._lists:
            self._lists[split] = load_lists(self.folder.lists, split)
        return self._lists[split]

    @cached_property
    def values(self) -> ProductValues:
        """The products and their values, ordered by the keys of the training queries."""
        asked = asked_keys(self.lists("train").queries)
        return ProductValues(self.documents, asked, order=self.settings.product_prompts.order)

    def summary(self, document_id: str, numbers: Sequence[int]) -> str:
        """Return the summary of these values of a product within the budget. numbers: from 1, best first."""
        return fit_values(self.values.product(document_id), numbers, self.settings.relsum.summary, wordpiece_count).text

    def shown(self, document_id: str) -> Product:
        """Return a product as prompts show it: its first values by the log, with the same numbers everywhere."""
        product = self.values.product(document_id)
        return msgspec.structs.replace(product, values=product.values[: self.settings.product_prompts.values])

    def judged(self, queries: Sequence[Query], qrels: Qrels) -> tuple[list[Query], Qrels]:
        """Return the given queries with their judged products in the catalogue.

        A query without a relevant product there is left out.
        """
        known = {
            query: {document: grade for document, grade in of.items() if document in self.values.documents}
            for query, of in qrels.items()
        }
        kept = [query for query in queries if any(grade > 0 for grade in known.get(query.id, {}).values())]
        return kept, {query.id: known[query.id] for query in kept}

    def text(self, document_id: str, summary: str) -> str:
        """Return a product's text for the cross-encoder: title, then summary."""
        return product_text(self.values.documents[document_id].title, summary)
