"""The experiment's table.

    python -m tests.direct_clicks.table HOME/direct-clicks.json

writes what the values by query come to into `tests/direct_clicks/results.json`, and its table into `infra/LIVE.md`.
Without a file it writes the table of the kept results again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from infra.experiments.markdown import number, with_table
from storage.evaluation.comparison import Interval, compare_means
from storage.evaluation.measures import mean
from tests.direct_clicks.seed_run import (
    APART,
    AS_SEEN,
    CERTAIN,
    CORRECTED,
    FASTER,
    FIRST_LOOK_UP,
    FRAUD,
    HUMAN,
    LOOK_UP,
    PAIRS,
    PROMPT,
    RAW,
    REFRESHED,
    SHUFFLED,
    UNTAUGHT,
    VALUES,
    SeedResult,
)
from tests.direct_clicks.trial import MEASURES

ROOT = Path(__file__).parents[2]
KEPT, PAGE, NAME = ROOT / "tests/direct_clicks/results.json", ROOT / "infra/LIVE.md", "direct clicks"
DRAWS = 2_000
ORDER = (
    RAW,
    PROMPT,
    FIRST_LOOK_UP,
    LOOK_UP,
    UNTAUGHT,
    CORRECTED,
    REFRESHED,
    FASTER,
    APART,
    CERTAIN,
    AS_SEEN,
    FRAUD,
    SHUFFLED,
)
SETS = (PAIRS, VALUES, HUMAN)
COMPARED = (
    (CORRECTED, RAW),
    (REFRESHED, RAW),
    (REFRESHED, UNTAUGHT),
    (CORRECTED, AS_SEEN),
    (FRAUD, CORRECTED),
    (CORRECTED, PROMPT),
    (CORRECTED, LOOK_UP),
    (CORRECTED, UNTAUGHT),
    (CORRECTED, SHUFFLED),
    (CORRECTED, APART),
    (FASTER, RAW),
    (FASTER, UNTAUGHT),
    (CERTAIN, RAW),
    (CERTAIN, UNTAUGHT),
    (UNTAUGHT, RAW),
    (UNTAUGHT, PROMPT),
    (PROMPT, RAW),
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One arm, or the difference of two. sets: {set: {measure: its mean over seeds and queries, with an interval}}."""

    name: str
    seeds: int
    sets: dict[str, dict[str, Interval]]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The result that is kept.

    queries: of each set. rewards: mean reward of the first and of the last ten updates' texts, by trained arm.
    searches: of people in one training, by arm. examination: of each seed's first five ranks, as estimated.
    """

    queries: dict[str, int]
    arms: list[Row]
    differences: list[Row]
    rewards: dict[str, tuple[float, float]]
    searches: dict[str, int]
    examination: list[tuple[float, ...]]


def summary_of(results: Mapping[str, SeedResult]) -> Summary:
    """Return what the values come to: means over the seeds that have an arm, by query, and paired intervals."""
    first = next(iter(results.values()))
    sets = [name for name in SETS if name in first.arms[RAW]]
    arms = [arm for arm in ORDER if any(arm in each.arms for each in results.values())]

    def of(arm: str, name: str, measure: str, seeds: list[str]) -> dict[str, float]:
        found = [results[seed].arms[arm][name][measure] for seed in seeds]
        return {query: float(np.mean([each[query] for each in found])) for query in found[0]}

    def having(*wanted: str) -> list[str]:
        return [seed for seed, each in results.items() if all(arm in each.arms for arm in wanted)]

    def row(name: str, one: str, other: str) -> Row:
        seeds = having(one, other)
        return Row(
            name=name,
            seeds=len(seeds),
            sets={
                each: {
                    measure: compare_means(
                        of(one, each, measure, seeds), of(other, each, measure, seeds), samples=DRAWS
                    )
                    for measure in MEASURES
                }
                for each in sets
            },
        )

    def means(arm: str) -> Row:
        seeds = having(arm)
        return Row(
            name=arm,
            seeds=len(seeds),
            sets={
                each: {
                    measure: Interval(value=mean(of(arm, each, measure, seeds)), low=None, high=None)
                    for measure in MEASURES
                }
                for each in sets
            },
        )

    trained = [arm for arm in arms if any(arm in each.rewards for each in results.values())]
    return Summary(
        queries={name: len(first.arms[RAW][name][MEASURES[0]]) for name in sets},
        arms=[means(arm) for arm in arms],
        differences=[row(f"{one} − {other}", one, other) for one, other in COMPARED if having(one, other)],
        rewards={
            arm: _ends([each.rewards[arm] for each in results.values() if arm in each.rewards]) for arm in trained
        },
        searches={
            arm: next(each.searches[arm] for each in results.values() if arm in each.searches) for arm in trained
        },
        examination=[each.examination[:5] for each in results.values() if each.examination],
    )


def markdown(found: Summary) -> str:
    """Return the arms, their differences, and the rewards in training."""
    names = [f"{name} ({count:,})" for name, count in found.queries.items()]
    lines = [f"| arm (seeds): {' / '.join(MEASURES)} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in found.arms:
        cells = [" / ".join(number(row.sets[name][measure].value) for measure in MEASURES) for name in found.queries]
        lines.append(f"| {row.name} ({row.seeds}) | {' | '.join(cells)} |")
    lines += ["", f"| difference (seeds) | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in found.differences:
        cells = ["; ".join(_said(row.sets[name][measure]) for measure in MEASURES) for name in found.queries]
        lines.append(f"| {row.name} ({row.seeds}) | {' | '.join(cells)} |")
    lines += ["", "| training | mean reward, first ten updates | last ten | searches of people |", "|---|---|---|---|"]
    for arm, (begin, end) in found.rewards.items():
        lines.append(f"| {arm} | {begin:.3f} | {end:.3f} | {found.searches[arm]:,} |")
    return "\n".join(lines) + "\n"


def _ends(rewards: list[list[float]]) -> tuple[float, float]:
    return (
        round(float(np.mean([each[:10] for each in rewards])), 4),
        round(float(np.mean([each[-10:] for each in rewards])), 4),
    )


def _said(found: Interval) -> str:
    values = [found.value, found.low, found.high]
    said = [number(each, sign=True) for each in values if each is not None]
    return f"{said[0]} [{said[1]}, {said[2]}]"


def main() -> None:
    """Write the summary and the page."""
    if len(sys.argv) > 1:
        results = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=dict[str, SeedResult])
        KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(summary_of(results)), indent=1) + b"\n")
    found = msgspec.json.decode(KEPT.read_bytes(), type=Summary)
    PAGE.write_text(with_table(PAGE.read_text(), NAME, markdown(found)))


if __name__ == "__main__":
    main()
