"""Click models on logged sessions: how well each foretells the clicks of sessions that it was not fitted on.

    python tests/benchmarks/click_models.py retrotech/sessions.csv.gz

Perplexity is 2 to the mean negative log₂ likelihood of a click at each rank, given the clicks above: 1 is perfect. The
baseline knows click rates by rank alone. A fifth of the sessions, by a hash of their id, is held out. Ranks beyond
`--ranks` are left out. The interval comes from 1,000 bootstrap draws of held-out sessions.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
import time
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from search_env.clicks.fitting import FITS, Sessions
from search_env.clicks.models import click_probabilities

DRAWS = 1_000


def read(path: Path, ranks: int) -> tuple[Sessions, Sessions]:
    """Return the sessions to fit on, and those held out. Both number query-document pairs alike."""
    pairs: dict[tuple[str, str], int] = {}
    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            rank = int(row["rank0"])
            if rank < ranks:
                shown, clicked = rows.setdefault(row["session_id"], (np.full(ranks, -1), np.zeros(ranks, dtype=bool)))
                shown[rank] = pairs.setdefault((row["query"], row["doc_id"]), len(pairs))
                clicked[rank] = row["clicked"] == "1"
    held_out = np.array([zlib.crc32(name.encode()) % 5 == 0 for name in rows])
    shown, clicks = (np.stack([each[place] for each in rows.values()]) for place in (0, 1))
    made = [Sessions(pairs=shown[part], clicks=clicks[part], size=len(pairs)) for part in (~held_out, held_out)]
    return made[0], made[1]


def main() -> None:
    """Fit every model, and print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sessions", type=Path, nargs="?", help="CSV: session_id,query,rank0,doc_id,clicked")
    parser.add_argument("--ranks", type=int, default=20)
    options = parser.parse_args()
    if options.sessions is None:
        print("click_models: give the file of the sessions")
        return
    train, held_out = read(options.sessions, options.ranks)
    print(f"{len(train.pairs):,} sessions to fit on, {len(held_out.pairs):,} held out, {train.size:,} pairs")
    print("| model | held-out perplexity | 95 % | seconds |\n|---|---|---|---|")
    random = np.random.default_rng(0)
    draws = random.integers(len(held_out.pairs), size=(DRAWS, len(held_out.pairs)))
    found = {}
    for name, fit in FITS.items():
        began = time.time()
        fitted = fit(train)
        seconds = time.time() - began
        chances = click_probabilities(fitted.model, fitted.attraction_of(held_out), held_out.clicks)
        likelihood = np.clip(np.where(held_out.clicks, chances, 1 - chances), 1e-12, 1)
        losses = np.nansum(-np.log2(np.where(held_out.shown, likelihood, np.nan)), axis=1)
        ranks = held_out.shown.sum(axis=1)
        drawn = 2 ** (losses[draws].sum(axis=1) / ranks[draws].sum(axis=1))
        value = float(2 ** (losses.sum() / ranks.sum()))
        low, high = np.percentile(drawn, [2.5, 97.5])
        found[name] = round(value, 5)
        print(f"| {name} | {value:.4f} | [{low:.4f}, {high:.4f}] | {seconds:.0f} |", flush=True)
    print(json.dumps({"benchmark": "click_models", "ranks": options.ranks, "perplexity": found}))


if __name__ == "__main__":
    main()
