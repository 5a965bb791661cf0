"""The check of the relevance model: what it does to the raw order of each kind of query, and how far it is calibrated.

A model whose order of the raw top 100 is worse than the raw order has nothing to teach a policy about queries of that
kind: `gate` says what follows from that. Judged queries are scored by trees that saw none of their own judgments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from infra.app.home import IndexFolder
from infra.app.progress import Report
from infra.recipes.recipe import Judged
from search_env.catalogue.analysis import analyze
from search_env.catalogue.corpora import Qrels, Query, Ranking, rank_by_score
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.searching import Searcher
from search_env.models.features import FeatureMaker
from search_env.models.relevance import RelevanceModel
from search_env.models.reliability import Reliability, reliability
from search_env.models.training_pairs import GbdtSettings, PairMaker, title_labels
from search_env.queries.intents import load_intents
from storage.evaluation.comparison import Interval
from storage.evaluation.tables import EvaluationSettings, evaluate_runs

PAIRS, VALUES, TITLES, JUDGED = "attribute pairs", "attribute values", "title queries", "judged queries"
RAW, RERANKED = "raw", "reranked"
MEASURE = "nDCG@10"
DEPTH = 100
GRADES = {1.0: 5, 0.6: 3, 0.4: 2}
"""Whole grades in the proportion of a title query's labels."""


class KindCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of query: raw order against the model's order of the same documents.

    raw, reranked: mean of each measure over the queries. differences: reranked less raw, paired by query.
    believed: the measure to believe (see `storage.evaluation.incomplete`), and the line that says why, if there is a
    choice. reliability: of the scores of judged documents; None without any.
    """

    kind: str
    queries: int
    raw: dict[str, float]
    reranked: dict[str, float]
    differences: dict[str, Interval]
    believed: str
    line: str
    reliability: Reliability | None

    @property
    def gain(self) -> Interval:
        """Return the difference in the believed measure."""
        return self.differences[self.believed]


class JudgeCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The check of one model on one version of an index."""

    model: str
    index: str
    kinds: tuple[KindCheck, ...]

    def of(self, kind: str) -> KindCheck | None:
        """Return the check of a kind, or None if it was not checked."""
        return next((each for each in self.kinds if each.kind == kind), None)


class JudgedSet(NamedTuple):
    """Judged queries of one kind. within: the only documents that are judged at all; None if all are."""

    kind: str
    queries: Sequence[Query]
    qrels: Qrels
    within: Mapping[str, int] | None = None


class Judge(NamedTuple):
    """A model, and the search whose order it is compared with."""

    searcher: Searcher
    relevance: RelevanceModel
    catalogue: Catalogue

    def check(self, sets: Sequence[JudgedSet], *, samples: int, report: Report) -> list[KindCheck]:
        """Return the check of each set that has a query with a relevant document."""
        found = []
        for number, each in enumerate(sets):
            report("checking the relevance model", number, len(sets))
            asked = [query for query in each.queries if max(each.qrels.get(query.id, {}).values(), default=0) > 0]
            if asked:
                found.append(self._check(each._replace(queries=asked), samples))
        report("checking the relevance model", len(sets), len(sets))
        return found

    def _check(self, asked: JudgedSet, samples: int) -> KindCheck:
        texts = [query.text for query in asked.queries]
        rankings = [_within(each, asked.within) for each in self.searcher.search_many(texts, size=DEPTH)]
        scores = self.relevance.score_many([(text, each.ids) for text, each in zip(texts, rankings, strict=True)])
        qrels = {query.id: asked.qrels[query.id] for query in asked.queries}
        runs: dict[str, dict[str, dict[str, float]]] = {RAW: {}, RERANKED: {}}
        for query, ranking, of in zip(asked.queries, rankings, scores, strict=True):
            runs[RAW][query.id] = dict(zip(ranking.ids, ranking.scores, strict=True))
            reranked = rank_by_score(ranking.ids, of.tolist())
            runs[RERANKED][query.id] = dict(zip(reranked.ids, reranked.scores, strict=True))
        table = evaluate_runs(
            runs, qrels, baseline=RAW, settings=EvaluationSettings(measures=(MEASURE,), samples=samples)
        )
        raw, reranked_row = table.runs
        believed = table.believed
        return KindCheck(
            kind=asked.kind,
            queries=len(asked.queries),
            raw={name: float(value.value or 0.0) for name, value in raw.measures.items()},
            reranked={name: float(value.value or 0.0) for name, value in reranked_row.measures.items()},
            differences={name: reranked_row.differences[name].interval for name in table.measures},
            believed=believed.measure if believed and table.added else MEASURE,
            line=believed.line if believed else "",
            reliability=_reliability(runs[RERANKED], qrels),
        )


