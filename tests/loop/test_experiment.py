"""An experiment at the command: every arm trained and searched once, compared as `evaluate` compares, and resumed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from infra.context import App
from infra.services.local import Endpoints
from tests.commands import command, environment
from tests.loop.conftest import SMALL

PLAN = """
title = "a <small> one"
recipe = "{recipe}"
baseline = "SFT"
seeds = [0]
updates = 2
samples = 200
[[arms]]
name = "raw"
search = "none"
[[arms]]
name = "SFT"
search = "0"
of = "GRPO"
[[arms]]
name = "GRPO"
train = {{}}
[[arms]]
name = "shuffled"
train = {{ start = "GRPO", change = ["train.shuffle_rewards=true"] }}
"""


def test_an_experiment_is_run_once_and_says_what_evaluate_says(
    local_services: Endpoints, small_world: App, unique_name: str, tmp_path: Path
) -> None:
    recipe, plan, home = tmp_path / "plain.toml", tmp_path / "plan.toml", small_world.home
    recipe.write_text("")
    plan.write_text(PLAN.format(recipe=recipe))
    shutil.copytree(home.run("first"), home.run(f"{unique_name}-grpo-0"))  # Its warm-up is what every test shares.

    def call(*arguments: str) -> str:
        called = command(home.root, *arguments)
        ended = subprocess.run(
            called, env=environment(local_services, SMALL), capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    asked = ("experiment", str(plan), "--index", "small", "--into", unique_name, "--json")
    results = json.loads(call(*asked))
    folder = home.experiment(unique_name)
    page = (folder / "results.html").read_text()
    assert "a &lt;small&gt; one" in page and "<svg" in page and f"--run {unique_name}-grpo-0" in page
    assert json.loads((folder / "results.json").read_text()) == results

    table = results["sets"][0]
    rows = {arm["name"]: arm for arm in table["arms"]}
    assert list(rows) == ["raw", "SFT", "GRPO", "shuffled"]
    rankings = folder / "rankings" / table["name"].replace(" ", "-")
    files = [str(rankings / f"{slug}.0.run") for slug in ("sft", "raw", "grpo", "shuffled")]
    qrels = str(home.index("small") / "intents" / "qrels.test_pair.tsv")
    evaluation = json.loads(call("evaluate", *files, "--qrels", qrels, "--baseline", files[0], "--json"))
    by_file = {Path(run["name"]).stem: run for run in evaluation["runs"]}
    for name, row in rows.items():
        found = by_file[f"{name.lower()}.0"]
        for measure in ("nDCG@10", "R@100"):
            assert row["measures"][measure]["value"] == pytest.approx(found["measures"][measure]["value"])
            if name != "SFT":
                difference = row["differences"][measure]["interval"]["value"]
                assert difference == pytest.approx(found["differences"][measure]["interval"]["value"])
    assert {arm: len(points) > 0 for arm, points in results["curves"]["reward"].items()} == {
        "GRPO": True,
        "shuffled": True,
    }

    written = {path: path.stat().st_mtime_ns for path in rankings.iterdir()}
    assert json.loads(call(*asked)) == results
    assert {path: path.stat().st_mtime_ns for path in rankings.iterdir()} == written, "what was done was done again"
