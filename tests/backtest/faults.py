"""The faults of the back-test: each changes a clean run from some time on, as strongly as chance says.

A strength reaches from hardly beyond a rule's limit to a complete breakdown, and comes at once or over many versions.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from storage.monitor.backtesting import Label
from storage.monitor.figures import Figures
from tests.backtest.runs import (
    BEGIN_MS,
    HOUR_MS,
    STALENESS_MAX,
    Generator,
    LiveRun,
    TrainingRun,
    live_run,
    training_run,
)


class FaultyRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run with one fault. strength: what it is measured by says the fault's function."""

    fault: str
    strength: float
    label: Label
    figures: Figures


Training = Callable[[TrainingRun, Generator, np.ndarray], float]
Live = Callable[[LiveRun, Generator, int], float]


def format_collapse(run: TrainingRun, random: Generator, ramp: np.ndarray) -> float:
    """Let the share of valid answers fall to between 10 % and 93 %; the reward falls with it."""
    low = float(random.uniform(0.1, 0.93))
    run.values["valid_share"] *= 1 - ramp * (1 - low)
    run.values["reward_mean"] -= ramp * (1 - low) * np.abs(run.values["reward_mean"])
    return low


def hacking_by_size(run: TrainingRun, random: Generator, ramp: np.ndarray) -> float:
    """Let answers grow to between 1.5 and 4 times their length; that alone brings 0.7 to 3 spreads of reward."""
    factor, gain = float(random.uniform(1.5, 4.0)), float(random.uniform(0.7, 3.0))
    size, worth = run.values["text_size"], gain * float(run.values["reward_std"][:5].mean())
    slope = worth / (float(size[:5].mean()) * (factor - 1))
    run.values["text_size"] = size * (1 - ramp) + float(size[:5].mean()) * factor * ramp
    run.values["reward_mean"] += ramp * worth
    run.values["size_slope"] += slope  # The reward has always paid for size.
    if len(run.dev):
        run.dev[:, 1] -= ramp[run.dev[:, 0].astype(int)] * float(random.uniform(0.0, 0.1))
    return gain


def no_op_collapse(run: TrainingRun, random: Generator, ramp: np.ndarray) -> float:
    """Let the share of answers that change nothing rise to between 55 % and 100 %."""
    high = float(random.uniform(0.55, 1.0))
    run.values["unchanged_share"] = np.maximum(run.values["unchanged_share"], ramp * high)
    run.values["reward_std"] *= 1 - 0.7 * ramp
    return high


def entropy_collapse(run: TrainingRun, random: Generator, ramp: np.ndarray) -> float:
    """Let the entropy fall to between 2 % and 35 % of its first values."""
    low = float(random.uniform(0.02, 0.35))
    first = float(run.values["entropy"][:5].mean())
    rest = run.values["entropy"] / max(float(run.values["entropy"][-20:].mean()), 1e-3)
    run.values["entropy"] = run.values["entropy"] * (1 - ramp) + ramp * low * first * rest
    run.values["reward_std"] *= 1 - ramp * (1 - low)
    return low


def stale_learner(run: TrainingRun, random: Generator, ramp: np.ndarray) -> float:
    """Let the learner fall behind: groups reach the staleness limit, or 2 to 30 % of them expire, and the lag grows."""
    share = float(random.uniform(0.02, 0.3))
    if random.random() < 0.5:
        run.room = np.where(ramp >= 0.5, STALENESS_MAX - np.maximum(STALENESS_MAX - run.room, STALENESS_MAX), run.room)
    else:
        run.expired = np.maximum(run.expired, ramp * share)
    run.values["lag_seconds"] += np.cumsum(ramp) * float(random.uniform(1, 20))
    return share


def slow_elasticsearch(run: TrainingRun, random: Generator, ramp: np.ndarray) -> float:
    """Let a search take 2.5 to 20 s for 5 to 60 minutes; in half of the runs 2 to 30 % of the candidates fail too."""
    seconds = float(random.uniform(2.5, 20.0))
    start = _start(ramp)
    from_ms, until_ms = run.at_ms[start], run.at_ms[start] + random.uniform(5, 60) * 60_000
    slow = (run.search_ms >= from_ms) & (run.search_ms <= until_ms)
    run.search = np.where(slow, run.search / np.median(run.search) * seconds, run.search)
    if random.random() < 0.5:
        during = (run.at_ms >= from_ms) & (run.at_ms <= until_ms)
        run.failed = np.where(during, float(random.uniform(0.02, 0.3)), run.failed)
    return seconds


