"""The real runs that the clean ones of the back-test are made from: their figures, as their logs have them.

python -m tests.backtest.base HOME/runs/demo-1 HOME/runs/relsum-icecat-grpo-0 > tests/backtest/base.json
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from infra.app.home import RunFolder
from infra.monitoring.alert_files import staleness_limit
from storage.log import open_log
from storage.monitor.ledger_figures import ledger_figures

BASE = Path(__file__).with_name("base.json")
BY_VERSION = (
    "reward_mean", "reward_std", "reward_peak", "flat_share", "valid_share", "unchanged_share", "repeat_share",
    "text_size", "size_slope", "entropy", "lag_seconds",
)  # fmt: skip
SMOOTHED = 15


class RealRun(msgspec.Struct, frozen=True, kw_only=True):
    """One real run: each figure's values in order, the seconds of an update, and the dev measures."""

    name: str
    update_seconds: float
    figures: dict[str, list[float]]
    dev: list[float]
    search_seconds: list[float]


def real_runs() -> tuple[RealRun, ...]:
    """Return the runs that were measured."""
    return msgspec.json.decode(BASE.read_bytes(), type=tuple[RealRun, ...])


def trend_and_rest(values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a series' moving mean, and what is left; at its ends the mean is over fewer values."""
    given = np.array(values)
    window = np.ones(SMOOTHED)
    trend = np.convolve(given, window, "same") / np.convolve(np.ones(len(given)), window, "same")
    return trend, given - trend


def measure(folder: Path) -> RealRun:
    """Return a run's figures from its log."""
    with open_log(folder) as log:
        figures = ledger_figures(log, staleness_max=staleness_limit(RunFolder(folder)))
    times = [point.at_ms for point in figures["entropy"]]
    length = min(len(figures[name]) for name in BY_VERSION)

    def short(values: list[float]) -> list[float]:
        return [float(f"{value:.4g}") for value in values]

    return RealRun(
        name=folder.name,
        update_seconds=round((times[-1] - times[0]) / 1000 / (len(times) - 1), 3),
        figures={name: short([point.value for point in figures[name]][:length]) for name in BY_VERSION},
        dev=short([point.value for point in figures.get("dev_value", [])]),
        search_seconds=short([point.value for point in figures["search_seconds"]]),
    )


if __name__ == "__main__":
    print(msgspec.json.encode([measure(Path(folder)) for folder in sys.argv[1:]]).decode())
