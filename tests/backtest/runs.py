"""Clean runs for the back-test: training runs that behave as the real ones of `base`, and live traffic.

A training run takes the trend of a real run, stretched, and blocks of the real run's deviations from it, of all figures
together; so it has their spread, their autocorrelation, and what they have in common. Harmless events are added: slow
minutes, pauses of up to 90 s, groups a version or two late, and single groups that fail, expire or are refused.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np

from storage.monitor.figures import Point
from storage.monitor.ledger_figures import click_figures
from tests.backtest.base import BY_VERSION, real_runs, trend_and_rest

Generator = np.random.Generator
BEGIN_MS = 1_800_000_000_000 // 86_400_000 * 86_400_000
GROUPS = 16
BLOCK = 10
STALENESS_MAX = 4
HOUR_MS = 3_600_000
RANKS = ("none", *map(str, range(1, 10)), "10+")
SHARES = ("flat_share", "valid_share", "unchanged_share", "repeat_share")


class TrainingRun(msgspec.Struct, kw_only=True):
    """A training run as arrays, one value per version, before it becomes figures. dev: [version, value] rows."""

    at_ms: np.ndarray
    values: dict[str, np.ndarray]
    room: np.ndarray
    expired: np.ndarray
    failed: np.ndarray
    refused: np.ndarray
    letters: np.ndarray
    dev: np.ndarray
    search_ms: np.ndarray
    search: np.ndarray

    def figures(self) -> dict[str, list[Point]]:
        """Return the run's figures."""
        by_version = self.values | {
            "staleness_room": self.room,
            "expired_share": self.expired,
            "failed_share": self.failed,
            "refused_share": self.refused,
        }
        found = {
            name: [
                Point(at_ms=int(at_ms), value=float(value), weight=GROUPS, lineage="a", step=step)
                for step, (at_ms, value) in enumerate(zip(self.at_ms, values, strict=True))
            ]
            for name, values in by_version.items()
        }
        total = np.cumsum(self.letters) / (np.arange(1, len(self.at_ms) + 1) * GROUPS + np.cumsum(self.letters))
        found["dead_letter_share"] = [
            Point(at_ms=int(at_ms), value=float(value)) for at_ms, value in zip(self.at_ms, total, strict=True)
        ]
        found["dev_value"] = [Point(at_ms=int(self.at_ms[int(at)]), value=float(value)) for at, value in self.dev]
        found["search_seconds"] = [
            Point(at_ms=int(at_ms), value=float(value))
            for at_ms, value in zip(self.search_ms, self.search, strict=True)
        ]
        found["quiet_seconds"] = _quiet(self.at_ms)
        found["residual"] = [Point(at_ms=int(self.at_ms[-1]), value=0.0)]
        return {name: points for name, points in found.items() if points}


