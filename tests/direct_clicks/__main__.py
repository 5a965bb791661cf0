"""Train policies on simulated people's clicks, and measure them on queries that nobody asked.

    python -m tests.direct_clicks --home HOME --seeds 3 --queries QUERIES.jsonl.gz --qrels QRELS.tsv

HOME holds an index of the catalogue (`searchloop --home HOME index CORPUS --name icecat`). An arm that is done is not
done again. Everything lies in HOME/direct-clicks.json; `python -m tests.direct_clicks.table` makes the table of it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import msgspec

from infra.app.app import App
from infra.app.home import Home
from infra.recipes.files import recipe_path
from tests.direct_clicks.seed_run import SeedResult, held_out, opened, run_seed
from tests.direct_clicks.trial import Plan
from tests.drift.arms import silent
from tests.drift.shop import Remembering

SETTINGS = {
    "prompts": {"terms": 12, "attributes": 4, "neighbours": 16},
    "context": {"relevance_min": 0.0, "documents": 20, "terms": 12, "attributes": 4},
    "learner": {"claims": {"share": 0.0}},
    "warmup": {"epochs_max": 1, "batch_size": 32, "learning_rate": 1e-3},
}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--index", default="icecat")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=Plan().updates)
    parser.add_argument("--explored", type=int, default=Plan().explored)
    parser.add_argument("--queries", type=Path, help="Judged queries of people (JSONL)")
    parser.add_argument("--qrels", type=Path, help="Their judgments")
    given = parser.parse_args()
    plan = Plan(updates=given.updates, explored=given.explored)
    app = App(Home(given.home)).with_recipe(recipe_path("leser")).with_changes("tests.direct_clicks", SETTINGS)
    results = given.home / "direct-clicks.json"
    done: dict[str, SeedResult] = {}
    if results.exists():
        done = msgspec.json.decode(results.read_bytes(), type=dict[str, SeedResult])
    with app.running_services(silent) as running:
        human = (given.queries, given.qrels) if given.queries and given.qrels else None
        sets, dev = held_out(running, given.index, plan, human)
        embedder = Remembering(running.settings.embedding)
        for seed in range(given.seeds):
            name = f"direct-{seed}"
            result = done.setdefault(str(seed), SeedResult())
            with opened(running, given.index, name, plan, seed, embedder) as street:
                for _ in run_seed(street, sets, dev, result):
                    results.write_bytes(msgspec.json.encode(done))
            for left in running.home.runs.glob(f"{name}-*-live"):
                shutil.rmtree(left)


if __name__ == "__main__":
    main()
