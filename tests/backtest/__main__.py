"""Test the built-in alert rules on injected faults and on clean runs, and write the results.

    python -m tests.backtest --runs 40 --clean 800

Limits are chosen on one set of seeds and judged on another. The result lies in tests/backtest/results.json, and
`python -m tests.backtest.table` writes it into infra/ALERTS.md.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from storage.monitor.rules import built_in_rules
from tests.backtest.base import real_runs
from tests.backtest.score import SETS, Results, choices, clean, score_set

RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    """Test, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="Runs of each fault in each set of seeds.")
    parser.add_argument("--clean", type=int, default=800, help="Clean training runs in each set; live ones: a tenth.")
    given = parser.parse_args()
    scores = {}
    chosen = []
    for name, first_seed in SETS.items():
        sizes = {"training": given.clean, "live": max(given.clean // 10, 1)}
        clean_runs = {kind: clean(kind, first_seed, count) for kind, count in sizes.items()}
        scores[name] = score_set(built_in_rules(), first_seed, given.runs, clean_runs)
        print(name, msgspec.json.format(msgspec.json.encode(scores[name])).decode(), flush=True)
        if name == "chosen on":
            few = {kind: runs[: max(len(runs) // 4, 1)] for kind, runs in clean_runs.items()}
            chosen = choices(given.runs, few)
    results = Results(
        command=f"python -m tests.backtest --runs {given.runs} --clean {given.clean}",
        date=datetime.now(tz=UTC).date().isoformat(),
        bases=[run.name for run in real_runs()],
        sets=scores,
        choices=chosen,
    )
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


if __name__ == "__main__":
    main()
