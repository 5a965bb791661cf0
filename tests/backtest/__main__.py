"""Test the built-in alert rules on injected faults and on clean runs, and write the results.

    python -m tests.backtest --runs 20 --clean 300

Limits are chosen on one set of seeds and judged on another. The result lies in tests/backtest/results.json, and
`python -m tests.backtest.table` writes it into infra/ALERTS.md.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from storage.monitor.rules import built_in_rules
from tests.backtest.base import real_runs
from tests.backtest.score import SETS, Choice, Results, SetScore, choices, clean, score_set

RESULTS = Path(__file__).with_name("results.json")
CHOSEN = "chosen on"


def score(name: str, runs: int, clean_runs: int) -> tuple[SetScore, list[Choice]]:
    """Return the score on one set of seeds, and the candidates' scores on the set that limits are chosen on."""
    first_seed = SETS[name]
    sizes = {"training": clean_runs, "live": max(clean_runs // 10, 1)}
    quiet = {kind: clean(kind, first_seed, count) for kind, count in sizes.items()}
    found = score_set(built_in_rules(), first_seed, runs, quiet)
    print(name, msgspec.json.format(msgspec.json.encode(found)).decode(), flush=True)
    few = {kind: each[: max(len(each) // 6, 1)] for kind, each in quiet.items()}
    return found, choices(runs, few) if name == CHOSEN else []


def main() -> None:
    """Test, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="Runs of each fault in each set of seeds.")
    parser.add_argument("--clean", type=int, default=300, help="Clean training runs in each set; live ones: a tenth.")
    given = parser.parse_args()
    with ProcessPoolExecutor(len(SETS)) as pool:
        waiting = {name: pool.submit(score, name, given.runs, given.clean) for name in SETS}
        scores = {name: each.result() for name, each in waiting.items()}
    results = Results(
        command=f"python -m tests.backtest --runs {given.runs} --clean {given.clean}",
        date=datetime.now(tz=UTC).date().isoformat(),
        bases=[run.name for run in real_runs()],
        sets={name: found for name, (found, _) in scores.items()},
        choices=scores[CHOSEN][1],
    )
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


if __name__ == "__main__":
    main()
