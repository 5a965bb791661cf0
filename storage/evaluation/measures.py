"""The measures of one run, query by query, computed by `ir_measures` (trec_eval's own code) on one order of documents.

The order is score descending, then document id ascending, as in the search itself. trec_eval breaks ties by document id
*descending*, and other providers break them in other ways. So every provider gets the ranks in place of the scores.

These conventions are fixed. The gain of a document in nDCG is max(grade, 0), linear as in trec_eval, and discounted by
log2(rank + 1). A document is relevant if its grade is at least `relevant_grade`; an unjudged document is not relevant.
A judged query without a ranking scores 0.

If judgments are incomplete, two kinds of measures leave unjudged documents out. `judged-nDCG@10` is nDCG@10 of the
condensed list: the ranking without its unjudged documents, each of the others moved up (Sakai, SIGIR 2007). So are
`judged-RR@10`, `judged-AP` and the rest. `Bpref` (Buckley and Voorhees, SIGIR 2004, as trec_eval computes it) is the
mean, over the R relevant documents, of 1 - min(n, R) / min(N, R): n judged non-relevant documents are ranked above it,
of N in the judgments. A relevant document that is not retrieved adds 0; one without any non-relevant above it adds 1.
A negative grade counts as judged and not relevant. trec_eval's own files take it for unjudged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import ir_measures
from ir_measures.providers import FallbackProvider
from ir_measures.providers.judged_provider import JudgedProvider
from ir_measures.providers.msmarco_provider import MsMarcoProvider
from ir_measures.providers.pytrec_eval_provider import PytrecEvalProvider

from storage.errors import EvaluationError
from storage.evaluation.precision import recall_at_precision

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]
Values = dict[str, float]  # query id → value

MEASURES = ("nDCG@10", "RR@10", "R@100", "R@90P", "Judged@10")

# Only these measures, and no cutoff of 0: with a cutoff of 0, trec_eval ends the whole process.
_KNOWN = re.compile(r"(nDCG|AP|RR|Rprec)|(nDCG|AP|RR|R|P|Success|Judged)@[1-9][0-9]{0,5}")
_RECALL_AT_PRECISION = re.compile(r"R@([1-9][0-9]?|100)P")

BPREF = "Bpref"
JUDGED_ONLY = "judged-"
KNOWN = (
    "nDCG@k, RR@k, R@k, P@k, AP@k, Success@k, Judged@k with k from 1 on, nDCG, RR, AP, Rprec, Bpref, R@90P, "
    "or judged-NAME (such as judged-nDCG@10), which leaves unjudged documents out, for all but Judged@k and Bpref"
)


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Return document ids, best first: score descending, ties by id ascending."""
    return sorted(scores, key=lambda document: (-scores[document], document))


def measure_run(
    run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES, *, relevant_grade: int = 1
) -> dict[str, Values]:
    """Return {measure: {query id: value}} for every query of the qrels, in the order of query ids.

    measures: "nDCG", "AP" or "RR", with a cutoff ("nDCG@10") or without; "Rprec" or "Bpref"; "R", "P", "Success" or
    "Judged" with a cutoff ("R@100"), all in the spelling of ir_measures; or "R@90P", recall at 90% precision (see
    `precision`). "judged-" before a name, except Judged and Bpref, measures the ranking without unjudged documents.
    relevant_grade: the lowest grade that counts as relevant, for measures with binary relevance.
    Raises EvaluationError if a measure is unknown, or if the run has a query that the qrels do not judge.
    """
    check_queries(run, qrels)
    for name in measures:
        if not is_measure(name):
            raise EvaluationError(f"measure: expected {KNOWN}; got {name!r}")
    whole = [name for name in measures if not name.startswith(JUDGED_ONLY)]
    found = _measured(run, qrels, whole, relevant_grade)
    if judged_only := [name.removeprefix(JUDGED_ONLY) for name in measures if name.startswith(JUDGED_ONLY)]:
        values = _measured(condensed(run, qrels), qrels, judged_only, relevant_grade)
        found |= {JUDGED_ONLY + name: of for name, of in values.items()}
    return {name: found[name] for name in measures}


def condensed(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Return the run without its unjudged documents; a query may be left without any document."""
    return {
        query: {document: score for document, score in scores.items() if document in qrels[query]}
        for query, scores in run.items()
    }


def _measured(run: Run, qrels: Qrels, measures: Sequence[str], relevant_grade: int) -> dict[str, Values]:
    queries = sorted(qrels)
    table = {name: dict.fromkeys(queries, 0.0) for name in measures}
    # A separate list of providers: the default one also holds a Perl program and pure-Python rewrites of trec_eval.
    provider = FallbackProvider([PytrecEvalProvider(), JudgedProvider(), MsMarcoProvider()])
    ranks = {query: _rank_scores(scores) for query, scores in run.items() if scores}
    if standard := {name: _parsed(name, relevant_grade) for name in measures if _KNOWN.fullmatch(name)}:
        # trec_eval knows no negative grades; whether a document counts as judged does not depend on the grade.
        grades = {query: {document: max(grade, 0) for document, grade in of.items()} for query, of in qrels.items()}
        names: dict[str, list[str]] = {}
        for name, measure in standard.items():
            names.setdefault(str(measure), []).append(name)
        for metric in provider.iter_calc(list(standard.values()), grades, ranks):
            for name in names[str(metric.measure)]:
                table[name][metric.query_id] = float(metric.value)
    if BPREF in table:
        # Grades 0 and 1: for a higher relevant grade than any of the query, trec_eval's bpref reads beyond its array.
        marks = {query: {d: int(grade >= relevant_grade) for d, grade in of.items()} for query, of in qrels.items()}
        for metric in provider.iter_calc([ir_measures.Bpref], marks, ranks):
            table[BPREF][metric.query_id] = float(metric.value)
    for name in measures:
        if match := _RECALL_AT_PRECISION.fullmatch(name):
            share = int(match[1]) / 100
            for query in queries:
                table[name][query] = recall_at_precision(
                    run.get(query, {}), qrels[query], precision=share, relevant_grade=relevant_grade
                )
    return table


def is_measure(name: str) -> bool:
    """Return whether `measure_run` knows a measure of this name."""
    plain = name.removeprefix(JUDGED_ONLY)
    if plain != name and plain.startswith("Judged"):
        return False  # It would always be 1.
    return name == BPREF or bool(_KNOWN.fullmatch(plain) or _RECALL_AT_PRECISION.fullmatch(plain))


def mean(values: Mapping[str, float]) -> float:
    """Return the mean over queries, summed in the order of query ids so that the last bit is always the same."""
    return sum(values[query] for query in sorted(values)) / len(values) if values else 0.0


def check_queries(run: Run, qrels: Qrels) -> None:
    """Raise EvaluationError if there is no judged query, or if the run has unjudged queries."""
    if not qrels:
        raise EvaluationError("expected judgments for at least one query, got none; check the qrels file")
    if strangers := sorted(set(run) - set(qrels)):
        raise EvaluationError(
            f"{len(strangers)} of {len(run)} queries in the run have no judgments ({_some(strangers)}); "
            "use the qrels that belong to it, or leave these queries out"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (", …" if len(names) > 3 else "")


def _rank_scores(scores: Mapping[str, float]) -> dict[str, float]:
    return {document: -float(rank) for rank, document in enumerate(ranked(scores))}


def _parsed(name: str, relevant_grade: int) -> ir_measures.Measure:
    measure = ir_measures.parse_measure(name)
    if "rel" in measure.SUPPORTED_PARAMS and relevant_grade != 1:
        measure = measure(rel=relevant_grade)
    return measure
