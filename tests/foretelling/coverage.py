"""Coverage: how often a 95 % interval holds the true worth of a version, over simulated logs of known truth.

A query is drawn by Zipf's law, and a client by how much it searches. The server's own softmax offers raw results and
three versions, with other scores for each query. A click's probability depends on the query, the version and the
client. The truth is the mean over queries, clients and clicks. It is computed, not estimated.
"""

from __future__ import annotations

import msgspec
import numpy as np

from search_env.serving.choosing import probabilities
from storage.offpolicy.estimators import Choices, Name, estimate, estimate_gain
from storage.offpolicy.traffic import RAW, Traffic, choices_for
from tests.foretelling.evidence import Evidence, listed, share

VERSIONS = ("1-a-000001", "1-b-000002", "1-c-000003")
QUERIES = 120
NAMES: tuple[Name, ...] = ("ips", "snips", "dr")


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """What a log is like. searches: of a client, on average; 1 makes each impression another client's.

    taste: the most that a client's own click rate differs. heavy: share of the impressions by one client.
    epsilon: the floor of the choice. worth: of a click, and purchased: share of the clicks that buy, worth 10.
    """

    impressions: int
    searches: float = 1.0
    taste: float = 0.0
    heavy: float = 0.0
    epsilon: float = 0.2
    purchased: float = 0.0


CROWDS: dict[str, Crowd] = {
    "each impression another client's": Crowd(impressions=2_000),
    "few impressions": Crowd(impressions=400),
    "clients with 8 searches and a taste": Crowd(impressions=2_000, searches=8, taste=0.25),
    "versions offered rarely (floor .02)": Crowd(impressions=4_000, epsilon=0.02),
    "one client in twenty clicks buys, worth 10": Crowd(impressions=4_000, searches=4, taste=0.2, purchased=0.05),
    "one client with 5 % of the impressions": Crowd(impressions=2_000, searches=2, taste=0.25, heavy=0.05),
}


class Town:
    """The queries and versions of one seed: click rates, and the probability of each choice."""

    def __init__(self, crowd: Crowd, seed: int) -> None:
        random = np.random.default_rng([seed, 1])
        self.crowd = crowd
        self.asked = 1 / np.arange(1, QUERIES + 1)
        self.asked /= self.asked.sum()
        names = [RAW, *VERSIONS]
        base = random.uniform(0.15, 0.5, size=(QUERIES, 1))
        self.rates = np.clip(base + random.normal(scale=0.1, size=(QUERIES, 4)) + [[0, 0.04, 0, -0.04]], 0.02, 0.7)
        scores = random.normal(scale=1.0, size=(QUERIES, 4))
        self.offers = [
            probabilities(dict(zip(names, row.tolist(), strict=True)), epsilon=crowd.epsilon, temperature=0.5)
            for row in scores
        ]
        self.names = names
        self.shares = np.array([[offer[name] for name in names] for offer in self.offers])
        self.worth = 1 + 9 * crowd.purchased
        self.truth = {name: float(self.asked @ self.rates[:, n]) * self.worth for n, name in enumerate(names)}

    def log(self, seed: int) -> Traffic:
        """Return the log of some days; clients and clicks are drawn anew."""
        crowd, random = self.crowd, np.random.default_rng([seed, 2])
        count = crowd.impressions
        queries = random.choice(QUERIES, size=count, p=self.asked)
        size = max(round(count / crowd.searches), 1)
        clients = np.arange(count) if size == count else random.integers(size, size=count)
        if crowd.heavy:
            clients = np.where(random.random(count) < crowd.heavy, size, clients)
        # A client's taste has mean 0 and does not depend on what it is shown, so the truth stays.
        taste = random.uniform(-crowd.taste, crowd.taste, size=size + count + 1)[clients]
        chosen = (random.random((count, 1)) > self.shares[queries].cumsum(axis=1)[:, :-1]).sum(axis=1)
        rates = self.rates[queries, chosen] * (1 + taste)
        clicked = random.random(count) < rates
        bought = clicked & (random.random(count) < crowd.purchased)
        return Traffic(
            queries=[f"q{query}" for query in queries],
            clients=[f"c{client}" for client in clients],
            at_ms=np.arange(count, dtype=np.int64),
            policies=[self.names[number] for number in chosen],
            propensities=self.shares[queries, chosen],
            offered=[self.offers[query] for query in queries],
            utilities=clicked + 9.0 * bought,
            left_out={},
        )


def covered(crowd: Crowd, *, seed: int, logs: int) -> dict[tuple[str, Name], int]:
    """Return how many intervals hold the truth: of values and of gains over raw results."""
    town = Town(crowd, seed)
    found = dict.fromkeys([(what, name) for what in ("worth", "gain") for name in NAMES], 0)
    target = VERSIONS[0]
    for number in range(logs):
        traffic = town.log(1_000_000 * seed + number)
        version, raw = choices_for(traffic, target), choices_for(traffic, RAW)
        for name in NAMES:
            value, gain = estimate(version, name), estimate_gain(version, raw, name)
            found["worth", name] += value.low <= town.truth[target] <= value.high
            found["gain", name] += gain.low <= town.truth[target] - town.truth[RAW] <= gain.high
    return found


def without_clusters(choices: Choices) -> Choices:
    """Return the choices as if each impression were another client's: a control."""
    return msgspec.structs.replace(choices, clusters=np.arange(len(choices.rewards)))


def measure(*, logs: int = 400, seeds: tuple[int, ...] = (0, 1, 2)) -> Evidence:
    """Return the coverage by kind of log."""
    rows = []
    for title, crowd in CROWDS.items():
        sums: dict[tuple[str, Name], int] = {}
        for seed in seeds:
            for key, count in covered(crowd, seed=seed, logs=logs).items():
                sums[key] = sums.get(key, 0) + count
        cells = [share(sums[what, name], logs * len(seeds)) for what in ("worth", "gain") for name in NAMES]
        rows.append((f"{title} ({crowd.impressions:,})", *cells))
        print(rows[-1], flush=True)
    return Evidence(
        name="coverage",
        columns=("log (impressions)", *(f"{what}, {name}" for what in ("worth", "gain") for name in NAMES)),
        rows=tuple(rows),
        notes=(
            f"Share of 95 % intervals that hold the truth, in percent with its exact 95 % interval. {logs:,} logs for "
            f"each of the seeds {listed(seeds)}, which draw queries and versions; clients and clicks are drawn "
            "for each log.",
        ),
    )