def made_sets(
    folder: IndexFolder, catalogue: Catalogue, settings: GbdtSettings, kinds: Sequence[str], *, count: int
) -> list[JudgedSet]:
    """Return at most `count` queries of each of these kinds whose right answers the catalogue knows.

    Value pairs come from the split `dev`, so no query of a test decides what a policy trains on. Title queries are
    drawn with another seed than those of the training. On an attached index, only documents of the sample are judged.
    """
    within = catalogue.row_of
    made = []
    for kind, split in ((PAIRS, "dev"), (VALUES, "test_value")):
        if kind in kinds:
            intents, known = load_intents(folder.intents, split)
            made.append(JudgedSet(kind, sorted(intents, key=lambda query: query.id)[:count], known, within))
    if TITLES in kinds:
        queries, qrels = title_queries(catalogue, settings, count=count)
        made.append(JudgedSet(TITLES, queries, qrels, within))
    return made


def title_queries(catalogue: Catalogue, settings: GbdtSettings, *, count: int) -> Judged:
    """Return queries of title words, with a grade for each document that has all the words in some field."""
    pairs = PairMaker(catalogue, msgspec.structs.replace(settings, cosine=False, seed=settings.seed + 1))
    maker = FeatureMaker(catalogue)
    queries: list[Query] = []
    qrels: Qrels = {}
    for text in dict.fromkeys(text for text, _ in pairs.title_queries(count)):
        rows = _holders(catalogue, text)
        labels = title_labels(maker.features(text, rows)).astype(float).round(1).tolist()
        query = Query(id=f"title-{len(queries)}", text=text)
        queries.append(query)
        qrels[query.id] = {
            catalogue.ids[row]: GRADES[label] for row, label in zip(rows.tolist(), labels, strict=True) if label
        }
    return queries, qrels


def _holders(catalogue: Catalogue, text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the rows of the documents that have every word of a text in some field."""
    found: set[int] | None = None
    for term in set(catalogue.vocabulary.known(analyze(text))):
        rows: set[int] = set()
        for field in (catalogue.contents, catalogue.attributes):
            if term < field.bm25.shape[1]:
                rows.update(field.bm25.indices[field.bm25.indptr[term] : field.bm25.indptr[term + 1]].tolist())
        found = rows if found is None else found & rows
    return np.array(sorted(found or ()), dtype=np.int64)


def _within(ranking: Ranking, within: Mapping[str, int] | None) -> Ranking:
    if within is None or all(name in within for name in ranking.ids):
        return ranking
    kept = [place for place, name in enumerate(ranking.ids) if name in within]
    return Ranking([ranking.ids[place] for place in kept], [ranking.scores[place] for place in kept])


def _reliability(scores: Mapping[str, Mapping[str, float]], qrels: Qrels) -> Reliability | None:
    """Return the reliability over documents with a grade, or over all if the judgments list relevant ones only."""
    complete = not any(grade <= 0 for grades in qrels.values() for grade in grades.values())
    grade_max = max(grade for grades in qrels.values() for grade in grades.values())
    pairs = [
        (score, max(qrels[query].get(name, 0), 0) / grade_max)
        for query, of in scores.items()
        for name, score in of.items()
        if complete or name in qrels[query]
    ]
    return reliability(np.array([score for score, _ in pairs]), np.array([label for _, label in pairs]))