def stalled_loop(run: TrainingRun, random: Generator, ramp: np.ndarray) -> float:
    """Stop everything for between 4 minutes and 2 hours."""
    seconds = float(np.exp(random.uniform(np.log(240), np.log(7_200))))
    start = _start(ramp)
    run.at_ms = np.where(np.arange(len(run.at_ms)) > start, run.at_ms + int(seconds * 1000), run.at_ms)
    later = run.search_ms > run.at_ms[start]
    run.search_ms = np.where(later, run.search_ms + int(seconds * 1000), run.search_ms)
    return seconds


def poisoned_rewards(run: TrainingRun, random: Generator, ramp: np.ndarray) -> float:
    """Let 2 to 30 % of the groups be refused, or accepted rewards be 15 to 1,000 times as large as any before."""
    share = float(random.uniform(0.02, 0.3))
    if random.random() < 0.5:
        run.refused = np.maximum(run.refused, random.binomial(16, share, len(ramp)) / 16 * (ramp > 0))
        run.letters += np.round(run.refused * 16) * (ramp > 0)
    else:
        hit = (ramp > 0) & (random.random(len(ramp)) < 0.5)
        run.values["reward_peak"] = np.where(
            hit, run.values["reward_peak"].max() * random.uniform(15, 1_000), run.values["reward_peak"]
        )
    return share


def click_fraud(run: LiveRun, random: Generator, start: int) -> float:
    """Let one client make 7 to 40 % of the clicks, for 12 to 48 hours."""
    share, hours = float(random.uniform(0.07, 0.4)), int(random.integers(12, 49))
    during = slice(start, start + hours)
    honest = run.clicks[during].sum(axis=1)
    run.clicks[during, 0] += random.poisson(honest * share / (1 - share))
    return share


def feedback_drift(run: LiveRun, random: Generator, start: int) -> float:
    """Let clicks move down the page: a share of 30 to 100 % of them falls on other ranks than at first."""
    share = float(random.uniform(0.3, 1.0))
    for hour in range(start, len(run.ranks)):
        moved = random.binomial(run.ranks[hour, 1:], share)
        run.ranks[hour, 1:] += moved[::-1] - moved
    return share


TRAINING: dict[str, tuple[Training, tuple[str, ...]]] = {
    "format collapse": (format_collapse, ("format",)),
    "hacking by size": (hacking_by_size, ("reward hacking",)),
    "no-op collapse": (no_op_collapse, ("no-op collapse",)),
    "entropy collapse": (entropy_collapse, ("entropy",)),
    "stale learner": (stale_learner, ("staleness", "drops", "lag")),
    "slow Elasticsearch": (slow_elasticsearch, ("search", "failed outcomes")),
    "stalled loop": (stalled_loop, ("stall",)),
    "poisoned rewards": (poisoned_rewards, ("poisoned rewards", "dead letters")),
}
LIVE: dict[str, tuple[Live, tuple[str, ...]]] = {
    "click fraud": (click_fraud, ("click fraud",)),
    "feedback drift": (feedback_drift, ("feedback drift",)),
}
FAULTS = (*TRAINING, *LIVE)


def faulty_run(fault: str, random: Generator) -> FaultyRun:
    """Return a run with a fault that begins after 30 to 60 % of it."""
    if fault in LIVE:
        live = live_run(random)
        start = int(len(live.ranks) * random.uniform(0.3, 0.6))
        strength = LIVE[fault][0](live, random, start)
        figures: Figures = live.figures()
        from_ms = BEGIN_MS + start * HOUR_MS
        rules = LIVE[fault][1]
    else:
        run = training_run(random)
        length = len(run.at_ms)
        start, slope = int(length * random.uniform(0.3, 0.6)), int(random.integers(1, max(length // 4, 2)))
        ramp = np.clip((np.arange(length) - start) / slope, 0.0, 1.0)
        from_ms = int(run.at_ms[start])
        strength = TRAINING[fault][0](run, random, ramp)
        figures = run.figures()
        rules = TRAINING[fault][1]
    until_ms = max(point.at_ms for points in figures.values() for point in points)
    label = Label(fault=fault, from_ms=from_ms, until_ms=until_ms, rules=rules)
    return FaultyRun(fault=fault, strength=strength, label=label, figures=figures)


def _start(ramp: np.ndarray) -> int:
    return int(np.argmax(ramp > 0))
