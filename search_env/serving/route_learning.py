"""The rule by which routes are learned: a version serves a part of the queries only if a lower bound says that it wins.

A part's mean gain is shrunk towards the mean of all queries: w m_s + (1 - w) m, with w = n_s / (n_s + k). So a small
part leans on the others. Its error is that of this linear estimate, with one pooled variance and Student's t. The
error alpha is shared among all comparisons (Bonferroni).

Sources of evidence are asked in the order of trust: people's actions in the log, a user's judged queries, dev queries.
The first source that proves a gain decides for the version. A source whose own queries show a loss decides against it,
so a gain on dev queries counts only where people's own queries show no loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from search_env.serving.routing import Bound, Part, PartGains, RouteAction, RouteSettings

Floats = npt.NDArray[np.float64]
LOG, JUDGED, DEV = "log", "judged", "dev"
TRUST = (LOG, JUDGED, DEV)
COMPARISONS = 2  # For each part and source: helped, and below.
FOLDS = 10
FREEDOM_MIN = 3
WIDEST = 1.0  # A measure from 0 to 1 gains or loses no more.
ROUNDING = 1e-12


class Gains(NamedTuple):
    """One query's gains over raw results: helped, in the protected measure and in the other; below, in the other.

    below_protect: below, in the protected measure. It is 0 if that measure ends at the rank of the last raw result.
    """

    protect: float
    gain: float
    below: float
    below_protect: float = 0.0


class PartedGains(NamedTuple):
    """One source of evidence: gains by query, and each query's part."""

    gains: Mapping[str, Gains]
    parts: Mapping[str, str]


def learn_parts(
    sources: Mapping[str, PartedGains], settings: RouteSettings, *, explore_loss_max: float, more_sources: int = 0
) -> dict[str, Part]:
    """Return what each part of the queries may be served, from judged queries.

    sources: by name, see `TRUST`. explore_loss_max: loss up to which a small share may see a version that has not won.
    more_sources: sources that are added later (the log), with which alpha is shared, too.
    """
    names = sorted({source.parts[query] for source in sources.values() for query in source.gains})
    level = settings.alpha / max(COMPARISONS * len(names) * (len(sources) + more_sources), 1)
    seen = {source: see(of, level, settings) for source, of in sources.items()}
    return {
        name: decide(
            {source: of[name] for source, of in seen.items() if name in of}, settings, explore_loss_max=explore_loss_max
        )
        for name in names
    }


def see(source: PartedGains, level: float, settings: RouteSettings) -> dict[str, PartGains]:
    """Return what a source says of each part. level: one-sided error of each bound."""
    queries = sorted(source.gains)
    if not queries:
        return {}
    labels = [source.parts[query] for query in queries]
    names = sorted(set(labels))
    places = np.array([names.index(label) for label in labels])
    table = np.array([source.gains[query] for query in queries], dtype=np.float64)  # [Q, 4]
    protect, gain, below, below_protect = (
        _bounds(table[:, column], places, len(names), level, settings.shared_queries) for column in range(4)
    )
    return {
        name: PartGains(
            queries=int((places == place).sum()),
            protect=protect[place],
            gain=gain[place],
            below=below[place],
            below_protect=below_protect[place].own,
        )
        for place, name in enumerate(names)
    }


def decide(seen: Mapping[str, PartGains], settings: RouteSettings, *, explore_loss_max: float) -> Part:
    """Return a part's action and what may be explored, from all sources; see the module."""
    asked = [seen[source] for source in TRUST if source in seen]
    below_is_safe = all(each.below_protect > -settings.loss_max - ROUNDING for each in asked)
    helped, below = [each.protect for each in asked], [each.below for each in asked] if below_is_safe else []
    action: RouteAction = "raw"
    if _wins(helped, settings.loss_max):
        action = "helped"
    elif _wins(below, 0.0):
        action = "below"
    explored = action
    if action == "raw":
        if _harmless(helped, explore_loss_max):
            explored = "helped"
        elif below and below[0].own > ROUNDING and _harmless(below, explore_loss_max):
            explored = "below"  # Below raw results a version that finds nothing more does no harm, and no good.
    return Part(action=action, explored=explored, seen=dict(seen))


def _wins(bounds: Sequence[Bound], loss_max: float) -> bool:
    """Return whether a source proves a gain before a more trusted one shows a loss among its own queries."""
    for each in bounds:
        if each.own < -loss_max - ROUNDING:
            return False
        if each.low > -loss_max:
            return True
    return False


def _harmless(bounds: Sequence[Bound], loss_max: float) -> bool:
    """Return whether a source rules a loss out before a more trusted one proves one."""
    for each in bounds:
        if each.high < 0:
            return False
        if each.low > -loss_max:
            return True
    return False


def cross_fitted(
    sources: Mapping[str, PartedGains],
    held_out: str,
    settings: RouteSettings,
    *,
    learned_on: Mapping[str, Gains] | None = None,
    seed: int = 0,
) -> dict[str, RouteAction]:
    """Return the action of each query of one source, by rules that never saw it: those without the query's fold.

    held_out: the source whose queries are parted into folds, by a hash of id and seed; the others are whole.
    learned_on: other gains of that source to learn on, such as `swapped` ones; None for its own.
    """
    gains, parts = sources[held_out]
    taught = gains if learned_on is None else learned_on
    folds = {query: _fold(query, seed) for query in gains}
    found: dict[str, RouteAction] = {}
    for fold in sorted(set(folds.values())):
        others = {query: taught[query] for query in gains if folds[query] != fold}
        learned = learn_parts({**sources, held_out: PartedGains(others, parts)}, settings, explore_loss_max=0.0)
        for query in (query for query in gains if folds[query] == fold):
            part = learned.get(parts[query])
            found[query] = part.action if part is not None else "raw"
    return found


def swapped(gains: Mapping[str, Gains], seed: int) -> dict[str, Gains]:
    """Return the gains with the sides of each query, raw and helped, swapped at random: a version without gain."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=len(gains))
    return {
        query: Gains(*(float(sign) * value for value in gains[query]))
        for query, sign in zip(sorted(gains), signs, strict=True)
    }


def _bounds(values: Floats, places: npt.NDArray[np.int64], parts: int, level: float, shared: float) -> list[Bound]:
    """Return the bounds of each part's mean gain. values, places: [Q]; places are numbers of parts."""
    counts = np.bincount(places, minlength=parts).astype(np.float64)
    means = np.bincount(places, weights=values, minlength=parts) / counts
    freedom = len(values) - parts
    if freedom < FREEDOM_MIN:
        return [Bound(own=float(mean), value=float(mean), low=-WIDEST, high=WIDEST) for mean in means]
    variance = float(np.square(values - means[places]).sum()) / freedom
    reach = float(student.ppf(1 - level, freedom))
    overall, found = float(values.mean()), []
    for place in range(parts):
        weight = counts[place] / (counts[place] + shared)
        shares = (1 - weight) * counts / counts.sum()  # Each part's share in the linear estimate.
        shares[place] += weight
        error = float(np.sqrt(variance * np.square(shares) @ (1 / counts)))
        value = float(weight * means[place] + (1 - weight) * overall)
        found.append(Bound(own=float(means[place]), value=value, low=value - reach * error, high=value + reach * error))
    return found


def _fold(query: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{query}".encode()).digest()[:4], "big") % FOLDS