def training_run(random: Generator, *, versions: int | None = None) -> TrainingRun:
    """Return a clean training run of 150 to 600 versions, with 2 to 60 seconds for each."""
    runs = real_runs()
    real = runs[int(random.integers(len(runs)))]
    length = versions or int(random.integers(150, 601))
    learned = len(real.figures["entropy"]) * random.uniform(0.7, 2.0)
    places = np.minimum(np.arange(length) / learned, 1.0) * (len(real.figures["entropy"]) - 1)
    rows = np.concatenate(
        [
            start + np.arange(BLOCK)
            for start in random.integers(0, len(real.figures["entropy"]) - BLOCK, length // BLOCK + 1)
        ]
    )[:length]
    scale = random.uniform(0.8, 1.3)
    values = {}
    for name in BY_VERSION:
        trend, rest = trend_and_rest(real.figures[name])
        made = np.interp(places, np.arange(len(trend)), trend) + scale * rest[rows]
        values[name] = np.clip(made, 0.0, 1.0) if name in SHARES else made
    for name in ("reward_std", "reward_peak", "entropy", "text_size", "lag_seconds"):
        values[name] = np.maximum(values[name], 1e-3)
    seconds = np.exp(random.uniform(np.log(2), np.log(60)))
    values["lag_seconds"] *= seconds / real.update_seconds
    took = seconds * random.lognormal(0.0, 0.25, length) + (random.random(length) < 0.005) * random.uniform(
        20, 90, length
    )
    at_ms = BEGIN_MS + (1000 * np.cumsum(took)).astype(np.int64)
    minutes = np.arange(BEGIN_MS + 60_000, at_ms[-1] + 60_000, 60_000)
    search = np.median(real.search_seconds) * random.lognormal(0.0, 0.25, len(minutes))
    search[random.random(len(minutes)) < 0.02] *= 3  # A merge, a full collection.
    late = random.choice([1, 2], length, p=[0.9, 0.1])
    return TrainingRun(
        at_ms=at_ms,
        values=values,
        room=(STALENESS_MAX - late).astype(float),
        expired=(random.random(length) < 0.002) / GROUPS,
        failed=(random.random(length) < 0.01) / (GROUPS * 8),
        refused=(random.random(length) < 0.002) / GROUPS,
        letters=np.zeros(length),  # As in the real runs: any dead letter is worth a look.
        dev=_dev(random, length, real.dev),
        search_ms=minutes,
        search=search,
    )


def _dev(random: Generator, length: int, real: list[float]) -> np.ndarray:
    """Return dev measures every tenth version: the real ones' course, and noise as between real neighbours."""
    if not real:
        return np.zeros((0, 2))
    at = np.arange(0, length, 10)
    rises = np.interp(np.minimum(at / length * 2, 1.0), np.linspace(0, 1, len(real)), np.maximum.accumulate(real))
    return np.stack([at, rises + random.normal(0, 0.004, len(at))], axis=1)


def _quiet(at_ms: np.ndarray) -> list[Point]:
    points = [Point(at_ms=int(at_ms[0]), value=0.0)]
    for before, after in pairwise(at_ms):
        if after - before > 60_000:
            points += [
                Point(at_ms=int(t), value=float(t - before) / 1000) for t in range(before + 60_000, after, 60_000)
            ]
            points.append(Point(at_ms=int(after), value=0.0))
    return points


class LiveRun(msgspec.Struct, kw_only=True):
    """Live traffic as arrays. ranks: [hour, bucket] impressions by first click. clicks: [hour, client] clicks."""

    ranks: np.ndarray
    clicks: np.ndarray

    def figures(self) -> dict[str, list[Point]]:
        """Return the traffic's figures."""
        hours = range(len(self.ranks))
        counted = [{name: int(n) for name, n in zip(RANKS, row, strict=True) if n} for row in self.ranks]
        shares = []
        for hour in hours:
            day = self.clicks[max(hour - 23, 0) : hour + 1].sum(axis=0)
            if total := int(day.sum()):
                value = float(day.max() / total)
                shares.append(Point(at_ms=BEGIN_MS + (hour + 1) * HOUR_MS, value=value, weight=total))
        ends = [BEGIN_MS + (hour + 1) * HOUR_MS for hour in hours]
        return {**click_figures(list(zip(ends, counted, strict=True))), "client_share": shares}


def live_run(random: Generator, *, days: int = 14) -> LiveRun:
    """Return clean traffic: more by day than by night, people who differ tenfold in how much they search."""
    hours = np.arange(24 * days)
    a_day = np.exp(random.uniform(np.log(1_500), np.log(20_000)))
    course = 1 + 0.8 * np.sin(2 * np.pi * (hours - 9) / 24)
    impressions = random.poisson(a_day / 24 * course * random.lognormal(0, 0.1, len(hours)))
    examined = 1 / np.arange(1, 11) ** random.uniform(0.7, 1.3)
    clicked = random.uniform(0.2, 0.5)
    shape = np.concatenate([[1 - clicked], clicked * examined / examined.sum()])
    ranks = np.stack([random.multinomial(n, random.dirichlet(shape * 2_000)) for n in impressions])
    clients = int(random.integers(300, 3_000))
    busy = random.lognormal(0, 0.8, clients)
    totals = ranks[:, 1:].sum(axis=1)
    clicks = np.stack([random.multinomial(n, busy / busy.sum()) for n in totals])
    return LiveRun(ranks=ranks, clicks=clicks)
