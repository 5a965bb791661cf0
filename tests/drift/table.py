"""The drift experiment's result as Markdown: `python -m tests.drift.table HOME/drift.json`."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from infra.experiments.markdown import number
from tests.drift.world_run import WorldResult

PAUSELESS = "without pause"
DRAWS = 10_000


def markdown(worlds: Mapping[str, WorldResult]) -> str:
    """Return a table for each speed: clicks a search, regret, and the difference to learning without pause.

    Intervals (95 %) are by bootstrap over the days of all seeds, each day's arms together.
    """
    by_speed: defaultdict[str, list[WorldResult]] = defaultdict(list)
    for name, world in worlds.items():
        by_speed[name.split("-")[1]].append(world)
    return "\n\n".join(_table(speed, found) for speed, found in by_speed.items())


def _table(speed: str, found: Sequence[WorldResult]) -> str:
    arms = [arm for arm in found[0].clicks if arm != "best"]
    days = {arm: np.concatenate([world.clicks[arm] for world in found]) for arm in [*arms, "best"]}  # [seeds · days]
    changed = found[0].world.renamed
    lines = [
        f"**{speed}**: {changed:.0%} of products, sellers' words and demand change in a day; {len(found)} seeds, "
        f"{len(days['best'])} days",
        "",
        "| arm | clicks a search | regret, clicks per 1,000 searches | without pause less this arm |",
        "|---|---|---|---|",
    ]
    for arm in arms:
        regret = 1_000 * float((days["best"] - days[arm]).mean())
        difference = "" if arm == PAUSELESS else _interval(days[PAUSELESS] - days[arm])
        name = f"**{arm}**" if arm == PAUSELESS else arm
        lines.append(f"| {name} | {days[arm].mean():.3f} | {regret:.0f} | {difference} |")
    return "\n".join(lines)


def _interval(differences: np.ndarray) -> str:
    random = np.random.default_rng(0)
    means = differences[random.integers(0, len(differences), (DRAWS, len(differences)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{number(differences.mean(), sign=True)} [{number(low, sign=True)}, {number(high, sign=True)}]"


if __name__ == "__main__":
    print(markdown(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=dict[str, WorldResult])))
