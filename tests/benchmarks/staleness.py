"""How many groups expire, and how old trained ones are, over many streams in simulated time.

Run: python tests/benchmarks/staleness.py [--streams 1000]. Each stream is drawn (`tests/simulated_stream.py`): 1 to 8
partitions, batches of 1 to 16, generators and environments of very different speeds, dead letters, failed groups,
requests that never train, learners that die.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.simulated_stream import UPDATES, draw, simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=300, help="streams to draw")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows: dict[int, list[tuple[int, int, int, bool]]] = {}
    for number in range(arguments.streams):
        seed = arguments.seed * 1_000_003 + number
        stream = draw(random.Random(seed))
        outcomes = simulate(stream, random.Random(seed + 1))
        beyond = sum(lag > stream.batch.staleness_max for lag in outcomes.staleness)
        taken = len(outcomes.trained) + len(outcomes.expired) + len(outcomes.failed)
        stood = outcomes.updates < UPDATES and outcomes.unanswered > 0
        rows.setdefault(len(stream.shares), []).append((taken, len(outcomes.expired), beyond, stood))
    names = ("partitions", "streams", "groups", "expired", "worst", "too old", "stood still")
    print("".join(f"{name:>12}" for name in names))
    for partitions in sorted(rows):
        found = rows[partitions]
        groups, expired = sum(row[0] for row in found), sum(row[1] for row in found)
        worst = max(row[1] / max(row[0], 1) for row in found)
        figures = {
            "partitions": partitions,
            "streams": len(found),
            "groups": groups,
            "expired": expired,
            "worst_expired_share": worst,
            "too_old": sum(row[2] for row in found),
            "stood_still": sum(row[3] for row in found),
        }
        cells = (partitions, len(found), groups, expired, f"{worst:.2%}", figures["too_old"], figures["stood_still"])
        print("".join(f"{cell:>12}" for cell in cells))
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
