"""A/A tests: how often two equals have a winner, though somebody looks again and again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.online.sequences import Values, bounded_sequence, mean_difference
from storage.online.shares import share_p_value
from tests.foretelling.evidence import Evidence, listed, share

Floats = npt.NDArray[np.float64]

LENGTH = 5_000
LOOKS = tuple(range(60, LENGTH + 1, 60))


def interleaved(random: np.random.Generator) -> tuple[bool, bool]:
    """Return whether an interleaving of equals has a winner at any look, and whether a plain z interval says so."""
    deltas = random.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=LENGTH)
    found = bounded_sequence(deltas, low=-1, high=1)
    counts = np.arange(1, LENGTH + 1)
    means = np.cumsum(deltas) / counts
    errors = np.sqrt(np.maximum(np.cumsum(deltas**2) / counts - means**2, 1e-12) / counts)
    return bool(np.any((found.low > 0) | (found.high < 0))), bool(np.any(np.abs(means / errors)[59:] > 1.96))


def arms(random: np.random.Generator, part: float, worth: Floats, chances: Floats) -> tuple[bool, bool]:
    """Return the same for two arms of a split. part: of the treated arm. worth, chances: what a search may earn."""
    values = random.choice(worth, p=chances, size=LENGTH)
    treated = random.random(LENGTH) < part
    ours = theirs = False
    for count in LOOKS:
        here, there = values[:count][treated[:count]], values[:count][~treated[:count]]
        found = mean_difference(Values.of(here), Values.of(there))
        ours |= found.low > 0 or found.high < 0
        if min(len(here), len(there)) >= 30:
            error = np.sqrt(here.var(ddof=1) / len(here) + there.var(ddof=1) / len(there))
            theirs |= bool(abs(here.mean() - there.mean()) > 1.96 * error)
    return ours, theirs


def shares(random: np.random.Generator) -> tuple[bool, bool]:
    """Return whether sound shares are taken for wrong ones at any look: by the check at .05, and by a plain χ² test."""
    treated = np.cumsum(random.random(LENGTH) < 0.1)
    ours = theirs = False
    for count in LOOKS:
        new = int(treated[count - 1])
        ours |= share_p_value({"new": new, "others": count - new}, {"new": 0.1, "others": 0.9}) < 0.05
        theirs |= (new - 0.1 * count) ** 2 / (0.09 * count) > 3.84
    return ours, theirs


CLICKS = (np.array([0.0, 1.0]), np.array([0.7, 0.3]))
BUYS = (np.array([0.0, 1.0, 10.0]), np.array([0.7, 0.285, 0.015]))
TESTS = {
    "interleaving, a look after each impression": interleaved,
    "two halves, clicks": lambda random: arms(random, 0.5, *CLICKS),
    "a share of 5 %, clicks": lambda random: arms(random, 0.05, *CLICKS),
    "a share of 5 %, one click in twenty buys (worth 10)": lambda random: arms(random, 0.05, *BUYS),
    "shares of the searches (alarm at .05)": shares,
}


def measure(*, tests: int = 1_000, seeds: tuple[int, ...] = (0, 1, 2)) -> Evidence:
    """Return the share of false winners by kind of test."""
    rows = []
    for title, test in TESTS.items():
        found = np.array([test(np.random.default_rng([seed, n])) for seed in seeds for n in range(tests)])
        ours, theirs = (int(column.sum()) for column in found.T)
        rows.append((title, share(ours, len(found)), share(theirs, len(found))))
        print(rows[-1], flush=True)
    return Evidence(
        name="winners",
        columns=("A/A test", "false alarms, ours", "control: a fixed-time test, looked at as often"),
        rows=tuple(rows),
        notes=(
            f"In percent, with exact 95 % intervals; {tests:,} tests for each of the seeds {listed(seeds)}, "
            f"{LENGTH:,} searches each, a look after every 60 where nothing else is said. The promise is at most 5 %.",
        ),
    )
