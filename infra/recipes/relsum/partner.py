"""ReLSum's partner: the cross-encoder that ranks, adapted to the summaries of the training lists' products.

The paper keeps it frozen, and names its adaptation as the next step (arXiv:2508.08404, conclusion).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.app.settings import Settings
from infra.recipes.recipe import NewRun
from infra.recipes.relsum.baselines import rank_lists
from infra.recipes.relsum.ranked_index import RankedIndex
from infra.recipes.relsum.ranker import adapt_ranker, said, taught_pairs
from infra.recipes.relsum.writing import left_out, policy_summaries
from search_env.catalogue.corpora import Query
from search_env.models.crossencoder import current_version
from storage.evaluation.measures import measure_run
from streams.errors import SettingsError


class RankerPartner:
    """The cross-encoder versions of an index, as the partner of a summarizer."""

    setting = "cross_encoder.version"
    measure = "nDCG@5"

    def first(self, app: App, index: str, *, held_out: Sequence[Query], seed: int, report: Report) -> str:
        """Return the version that learned from lists alone; it is trained if it is missing.

        Raises SettingsError unless `alternation.begin` is "nothing" and `alternation.samples` is 0.
        """
        for name, only in (("begin", "nothing"), ("samples", 0)):
            if (got := getattr(app.settings.alternation, name)) != only:
                raise SettingsError(
                    f"alternation.{name}: expected {only!r} with a cross-encoder, whose lessons are lists and whose "
                    f"summaries are decoded as served; got {got!r}"
                )
        return RankedIndex(app.home.index(index), app.settings, report).cross_encoder.version

    def original(self, app: App, index: str) -> str:
        """Return the index's current version, which no adaptation changes."""
        return app.settings.cross_encoder.version or current_version(app.home.index(index).cross_encoders)

    def settle(self, app: App, new: NewRun, report: Report) -> App:
        """Return the app as it is: a cross-encoder needs no measurement."""
        return app

    def told(self, settings: Settings) -> dict[str, float]:
        """Return no values, because `settle` measures none."""
        return {}

    def texts(self, app: App, run: RunSettings, report: Report) -> Mapping[str, str]:
        """Return the summaries of the products of taught pairs and of dev lists, by document id."""
        relsum, run_dir = RankedIndex(app.home.index(run.index), app.settings, report), app.home.run(run.run)
        documents = {pair.document for pair in taught_pairs(relsum)}
        documents.update(document for of in relsum.lists("dev").qrels.values() for document in of)
        return policy_summaries(relsum, run_dir, run, sorted(documents), policy="latest", report=report)

    def adapt(
        self,
        app: App,
        index: str,
        *,
        parent: str,
        texts: Mapping[str, str],
        held_out: Sequence[Query],
        turn: int,
        seed: int,
        report: Report,
    ) -> str:
        """Adapt a version to pairs of training lists, and calibrate it on dev lists; turn and seed change nothing."""
        relsum = RankedIndex(app.home.index(index), app.settings, report).read_with(parent)
        return adapt_ranker(relsum, relsum.cross_encoder, said(texts), left_out=left_out(held_out))

    def measured(
        self, app: App, index: str, version: str, texts: Mapping[str, str], *, name: str, report: Report
    ) -> float:
        """Return mean nDCG@5 of dev lists."""
        relsum = RankedIndex(app.home.index(index), app.settings, report).read_with(version)
        queries, qrels = relsum.lists("dev")
        values = measure_run(rank_lists(relsum, said(texts), queries, qrels), qrels, [self.measure])[self.measure]
        return math.fsum(values.values()) / len(values)
