"""The held-out gate: a version against raw results on judged queries that trained nothing, and the routes that follow.

The queries are the user's judged ones, if given, and the run's dev queries. Those whose words training asked are left
out. The gate admits a version if at least one part of the queries may be explored: its results, or raw results with
its own below, lose no more than `ramp.held_out_loss_max` there. Admission opens exploration alone: the off-policy gate
before the ramp needs searches that offered the version, and these come about at the floor's share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from search_env.catalogue.analysis import plain_words
from search_env.serving.ramp import RampSettings
from search_env.serving.route_learning import DEV, JUDGED, Gains, PartedGains, cross_fitted, learn_parts
from search_env.serving.routing import Part, RouteAction, Routes, RouteSettings, below, part_of
from storage.errors import EvaluationError
from storage.evaluation.comparison import Interval, compare_means
from storage.evaluation.measures import Qrels, Run, Values, is_measure, measure_run, ranked

DEPTH = 100  # Documents that are compared for each query.


class HeldOutRuns(NamedTuple):
    """One source of judged queries: their texts, what raw results and a version find, and the judgments.

    added: what the version finds for lists with its results below raw ones, searched with `route.terms_min`; None: the
    same as `helped`.
    """

    texts: Mapping[str, str]
    raw: Run
    helped: Run
    qrels: Qrels
    added: Run | None = None


class Measured(NamedTuple):
    """The worth of each way of serving a query, by measure and query."""

    raw: dict[str, Values]
    below: dict[str, Values]
    helped: dict[str, Values]

    def served(self, actions: Mapping[str, RouteAction], measure: str) -> Values:
        """Return the measure of each query, served as its action says."""
        by_action: dict[RouteAction, Values] = {
            "raw": self.raw[measure],
            "below": self.below[measure],
            "helped": self.helped[measure],
        }
        return {query: by_action[action][query] for query, action in actions.items()}


class GateVerdict(NamedTuple):
    """The held-out gate's answer: whether a version is admitted, why, the figures, and its routes."""

    admitted: bool
    reason: str
    figures: dict[str, float]
    routes: Routes


def measured(held: HeldOutRuns, measures: Collection[str], *, top: int) -> Measured:
    """Return the measures of raw results, of a version's below the first raw ones, and of the version's.

    Raises EvaluationError for a measure that nobody knows, or without a judged query.
    """
    if wrong := [name for name in measures if not is_measure(name)]:
        raise EvaluationError(f"route: expected a measure as `evaluate` names it, such as nDCG@10, got {wrong[0]!r}")
    runs = [held.raw, _below(held, top), held.helped]
    return Measured(*(measure_run(_judged(run, held.qrels), held.qrels, list(measures)) for run in runs))


def gains_of(found: Measured, settings: RouteSettings) -> dict[str, Gains]:
    """Return each query's gains over raw results."""
    raw_protect, raw_gain = found.raw[settings.protect], found.raw[settings.gain]
    return {
        query: Gains(
            protect=found.helped[settings.protect][query] - raw_protect[query],
            gain=found.helped[settings.gain][query] - raw_gain[query],
            below=found.below[settings.gain][query] - raw_gain[query],
            below_protect=found.below[settings.protect][query] - raw_protect[query],
        )
        for query in raw_protect
    }


