"""Live through worlds that drift at several speeds, and keep what each arm's people would have clicked.

    python -m tests.drift --home HOME --seeds 3

A world that is done is not done again. The result lies in HOME/drift.json.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import msgspec

from infra.app.app import App
from infra.app.home import Home
from infra.recipes.files import recipe_path
from infra.simulating.world import WorldSettings
from tests.drift.arms import silent
from tests.drift.world_run import Plan, WorldResult, run_world

SPEEDS = {"slow": 0.03, "middle": 0.1, "fast": 0.3, "still": 0.0}
SETTINGS = {
    "prompts": {"select": True, "terms": 12, "neighbours": 12, "attributes": 0},
    "neighbours": {"words": 12},
    "context": {"relevance_min": 0.0, "terms": 14, "documents": 10},
    "generation": {"tokens_max": 25, "temperature": 1.0},
    "batch": {"groups": 16},
    "learner": {"update": {"learning_rate": 1e-3}, "claims": {"share": 0.0}},
    "warmup": {"epochs_max": 2, "batch_size": 16, "learning_rate": 1e-3},
}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--speed", action="append", choices=list(SPEEDS))
    parser.add_argument("--days", type=int, default=Plan().days)
    given = parser.parse_args()
    app = App(Home(given.home)).with_recipe(recipe_path("demo")).with_changes("tests.drift", SETTINGS)
    results = given.home / "drift.json"
    done: dict[str, WorldResult] = {}
    if results.exists():
        done = msgspec.json.decode(results.read_bytes(), type=dict[str, WorldResult])
    with app.running_services(silent) as running:
        for seed in range(given.seeds):
            for speed in given.speed or SPEEDS:
                name = f"drift-{speed}-s{seed}"
                if name in done:
                    continue
                for left in running.home.runs.glob(f"{name}-*"):
                    shutil.rmtree(left)
                share = SPEEDS[speed]
                world = WorldSettings(replaced=share, renamed=share, moved=share, seed=seed)
                done[name] = run_world(running, name, world, msgspec.structs.replace(Plan(), days=given.days))
                results.write_bytes(msgspec.json.format(msgspec.json.encode(done)))


if __name__ == "__main__":
    main()
