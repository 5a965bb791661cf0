"""What the summary task stands on, per index: demand, judged lists, values, and the frozen cross-encoder.

Everything is a file under the index's folder, made once and found again by every run, worker and evaluation.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from infra.context import App
from infra.progress import Report
from infra.summaries.matching_lessons import MatchingLessons
from search_env.corpora import Qrels, Query
from search_env.crossencoder import (
    CURRENT_FILE,
    CrossEncoder,
    LabelledPair,
    calibrate,
    load_cross_encoder,
    save_cross_encoder,
    train_cross_encoder,
)
from search_env.demand import load_or_make_demand
from search_env.index import load_documents
from search_env.judged_lists import JudgedLists, load_lists, make_lists, write_lists
from search_env.product_values import ProductValues
from search_env.products import asked_keys
from search_env.reranking import product_text
from search_env.summaries import fit_values
from search_env.wordpieces import wordpiece_count
from streams.events import Product

NEGATIVES = 4  # Of a query's list, for each training query of the cross-encoder.
BY_TITLE = 0.25  # Lessons by title for each pair of lists, lest titles be unlearned.


class SummaryWorld:
    """One index as the summary task sees it; what is missing is made when it is first asked for."""

    def __init__(self, app: App, index: str, report: Report) -> None:
        self.settings = app.settings
        self.folder = app.home.index(index) / "summary"
        self.report = report
        self.documents = load_documents(app.home.index(index))
        self._lists: dict[str, JudgedLists] = {}

    def lists(self, split: str) -> JudgedLists:
        """Return a split's judged lists, made with the index's one demand."""
        if not (self.folder / "lists" / "qrels.test.tsv").is_file():
            self.report("making judged lists", 0, 0)
            demand = load_or_make_demand(self.folder / "demand.json", self.documents, self.settings.demand)
            write_lists(self.folder / "lists", make_lists(self.documents, demand, self.settings.lists))
        if split not in self._lists:
            self._lists[split] = load_lists(self.folder / "lists", split)
        return self._lists[split]

    @cached_property
    def values(self) -> ProductValues:
        """Products and their values, ordered by the training queries' keys."""
        asked = asked_keys(self.lists("train").queries)
        return ProductValues(self.documents, asked, order=self.settings.product_prompts.order)

    @cached_property
    def cross_encoder(self) -> CrossEncoder:
        """The frozen cross-encoder, trained on training lists and calibrated on dev lists at the first call."""
        root, settings = cross_encoders_of(self.folder.parent), self.settings.cross_encoder
        if not (root / CURRENT_FILE).is_file():
            with tempfile.TemporaryDirectory(prefix="searchloop-cross-encoder-") as scratch:
                made = train_cross_encoder(*self._teaching(), settings, Path(scratch) / "first", self.report)
            save_cross_encoder(made, calibrate(made, self.pairs("dev"), self.report), root)
        return load_cross_encoder(root, settings)

    def summary(self, document_id: str, numbers: Sequence[int]) -> str:
        """Return the summary of a product's values (numbers from 1, best first) within the budget."""
        return fit_values(
            self.values.product(document_id), numbers, self.settings.summary_environment.summary, wordpiece_count
        ).text

    def shown(self, document_id: str) -> Product:
        """Return the product as prompts show it: the first values by the log, numbered the same everywhere."""
        product = self.values.product(document_id)
        return msgspec.structs.replace(product, values=product.values[: self.settings.product_prompts.values])

    def judged(self, queries: Sequence[Query], qrels: Qrels) -> tuple[list[Query], Qrels]:
        """Return given queries with those of their judged products that the catalogue has, where one is relevant."""
        known = {
            query: {document: grade for document, grade in of.items() if document in self.values.documents}
            for query, of in qrels.items()
        }
        kept = [query for query in queries if any(grade > 0 for grade in known.get(query.id, {}).values())]
        return kept, {query.id: known[query.id] for query in kept}

    def text(self, document_id: str, summary: str) -> str:
        """Return what the cross-encoder reads of a product: title, then summary."""
        return product_text(self.values.documents[document_id].title, summary)

    def pairs(self, split: str) -> list[LabelledPair]:
        """Return labelled pairs of a split's lists, with texts of every kind that is scored later.

        Titles alone, with values by chance or by the log within the budget, or with the whole description: the kind is
        drawn by the pair's hash, so that the cross-encoder is calibrated for short texts and long ones alike.
        """
        lists = self.lists(split)
        found: list[LabelledPair] = []
        for query in lists.queries:
            grades = lists.qrels[query.id]
            relevant = [document for document, grade in grades.items() if grade > 0]
            others = [document for document, grade in grades.items() if grade == 0]
            others.sort(key=lambda document: _draw(query, document, "order"))
            for copy, documents in (("a", relevant), ("b", relevant), ("a", others[:NEGATIVES])):
                for document in documents:
                    kind = _draw(query, document, copy) % 8
                    found.append(
                        LabelledPair(
                            query=query.text,
                            text=self._text_of_kind(query, document, kind),
                            label=int(grades[document] > 0),
                        )
                    )
        return found

    def _teaching(self) -> tuple[list[list[LabelledPair]], list[LabelledPair]]:
        """Return the stages of lessons in matching, and pairs of training lists with lessons by title among them."""
        settings, pairs = self.settings.cross_encoder, self.pairs("train")
        order = np.random.default_rng(settings.seed).permutation(len(pairs))
        some = [pairs[place] for place in order[: settings.pairs_max].tolist()]
        names = sorted({document for of in self.lists("train").qrels.values() for document in of})
        lessons = MatchingLessons(self.values, names, self.settings.lists, seed=settings.seed)
        stages = lessons.stages(settings.lessons)
        return stages, [*some, *lessons.by_title(round(BY_TITLE * len(some)) if settings.lessons else 0)]

    def _text_of_kind(self, query: Query, document: str, kind: int) -> str:
        if kind == 0:
            return self.text(document, "")
        if kind == 1:  # Mostly cut while learning, so few.
            return self.text(document, self.values.description(document))
        if kind <= 4:
            return self.text(document, self.summary(document, self.values.asked(document, query.metadata["keys"])))
        order = self.values.by_chance if kind <= 6 else self.values.by_log
        return self.text(document, self.summary(document, order(document)))


def cross_encoders_of(index_folder: Path) -> Path:
    """Return where an index's cross-encoder versions lie."""
    return index_folder / "summary" / "cross-encoders"


def _draw(query: Query, document: str, salt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{query.id}\t{document}\t{salt}".encode()).digest()[:8])
