"""Time and memory of `promote`'s looks at a ledger of a million impressions.

    python tests/benchmarks/promoting.py --impressions 1000000

DuckDB writes the ledger directly: one version at half of the searches, raw results at the other half, 100,000 clients,
20,000 queries, ten documents a list, and a click on every third. Each act is a process of its own, so that its largest
memory is its own: "look" is a look at the ramp's stage, "gate" the off-policy gate with the routes, "compare" the
estimates of `searchloop compare`. The script ends with an error if a look finds other figures than were written.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import duckdb

from infra.app.settings import Settings
from infra.promotion.evidence import gate, routes_with_log, seen_at_stage
from search_env.serving.ramp import Ramp, RampSettings
from search_env.serving.routing import Part, Routes
from storage.ledger import LEDGER
from storage.log import open_log
from storage.offpolicy.reading import read_traffic
from storage.offpolicy.versions import evaluate_versions
from storage.schema import migrate
from streams.utility import UtilitySettings

RUN, VERSION = "live", "1-new-000001"
ACTS = ("look", "gate", "compare")
CLIENTS, QUERIES = 100_000, 20_000

_SHOWN = "list_transform(range(10), lambda k: {'document_id': 'd' || ((n * 7 + k) % 50000), 'rank': k + 1})"
_SEARCHES = f"""
    CREATE TEMP TABLE searches AS
    SELECT n, hash(n % {CLIENTS}) % 2 = 0 AS treated, 'c' || (n % {CLIENTS}) AS client,
        'query ' || (hash(n) % {QUERIES}) AS query, hash(n, 1) % 3 = 0 AS clicked
    FROM range(?) AS of(n)
"""
_PLACE = "'{run}.{kind}' AS topic, 0 AS partition, n AS record_offset, n AS record_time_ms, '{run}' AS run"
_IMPRESSIONS = f"""
    INSERT INTO impressions BY NAME
    SELECT {_PLACE.format(run=RUN, kind="impressions")}, 'i' || n AS impression_id, 'q' || n AS query_id, query, client,
        {_SHOWN} AS shown, n AS at_ms, CASE WHEN treated THEN '{VERSION}' ELSE '' END AS policy,
        0.5 AS action_propensity, MAP {{'': 0.5, '{VERSION}': 0.5}} AS offered
    FROM searches
"""
_OUTCOMES = f"""
    INSERT INTO impression_outcomes BY NAME
    SELECT {_PLACE.format(run=RUN, kind="impression-outcomes")}, 'i' || n AS impression_id, 'q' || n AS query_id, query,
        client, {_SHOWN} AS shown, n AS at_ms, CASE WHEN treated THEN '{VERSION}' ELSE '' END AS policy,
        0.5 AS action_propensity, true AS final,
        CASE WHEN clicked THEN [{{'action_id': 'a' || n, 'kind': 'click', 'document_id': 'd' || ((n * 7) % 50000),
            'at_ms': n + 1}}] ELSE [] END AS actions
    FROM searches
"""


def write_ledger(folder: Path, count: int) -> tuple[int, float]:
    """Write the ledger; return the number of searches with the version, and the clicks a search of all."""
    with duckdb.connect(str(folder / LEDGER)) as connection:
        migrate(connection)
        connection.execute(_SEARCHES, [count])
        connection.execute(_IMPRESSIONS)
        connection.execute(_OUTCOMES)
        row = connection.execute("SELECT sum(treated::INT), avg(clicked::INT) FROM searches").fetchone()
    assert row is not None
    return int(row[0]), float(row[1])


def act(name: str, folder: Path) -> dict[str, float]:
    """Do one act, and return its time, its largest memory, and a figure to check."""
    began = time.monotonic()
    with open_log(folder) as log:
        traffic = read_traffic(log, RUN, UtilitySettings())
    if name == "look":
        figure = float(
            seen_at_stage(traffic, Ramp(version=VERSION, stage=4, share=0.5, since_ms=0), RampSettings()).treated
        )
    elif name == "gate":
        _, _, figures = gate(traffic, VERSION, "", RampSettings())
        parts = {part: Part(action="raw", explored="helped") for part in ("short", "long")}
        routes_with_log(traffic, Routes(version=VERSION, by="words", top=10, parts=parts), "", Settings())
        figure = figures["gain"]
    else:
        figure = evaluate_versions(traffic)[-1].gains["dr"].value
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds": round(time.monotonic() - began, 2),
        "cpu": round(time.process_time(), 2),
        "gib": round(memory, 3),
        "figure": figure,
    }


def main() -> None:
    """Write the ledger, and measure each act."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impressions", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="Folder with the ledger; with --act alone")
    parser.add_argument("--act", choices=ACTS)
    given = parser.parse_args()
    if given.act:
        print(json.dumps(act(given.act, given.folder)))
        return
    with tempfile.TemporaryDirectory() as made:
        treated, clicks = write_ledger(Path(made), given.impressions)
        print(f"{'act':<10} {'seconds':>8} {'CPU':>8} {'GiB':>6}")
        for name in ACTS:
            command = [sys.executable, __file__, "--act", name, "--folder", made]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(f"{name:<10} {found['seconds']:>8.2f} {found['cpu']:>8.2f} {found['gib']:>6.2f}", flush=True)
            if name == "look" and found["figure"] != treated:
                raise SystemExit(f"look: expected {treated:,} searches with the version, got {found['figure']:,.0f}")
            if name != "look" and not abs(found["figure"]) < clicks / 10:
                raise SystemExit(f"{name}: expected a gain near 0, got {found['figure']:+.3f}")
            print(json.dumps({"benchmark": "promoting", "act": name, "impressions": given.impressions, **found}))


if __name__ == "__main__":
    main()
