"""How well the loop's stages overlap: policy lag, announcement to first candidate, busiest stage by the cycle.

The loop is the demo's at a smaller size, with a real Kafka and a real Elasticsearch. All figures come from the run's
own ledger, between two updates in mid-run:

- policy lag: updates between the version that wrote a group and the one that learned from it;
- announcement to first candidate: from the record of a policy version until the generator begins the first group with
  it (`made_at_ms`), and until that group is in the log;
- pipeline: the share of the time in which the busiest of the three stages has work. To wait for the processor is a part
  of a stage's work. Its bound: a batch passes the stages as a whole, and a staleness of η lets η + 1 batches be under
  way, so η + 1 cycles are at least as long as the three stages together.

Run: python tests/benchmarks/loop.py [--updates 40] [--from-update 8]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import duckdb

from infra.recipes.recipe import NewRun
from infra.runs.training_runs import train_run
from storage.ledger import LEDGER
from tests.benchmarks.small_loop import FIRST, INDEX, say, small_loop
from tests.capacity.calibration import calibrate

RUN = "measured"


def main() -> None:
    """Run the loop once, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--from-update", type=int, default=8)
    options = parser.parse_args()
    with small_loop() as app:
        new = NewRun(run=RUN, index=INDEX)
        train_run(app, new, recipe="demo", updates=options.updates, report=say, from_run=FIRST)
        ledger = app.home.run(RUN) / LEDGER
        found = calibrate(ledger, from_update=options.from_update)
        begun, written = announcements(ledger, options.from_update)
        lags = policy_lags(ledger, options.from_update)
        cycle = statistics.median(cycles(ledger, options.from_update))
        staleness_max = app.settings.batch.staleness_max
    if max(lags) > staleness_max:
        raise SystemExit(f"loop: a group of lag {max(lags)} was trained, expected at most {staleness_max}")
    busiest = max(found.busy, key=lambda name: found.busy[name])
    bound = min((staleness_max + 1) * found.busy[busiest] / sum(found.busy.values()), 1.0)
    print(f"updates {options.from_update} to {options.updates}, {found.groups} groups each; a cycle of {cycle:.3f} s")
    for name, share in found.busy.items():
        print(f"  {name:<9} has work {share:.0%} of the time")
    print(f"  bound of the busiest: {bound:.0%}")
    print(f"announced → begun {statistics.median(begun):.0f} ms, → in the log {statistics.median(written):.0f} ms")
    print(f"lag: mean {statistics.fmean(lags):.2f}, largest {max(lags)} (limit {staleness_max})")
    print(
        json.dumps(
            {
                "benchmark": "loop",
                "updates": options.updates - options.from_update,
                "groups": found.groups,
                "cycle_seconds": cycle,
                "busy": found.busy,
                "busiest": busiest,
                "lag_largest": max(lags),
                "lag_limit": staleness_max,
                "values": {
                    "policy-lag": [statistics.fmean(lags)],
                    "announce-to-candidate": begun,
                    "pipeline": [found.busy[busiest]],
                },
                "floors": {"policy-lag": 0.0, "pipeline": bound},
                "sides": {
                    "pipeline": {**found.busy, "cycle seconds": cycle},
                    "announce-to-candidate": {"in the log": statistics.median(written)},
                },
                "load_average": round(os.getloadavg()[0], 1),
            }
        )
    )


def announcements(ledger: Path, from_update: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds from each version's announcement until its first group is begun, and is in the log.

    A version that wrote no group, because the next one came first, is left out.
    """
    rows = _rows(
        ledger,
        """
        SELECT min(g.made_at_ms) - v.said, min(g.record_time_ms) - v.said
        FROM generations g
        JOIN (
            SELECT lineage, step, min(record_time_ms) AS said FROM policy_versions WHERE status = 'published'
            GROUP BY lineage, step
        ) v ON g.lineage = v.lineage AND g.step = v.step
        WHERE v.step >= ? GROUP BY v.lineage, v.step, v.said
        """,
        from_update,
    )
    return [float(begun) for begun, _ in rows], [float(written) for _, written in rows]


def policy_lags(ledger: Path, from_update: int) -> list[int]:
    """Return the lag of each group that taught, in updates."""
    sql = """
        SELECT u.step - 1 - g.step FROM update_groups u JOIN generations g USING (group_id)
        WHERE u.step > ? AND u.fate IN ('trained', 'flat')
        """
    return [int(lag) for (lag,) in _rows(ledger, sql, from_update)]


def cycles(ledger: Path, from_update: int) -> list[float]:
    """Return the seconds between an update's record and the next one's."""
    rows = _rows(ledger, "SELECT record_time_ms FROM updates WHERE step >= ? ORDER BY step", from_update)
    return [(after - before) / 1000 for (before,), (after,) in pairwise(rows)]


def _rows(ledger: Path, sql: str, from_update: int) -> Sequence[tuple[int, ...]]:
    with duckdb.connect(str(ledger), read_only=True) as opened:
        return opened.execute(sql, (from_update,)).fetchall()


if __name__ == "__main__":
    main()
