"""Feedback terms of the top documents: Bo1 and RM3, the baselines that every learned expansion has to beat.

Both treat the first documents of the raw query as relevant, and weigh the terms of their field `contents`:

- Bo1, Bose–Einstein 1 (Amati, PhD thesis, Glasgow 2003; as in Terrier): w(t) = tf_x · log2((1 + P) / P) + log2(1 + P),
  with tf_x the term's count in those documents and P = F / N, its count in the corpus over the number of documents.
- RM3 (Abdul-Jaleel et al., TREC 2004; relevance model 1 of Lavrenko and Croft, SIGIR 2001): P(t|R) = Σ_d P(t|d) P(d|q),
  with P(t|d) = tf / |d| unsmoothed and P(d|q) the document's share of the scores, as in Anserini.

Weights are scaled so that the best term has 1. One search combines the query and its terms:
`Σ_query BM25 + weight · Σ_t w(t) · BM25(t)`. We differ from the papers in two ways. BM25 takes the place of a language
model (RM3) or of a DFR model (Bo1). The query's own part keeps weight 1, so RM3's λ is 1 / (1 + weight) up to scale.
`weight` is chosen for each method on `dev`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.catalogue.analysis import analyze
from search_env.catalogue.corpora import Ranking
from search_env.catalogue.lexical import TermMatrix
from search_env.catalogue.term_matrices import Catalogue, gather_rows
from search_env.engine.forms import Body, Boosted
from search_env.engine.searching import Searcher
from streams.descriptions import describe

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class FeedbackSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a feedback baseline."""

    documents: Annotated[
        int, msgspec.Meta(ge=1, le=1_000), describe("Number of top documents from which the words come.")
    ] = 5
    terms: Annotated[int, msgspec.Meta(ge=1, le=200), describe("Number of words that are added to a query.")] = 20
    weight: Annotated[
        float, msgspec.Meta(ge=0, le=10), describe("Boost of the added words beside the query, which has 1.")
    ] = 0.3


class WeightedTerm(NamedTuple):
    """A word to search with, and its weight (the best word has 1)."""

    word: str
    weight: float


class Counts(NamedTuple):
    """Term statistics of the chosen documents: distinct columns, and for each its count, its share of P(t|R), and the
    number of chosen documents that have it.
    """

    columns: Integers
    counts: Floats
    model: Floats
    holders: Integers


def feedback_counts(matrix: TermMatrix, rows: Sequence[int], scores: Sequence[float]) -> Counts:
    """Return the term counts of some documents; scores (positive) weigh the documents in the relevance model."""
    chosen = np.asarray(rows, dtype=np.int64)
    gathered = gather_rows(matrix.counts.indptr, chosen)
    columns, place = np.unique(matrix.counts.indices[gathered.entry], return_inverse=True)
    counts = np.asarray(matrix.counts.data[gathered.entry], dtype=np.float64)
    share = np.asarray(scores, dtype=np.float64)
    share = share / share.sum() if len(share) and share.sum() > 0 else np.full(len(chosen), 1.0 / max(len(chosen), 1))
    lengths = np.maximum(matrix.lengths[chosen], 1.0)
    model = counts * (share / lengths)[gathered.row]
    return Counts(
        columns.astype(np.int64),
        np.bincount(place, weights=counts, minlength=len(columns)).astype(np.float64),
        np.bincount(place, weights=model, minlength=len(columns)).astype(np.float64),
        np.bincount(place, minlength=len(columns)).astype(np.int64),
    )


def bo1_weights(counts: Floats, corpus_counts: Floats, documents: int) -> Floats:
    """Return Bo1's weights of terms from their counts in the feedback documents and in a corpus of N documents."""
    probability = corpus_counts / documents
    return np.asarray(counts * np.log2((1 + probability) / probability) + np.log2(1 + probability))


class FeedbackTerms:
    """Feedback terms over one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def terms(
        self,
        method: Literal["bo1", "rm3"],
        ids: Sequence[str],
        scores: Sequence[float],
        *,
        count: int,
        without: str = "",
        documents_min: int = 1,
        keep: Callable[[str], bool] | None = None,
    ) -> list[WeightedTerm]:
        """Return the best feedback terms of some documents, best first; ties are in the order of the words.

        without: a query whose own terms are left out. documents_min: documents of the corpus that must have a term.
        keep: tells which words are allowed.
        """
        catalogue = self.catalogue.holding(ids)
        row_of, contents = catalogue.row_of, catalogue.contents
        places = {document: score for document, score in zip(ids, scores, strict=True) if document in row_of}
        if not places:
            return []
        rows = [row_of[document] for document in places]
        found = feedback_counts(contents, rows, list(places.values()))
        weights = found.model
        if method == "bo1":
            # Of a sample's statistics: a term occurs at least as often as these documents show.
            totals = np.maximum(contents.totals[found.columns], found.counts)
            weights = bo1_weights(found.counts, totals, catalogue.population)
        left_out = set(catalogue.vocabulary.known(analyze(without)))
        words = catalogue.surface_forms
        frequencies = np.maximum(contents.frequencies[found.columns], found.holders)
        weights = np.where(frequencies >= documents_min, weights, -1.0)
        order = np.argsort(-weights, kind="stable")[: 4 * count + len(left_out) + 20]
        candidates = [
            WeightedTerm(words[column], float(weights[position]))
            for position, column in zip(order.tolist(), found.columns[order].tolist(), strict=True)
            if column not in left_out and words[column] and (keep is None or keep(words[column]))
        ]
        best = sorted(candidates, key=lambda term: (-term.weight, term.word))[:count]
        return [WeightedTerm(term.word, term.weight / best[0].weight) for term in best if term.weight > 0]


def boosted(terms: Sequence[WeightedTerm], *, weight: float) -> list[Boosted]:
    """Return weighted feedback terms as words beside a query; those without weight are left out."""
    return [Boosted(term.word, weight * term.weight) for term in terms if weight * term.weight >= 1e-6]


def search_with_feedback(
    searcher: Searcher,
    feedback: FeedbackTerms,
    method: Literal["bo1", "rm3"],
    queries: Sequence[str],
    settings: FeedbackSettings,
    *,
    size: int,
) -> list[Ranking]:
    """Return the rankings of a feedback baseline, from one round of raw searches and one of expanded searches.

    Raises RetrievalError as `Searcher.search_many` does.
    """
    raw = searcher.search_many(list(queries), size=max(settings.documents, 1))
    bodies: list[Body] = []
    for query, ranking in zip(queries, raw, strict=True):
        top = Ranking(ranking.ids[: settings.documents], ranking.scores[: settings.documents])
        terms = feedback.terms(method, top.ids, top.scores, count=settings.terms)
        words, whole = boosted(terms, weight=settings.weight), searcher.settings.whole_boost
        # `whole_boost` favors none of the methods that add words.
        bodies.append(searcher.form.body(query, words, whole_boost=whole, size=size))
    return searcher.search_bodies(bodies)
