"""Offline foretells online: versions' held-out nDCG and off-policy gains against what simulated people prefer.

Offline, nDCG@10 on queries that nobody asks, and DR on logged traffic. Online, interleaving with raw results, and the
clicks of an A/B test. Each has people of its own. Kendall's τ is over versions; raw results are what all are compared
with. As a control, the versions' names are dealt to others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import kendalltau

from storage.offpolicy.estimators import estimate_gain
from storage.offpolicy.traffic import RAW, choices_for
from storage.online.interleaving import duel, foretold
from tests.foretelling.evidence import Evidence, listed
from tests.foretelling.people import People
from tests.foretelling.rankings import Rankings, read_rankings

LOGGED = 40_000
INTERLEAVED = 3_000
TESTED = 10_000
CLIENTS = 4_000


def held_out_gains(rankings: Rankings) -> dict[str, float]:
    """Return the gain in nDCG@10 over raw results on the held-out queries."""
    discounts = 1 / np.log2(np.arange(2, rankings.shown.shape[2] + 2))
    ideal = np.array([discounts[: min(len(discounts), count)].sum() for count in rankings.relevant])
    values = ((np.maximum(rankings.graded, 0) * discounts).sum(axis=2) / ideal)[:, rankings.held_out :].mean(axis=1)
    raw = rankings.versions.index(RAW)
    return {name: float(values[n] - values[raw]) for n, name in enumerate(rankings.versions) if name != RAW}


def logged_gains(rankings: Rankings, seed: int, count: int) -> dict[str, float]:
    """Return the DR gain over raw results of each version on logged traffic."""
    people = People(rankings, seed)
    traffic = people.log(count, epsilon=0.5, clients=CLIENTS, scores={RAW: 1.5})
    raw = choices_for(traffic, RAW)
    return {
        name: estimate_gain(choices_for(traffic, name), raw, "dr").value for name in rankings.versions if name != RAW
    }


def preferred(rankings: Rankings, seed: int, count: int) -> dict[str, float]:
    """Return how much more people prefer each version than raw results, interleaved."""
    people = People(rankings, seed)
    return {
        name: duel(name, "raw", people.deltas(number, count)).mean
        for number, name in enumerate(rankings.versions)
        if name != RAW
    }


def click_gains(rankings: Rankings, seed: int, count: int) -> dict[str, float]:
    """Return how many more clicks a search has with each version than with raw results, in an A/B test."""
    people = People(rankings, seed)
    clicks = [float(people.clicks_of(number, count).mean()) for number in range(len(rankings.versions))]
    raw = clicks[rankings.versions.index(RAW)]
    return {name: clicks[n] - raw for n, name in enumerate(rankings.versions) if name != RAW}


def tau(offline: Mapping[str, float], online: Mapping[str, float]) -> float:
    """Return Kendall's τ over versions."""
    return float(kendalltau([offline[name] for name in offline], [online[name] for name in offline]).statistic)


def measure(
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    logged: int = LOGGED,
    interleaved: int = INTERLEAVED,
    tested: int = TESTED,
    rankings: Rankings | None = None,
) -> Evidence:
    """Return the rank correlations, by seed and with a bootstrap interval over versions."""
    rankings = rankings or read_rankings()
    held_out = held_out_gains(rankings)
    pairs: dict[tuple[str, str], list[tuple[Mapping[str, float], Mapping[str, float]]]] = {}
    for seed in seeds:
        offline = {"held-out nDCG@10": held_out, "DR on logged traffic": logged_gains(rankings, 100 + seed, logged)}
        online = {
            "interleaving": preferred(rankings, 200 + seed, interleaved),
            "clicks": click_gains(rankings, 300 + seed, tested),
        }
        for one, before in offline.items():
            for other, after in online.items():
                pairs.setdefault((one, other), []).append((before, after))
    rows = []
    for (one, other), found in pairs.items():
        means = [{name: float(np.mean([each[side][name] for each in found])) for name in held_out} for side in (0, 1)]
        told = foretold(means[0], means[1])
        assert told is not None
        by_seed = ", ".join(f"{tau(*each):+.2f}" for each in found)
        random = np.random.default_rng(0)
        dealt = [
            tau(means[0], dict(zip(means[1], random.permutation(list(means[1].values())), strict=True)))
            for _ in range(1_000)
        ]
        low, high = np.percentile(dealt, [2.5, 97.5])
        rows.append(
            (one, other, by_seed, f"{told.tau:+.2f} [{told.low:+.2f}, {told.high:+.2f}]", f"[{low:+.2f}, {high:+.2f}]")
        )
    worse = sum(gain < 0 for gain in held_out.values())
    return Evidence(
        name="versions",
        columns=("offline", "online", "τ by seed", "τ of the means, 95 % over versions", "control: names dealt anew"),
        rows=tuple(rows),
        notes=(
            f"{len(held_out)} versions, {worse} of them worse than raw results by nDCG@10, on Elasticsearch's rankings "
            f"of {rankings.corpus} ({rankings.held_out} queries that people ask, "
            f"{len(rankings.grades) - rankings.held_out} held out). Seeds {listed(seeds)}; "
            f"{logged:,} logged searches, {interleaved:,} interleaved and {tested:,} tested ones a version. "
            "People are simulated (PBM of an eye-tracking study).",
        ),
    )
