"""A check of ReLSum's premise before any training: calibration, agreement of rewards with ranking, and time.

If a reward does not order methods as the ranking measure does, a higher reward is no better search. In a pilot, the
absolute error called the commonest attributes better than random ones, while nDCG said the opposite.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import get_args

import msgspec
import numpy as np

from infra.recipes.recipe import PremiseFound
from infra.recipes.relsum.baselines import ARMS, DESCRIBED, written_by
from infra.recipes.relsum.ranked_index import RankedIndex
from search_env.models.calibration import area_under_curve
from search_env.models.crossencoder import Calibration
from search_env.relsum.reward import Kind, RelsumSettings, Scored, relsum_reward
from storage.evaluation.measures import measure_run

KINDS: tuple[Kind, ...] = get_args(Kind)
TIMED_PAIRS = 200


class RelsumPremise(msgspec.Struct, frozen=True, kw_only=True):
    """The results of the check on the dev lists.

    arms: for each arm nDCG@5, AUC (relevant products against others, over all lists together), and the mean of each
    reward.
    agreement: Pearson's correlation of each reward with nDCG@5 over the arms. milliseconds: processor time of one pair,
    with the title alone, with a summary, with the description.
    """

    calibration: Calibration | None
    arms: dict[str, dict[str, float]]
    agreement: dict[str, float]
    milliseconds: dict[str, float]

    def found(self) -> PremiseFound:
        """Return the checks as a table of arms, with the cross-encoder's calibration above it and the times below."""
        names = list(next(iter(self.arms.values())))
        rows = [(arm, *(f"{row[name]:.3f}" for name in names)) for arm, row in self.arms.items()]
        agreement = [f"{self.agreement[name]:.3f}" if name in self.agreement else "" for name in names]
        above = ""
        if self.calibration is not None:
            above = (
                f"cross-encoder {self.calibration.version}: AUC {self.calibration.auc:.3f}, calibration error "
                f"{self.calibration.ece_before:.3f} before, {self.calibration.ece_after:.3f} after"
            )
        return PremiseFound(
            value=self,
            columns=("arm", *names),
            rows=[*rows, ("agreement with nDCG@5", *agreement)],
            above=above,
            below=", ".join(f"{name} {value:.2f} ms" for name, value in self.milliseconds.items()),
        )


def check_premise(relsum: RankedIndex, *, split: str = "dev", queries_max: int = 200) -> RelsumPremise:
    """Measure the index's cross-encoder and baselines on a split's lists, before any training."""
    lists = relsum.lists(split)
    queries = lists.queries[:queries_max]
    qrels = {query.id: lists.qrels[query.id] for query in queries}
    encoder, values = relsum.cross_encoder, relsum.values
    reference = rank_logits(
        relsum,
        [(q.text, relsum.text(d, relsum.summary(d, values.by_key_counts(d)))) for q in queries for d in qrels[q.id]],
    )
    arms: dict[str, dict[str, float]] = {}
    for arm in ARMS:
        items = [(query, document) for query in queries for document in qrels[query.id]]
        texts = [relsum.text(d, said) for (_, d), said in zip(items, written_by(relsum, arm)(items), strict=True)]
        pairs = [(query.text, text) for (query, _), text in zip(items, texts, strict=True)]
        logits = encoder.logits(pairs, described=arm == DESCRIBED, report=relsum.report)
        read = {
            (query.id, document): (logit, probability)
            for (query, document), logit, probability in zip(
                items, logits.tolist(), encoder.probabilities(logits).tolist(), strict=True
            )
        }
        ranked = {
            query.id: {document: read[query.id, document][1] for document in qrels[query.id]} for query in queries
        }
        ndcg = measure_run(ranked, qrels, ["nDCG@5"])["nDCG@5"]
        rewards: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for query in queries:
            grades = qrels[query.id]
            others = [
                reference[query.text, relsum.text(d, relsum.summary(d, values.by_key_counts(d)))]
                for d, grade in grades.items()
                if grade == 0
            ]
            for document, grade in grades.items():
                logit, probability = read[query.id, document]
                scored = Scored(
                    logit=logit,
                    probability=probability,
                    label=int(grade > 0),
                    others=others,
                )
                for kind in KINDS:
                    if kind == "error" or grade > 0:
                        rewards[kind].append(relsum_reward([scored], 0, RelsumSettings(kind=kind))[0])
        scores = np.array([ranked[query.id][document] for query in queries for document in qrels[query.id]])
        labels = np.array([grade > 0 for query in queries for grade in qrels[query.id].values()])
        arms[arm] = {
            "nDCG@5": float(np.mean(list(ndcg.values()))),
            "AUC": area_under_curve(scores, labels),
            **{kind: float(np.mean(found)) for kind, found in rewards.items()},
        }
    ndcgs = [row["nDCG@5"] for row in arms.values()]
    agreement: dict[str, float] = {
        kind: float(np.corrcoef(ndcgs, [row[kind] for row in arms.values()])[0, 1]) for kind in KINDS
    }
    return RelsumPremise(
        calibration=encoder.calibration,
        arms=arms,
        agreement=agreement,
        milliseconds=scoring_milliseconds(relsum, queries[0].text),
    )


def scoring_milliseconds(relsum: RankedIndex, query: str) -> dict[str, float]:
    """Return processor milliseconds of scoring one product, by the text beside its title, without remembered scores."""
    documents = sorted({document for of in relsum.lists("test").qrels.values() for document in of})[:TIMED_PAIRS]
    values, found = relsum.values, dict[str, float]()
    for name, texts in {
        "title": [relsum.text(d, "") for d in documents],
        "summary": [relsum.text(d, relsum.summary(d, values.by_key_counts(d))) for d in documents],
        "description": [relsum.text(d, values.description(d)) for d in documents],
    }.items():
        began = time.process_time()
        relsum.cross_encoder.logits([(f"{query} {number}", text) for number, text in enumerate(texts)], described=True)
        found[name] = 1000 * (time.process_time() - began) / len(documents)
    return found


def rank_logits(relsum: RankedIndex, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Return the logit of each (query, text) pair."""
    return dict(zip(pairs, relsum.cross_encoder.logits(pairs, report=relsum.report).tolist(), strict=True))
