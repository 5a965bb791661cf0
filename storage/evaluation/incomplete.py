"""Incomplete judgments: the measures to show beside nDCG@k where documents are unjudged, and the one to believe.

An unjudged document counts as not relevant in nDCG@k. The pool of the judgments was drawn from older rankings, so a new
ranking shows more unjudged documents and loses more. Two measures leave unjudged documents out: `judged-nDCG@k`, on the
condensed list (Sakai, SIGIR 2007), and Bpref (Buckley and Voorhees, SIGIR 2004). Judged@k says how many there are.

Some judgments list relevant documents only, and mean that all others are not relevant: those of generated queries do.
They are complete. Without a document of grade 0 or less in them, none of this applies: every condensed list is perfect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.evaluation.comparison import holm
from storage.evaluation.measures import BPREF, JUDGED_ONLY, Qrels, Run, mean, ranked

JUDGED_MIN = 0.9  # Lowest Judged@k of every run in judgments that count as complete.
UNEVEN_MAX = 0.02  # Largest difference between two runs' Judged@k there.

_GAIN = re.compile(r"nDCG@([1-9][0-9]{0,5})")


class Believed(msgspec.Struct, frozen=True, kw_only=True):
    """The measure to believe on one set of queries.

    measure: nDCG@k if the judgments are complete enough, else judged-nDCG@k. judged: {run: Judged@k, its mean over the
    queries that the run answers}. reason: what Judged@k is, in words.
    """

    measure: str
    complete: bool
    judged: dict[str, float]
    reason: str

    @property
    def ndcg(self) -> str:
        """Return the nDCG@k that is believed or not."""
        return self.measure.removeprefix(JUDGED_ONLY)

    @property
    def line(self) -> str:
        """Return the line to show under a table; nothing if all documents are judged, and there is no choice."""
        unjudged = any(share < 1 for share in self.judged.values())
        return f"believed: {self.measure}, since {self.reason}" if unjudged else ""


def believed_measure(judged: Mapping[str, float], measure: str = "nDCG@10", *, unanswered: bool = False) -> Believed:
    """Return which of nDCG@k and judged-nDCG@k is believed, by each compared run's mean Judged@k.

    nDCG@k is believed if every run has at least 90% of its first k documents judged, and no two runs differ by more
    than 2 points. Otherwise judged-nDCG@k is believed. Each bound stands against its own error:

    - Few judgments: every run's nDCG@k is too low, and so are the differences between runs. With less than 90%, more
      than one document in ten counts as not relevant although nobody looked.
    - Uneven judgments: the run with more unjudged documents loses more. We hid judgments at random from lists that were
      judged completely (71 queries for 19,406 products). The difference between two runs in nDCG@10 was then wrong by
      .4 of their difference in Judged@10: .013 for .036, .046 for .11. In judged-nDCG@10 it was wrong by a seventh of
      that. With 2 points the error is below .01, which is the size of the gains that matter here.

    The rule reads only Judged@k, never a difference in nDCG, so it cannot choose the result that pleases. A condensed
    list errs the other way: it moves judged documents up, to the favor of the run with more unjudged documents (Sakai,
    CIKM 2008). If the two measures disagree in sign, the judgments decide nothing: judge more documents.
    measure: nDCG@k. unanswered: whether some run leaves queries unanswered, so that a table's Judged@k is lower.
    Raises ValueError without a run.
    """
    lowest, highest = min(judged.values()), max(judged.values())
    complete = lowest >= JUDGED_MIN and highest - lowest <= UNEVEN_MAX + 1e-12
    shares = [_share(value) for value in judged.values()]
    text = f"between {_share(lowest)} and {_share(highest)}" if len(shares) > 2 else " against ".join(shares)
    return Believed(
        measure=measure if complete else JUDGED_ONLY + measure,
        complete=complete,
        judged=dict(judged),
        reason=f"{_judged_at(measure)} is {text}{' over answered queries' if unanswered else ''}",
    )


def ndcg_in_doubt(measures: Iterable[str], qrels: Qrels) -> str | None:
    """Return the measure to which the rule and the added measures apply: the first nDCG@k.

    Returns None without nDCG@k, and if the judgments list relevant documents only.
    """
    lists_others = any(grade <= 0 for grades in qrels.values() for grade in grades.values())
    return _first_ndcg(measures) if lists_others else None


def added_measures(measures: Sequence[str], ndcg: str | None, judged: Mapping[str, float]) -> tuple[str, ...]:
    """Return judged-nDCG@k, Bpref and Judged@k, or those that the measures lack; none if all documents are judged.

    The documents are the first k of every query in any of the compared runs. If all of them are judged, judged-nDCG@k
    equals nDCG@k. ndcg: the nDCG@k in doubt, if there is one. judged: {run: `judged_share` to this depth}.
    """
    if ndcg is None or all(share == 1 for share in judged.values()):
        return ()
    return tuple(name for name in beside(ndcg) if name not in measures)


def beside(ndcg: str) -> tuple[str, ...]:
    """Return nDCG@k and the measures that are shown beside it where documents are unjudged."""
    return ndcg, _judged_at(ndcg), JUDGED_ONLY + ndcg, BPREF


def judged_share(run: Run, qrels: Qrels, measure: str) -> float:
    """Return the share of judged documents in the first k, as the mean over the queries that the run answers.

    measure: nDCG@k. A run without any document shows no unjudged one, and has 1.
    """
    depth = _depth(measure)
    shares = {}
    for query, scores in run.items():
        if top := ranked(scores)[:depth]:
            grades = qrels.get(query, {})
            shares[query] = sum(document in grades for document in top) / len(top)
    return mean(shares) if shares else 1.0


def holm_with_added(p_values: Mapping[str, float], added: Sequence[str]) -> dict[str, float]:
    """Return Holm's correction of the p-values by measure, in which no added measure changes another's.

    An added measure makes the claim of the first nDCG@k again: it is corrected in the place of nDCG@k.
    """
    asked = {name: p for name, p in p_values.items() if name not in added}
    corrected = dict(zip(asked, holm(list(asked.values())), strict=True))
    ndcg = _first_ndcg(asked)
    for name in added:
        if name in p_values:
            instead = {**asked, ndcg or name: p_values[name]}
            corrected[name] = dict(zip(instead, holm(list(instead.values())), strict=True))[ndcg or name]
    return corrected


def _first_ndcg(measures: Iterable[str]) -> str | None:
    return next((measure for measure in measures if _GAIN.fullmatch(measure)), None)


def _judged_at(measure: str) -> str:
    return f"Judged@{_depth(measure)}"


def _depth(measure: str) -> int:
    found = _GAIN.fullmatch(measure)
    if found is None:
        raise ValueError(f"expected nDCG@k, got {measure!r}")
    return int(found[1])


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
