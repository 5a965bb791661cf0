"""The score of rules: how many injected faults they find and how soon, and how often they cry without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from zlib import crc32

import msgspec
import numpy as np

from storage.monitor.backtesting import Backtest, backtest, upper_bound
from storage.monitor.figures import Figures
from storage.monitor.rules import BUILT_IN, AlertRule, built_in_tables, rules_from
from tests.backtest.faults import FAULTS, FaultyRun, faulty_run
from tests.backtest.runs import live_run, training_run

SETS = {"chosen on": 0, "judged on": 3_000_000}  # The first seed of each set.


class FaultScore(msgspec.Struct, frozen=True, kw_only=True):
    """The score for one kind of fault. seconds, steps: medians, and the 95th percentile of the seconds, of the hits."""

    runs: int
    hits: int
    seconds: float | None
    seconds_p95: float | None
    steps: float | None
    strongest_missed: list[float]


class CleanScore(msgspec.Struct, frozen=True, kw_only=True):
    """The false alarms of clean runs, by rule; days: simulated. bound: the upper limit of their rate (95 %)."""

    runs: int
    days: float
    alarms: dict[str, int]
    a_day: float
    bound: float


class SetScore(msgspec.Struct, frozen=True, kw_only=True):
    """The score on one set of seeds."""

    first_seed: int
    faults: dict[str, FaultScore]
    training: CleanScore
    live: CleanScore


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate for a limit: found and false alarms on the set of seeds that limits are chosen on."""

    rule: str
    condition: str
    field: str
    value: float
    hits: int
    runs: int
    false_alarms: int
    days: float


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows."""

    command: str
    date: str
    bases: list[str]
    sets: dict[str, SetScore]
    choices: list[Choice]


def chance(seed: int, name: str) -> np.random.Generator:
    """Return the source of chance of one run."""
    return np.random.default_rng([seed, crc32(name.encode())])


def faulty(fault: str, first_seed: int, runs: int) -> list[FaultyRun]:
    """Return runs with one kind of fault."""
    return [faulty_run(fault, chance(first_seed + number, fault)) for number in range(runs)]


def clean(kind: str, first_seed: int, runs: int) -> list[Figures]:
    """Return the figures of clean runs: "training" or "live"."""
    make = training_run if kind == "training" else live_run
    return [make(chance(first_seed + number, kind)).figures() for number in range(runs)]


def score_fault(rules: Sequence[AlertRule], given: Sequence[FaultyRun]) -> FaultScore:
    """Return how many faults these rules find, and how soon."""
    tested = [(each, backtest(each.figures, rules, labels=[each.label])) for each in given]
    found = [result.labels[0] for _, result in tested if result.hits]
    seconds = [each.seconds for each in found if each.seconds is not None]
    return FaultScore(
        runs=len(given),
        hits=len(found),
        seconds=round(median(seconds), 1) if seconds else None,
        seconds_p95=round(float(np.quantile(seconds, 0.95)), 1) if seconds else None,
        steps=median(each.steps or 0 for each in found) if found else None,
        strongest_missed=[round(each.strength, 3) for each, result in tested if not result.hits],
    )


def score_clean(rules: Sequence[AlertRule], given: Sequence[Figures]) -> CleanScore:
    """Return how often these rules fire without a fault."""
    tested: list[Backtest] = [backtest(figures, rules) for figures in given]
    alarms = Counter(each.rule for result in tested for each in result.false_alarms)
    days = sum(result.days for result in tested)
    return CleanScore(
        runs=len(given),
        days=round(days, 2),
        alarms=dict(alarms.most_common()),
        a_day=round(alarms.total() / days, 3),
        bound=round(upper_bound(alarms.total(), days), 3),
    )


# Candidates for the limits that decide most: the middle one or the fault's own table chose them.
CANDIDATES: tuple[tuple[str, str, str, tuple[float, ...], str], ...] = (
    ("format", "low", "below", (0.9, 0.95, 0.97), "format collapse"),
    ("no-op collapse", "share", "above", (0.3, 0.5, 0.7), "no-op collapse"),
    ("entropy", "fell", "below", (0.3, 0.4, 0.5, 0.6), "entropy collapse"),
    ("reward hacking", "size", "above", (0.3, 0.4, 0.5, 0.7), "hacking by size"),
    ("search", "slow", "above", (1.5, 2.0, 4.0), "slow Elasticsearch"),
    ("stall", "logged", "above", (60.0, 120.0, 180.0, 300.0), "stalled loop"),
    ("poisoned rewards", "refused", "above", (0.005, 0.01, 0.02), "poisoned rewards"),
    ("click fraud", "client", "above", (0.03, 0.05, 0.1), "click fraud"),
    ("feedback drift", "ranks", "above", (0.1, 0.15, 0.2, 0.25), "feedback drift"),
)


def choices(runs: int, clean_runs: dict[str, list[Figures]]) -> list[Choice]:
    """Return each candidate's score: its rule alone, on the faults that it is for, and on clean runs."""
    found = []
    for name, condition, field, values, fault in CANDIDATES:
        given = faulty(fault, SETS["chosen on"], runs)
        kind = "live" if fault in ("click fraud", "feedback drift") else "training"
        for value in values:
            layer = {"rules": {name: {"when": {condition: {field: value, "clear_by": 0.0}}}}}
            rules = [
                rule for rule in rules_from([(BUILT_IN, built_in_tables()), ("candidate", layer)]) if rule.name == name
            ]
            good = score_clean(rules, clean_runs[kind])
            found.append(
                Choice(
                    rule=name,
                    condition=condition,
                    field=field,
                    value=value,
                    hits=score_fault(rules, given).hits,
                    runs=runs,
                    false_alarms=sum(good.alarms.values()),
                    days=good.days,
                )
            )
    return found


def score_set(rules: Sequence[AlertRule], first_seed: int, runs: int, clean_runs: dict[str, list[Figures]]) -> SetScore:
    """Return the score of rules on one set of seeds."""
    return SetScore(
        first_seed=first_seed,
        faults={fault: score_fault(rules, faulty(fault, first_seed, runs)) for fault in FAULTS},
        training=score_clean(rules, clean_runs["training"]),
        live=score_clean(rules, clean_runs["live"]),
    )