def judge_version(
    version: str,
    sources: Mapping[str, HeldOutRuns],
    *,
    known: Collection[str],
    head: Collection[str],
    settings: RouteSettings,
    ramp: RampSettings,
    now_ms: int,
    categories: Mapping[str, str] | None = None,
) -> GateVerdict:
    """Return whether held-out queries admit a version, and the routes that they give it.

    sources: "judged", "dev" or both. known: words that training asked. head: queries that people ask often.
    categories: of words, for parts by category.
    Raises EvaluationError without a judged query.
    """
    parted, tables = {}, {}
    for source, held in sources.items():
        tables[source] = measured(held, {settings.protect, settings.gain}, top=settings.top)
        parts = {
            query: part_of(text, settings.by, known=known, head=head, categories=categories)
            for query, text in held.texts.items()
        }
        parted[source] = PartedGains(gains_of(tables[source], settings), parts)
    # The log is one more source later, so alpha is shared with it from the beginning.
    parts_found = learn_parts(parted, settings, explore_loss_max=ramp.held_out_loss_max, more_sources=1)
    trusted = JUDGED if JUDGED in sources else DEV
    found = tables[trusted]
    protect = compare_means(found.helped[settings.protect], found.raw[settings.protect])
    actions = cross_fitted(parted, trusted, settings)
    served = [compare_means(found.served(actions, name), found.raw[name]) for name in (settings.protect, settings.gain)]
    figures = {
        "queries": float(len(found.raw[settings.protect])),
        **_figures("helped", protect),
        **_figures("served", served[0]),
        **_figures("served_gain", served[1]),
    }
    routes = Routes(
        version=version,
        by=settings.by,
        top=settings.top,
        terms_min=settings.terms_min,
        parts=parts_found,
        known=tuple(sorted(known)) if settings.by == "known" else (),
        head=tuple(sorted(head)) if settings.by == "traffic" else (),
        categories=dict(categories or {}) if settings.by == "category" else {},
        queries=sum(len(held.texts) for held in sources.values()),
        queries_sha256=_hash(sources),
        evidence=figures,
        made_at_ms=now_ms,
    )
    admitted = any(part.explored != "raw" for part in parts_found.values())
    said = (
        f"held-out {settings.protect} {_said(protect)} over raw on {len(found.raw[settings.protect]):,} {trusted} "
        f"queries; routes: {routes_text(parts_found)}"
    )
    if not admitted:
        said += (
            f". Expected a part of the queries whose loss is above {-ramp.held_out_loss_max:g} at its lower end "
            "(ramp.held_out_loss_max)"
        )
    return GateVerdict(admitted, said, figures, routes)


def routes_text(parts: Mapping[str, Part]) -> str:
    """Return what each part may be served, as one line."""
    return "; ".join(
        f"{name}: {part.action}" + (f" (explored: {part.explored})" if part.explored != part.action else "")
        for name, part in sorted(parts.items())
    )


def without_trained(held: HeldOutRuns, trained: Collection[str]) -> HeldOutRuns:
    """Return the queries that training did not ask. trained: plain words of those that it did."""
    kept = {query: text for query, text in held.texts.items() if plain_words(text) not in trained}
    return HeldOutRuns(
        texts=kept,
        raw={query: held.raw.get(query, {}) for query in kept},
        helped={query: held.helped.get(query, {}) for query in kept},
        qrels={query: held.qrels[query] for query in kept},
        added=None if held.added is None else {query: held.added.get(query, {}) for query in kept},
    )


def _below(held: HeldOutRuns, top: int) -> dict[str, dict[str, float]]:
    added, found = held.helped if held.added is None else held.added, {}
    for query in held.qrels:
        raw, helped = ranked(held.raw.get(query, {})), ranked(added.get(query, {}))
        ids = below(raw[:DEPTH], helped[:DEPTH], top=top, size=DEPTH)
        found[query] = {name: -float(rank) for rank, name in enumerate(ids)}
    return found


def _judged(run: Run, qrels: Qrels) -> dict[str, Mapping[str, float]]:
    return {query: run.get(query, {}) for query in qrels}


def _hash(sources: Mapping[str, HeldOutRuns]) -> str:
    facts = {
        source: sorted((query, held.texts[query], sorted(held.qrels[query].items())) for query in held.texts)
        for source, held in sources.items()
    }
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def _figures(name: str, found: Interval) -> dict[str, float]:
    values = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {key: value for key, value in values.items() if value is not None}


def _said(found: Interval) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
