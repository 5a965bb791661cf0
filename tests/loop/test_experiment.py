"""Experiments through the real services: every arm made and ranked once, compared as `evaluate` does, and resumed."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.run_settings import read_run_settings
from infra.app.settings import AlternationSettings, TrainSettings
from infra.experiments.arms import begin, run_arms
from infra.experiments.measuring import rank_run
from infra.experiments.plan import read_plan
from infra.experiments.tables import Results, read_results
from infra.runs.alternation import STATE_FILE, read_alternation
from learner.retriever import RetrieverSettings
from learner.versions import find_version
from services.local import Endpoints
from storage.evaluation.measures import measure_run
from tests.commands import command, environment
from tests.loop.conftest import SMALL, quiet
from tests.loop.test_summaries import summary_settings

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


def test_an_experiment_is_run_once_and_says_what_its_commands_and_evaluate_say(
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

    for row in ("raw.0", "grpo.0"):
        [line] = [line for line in results["commands"] if line.endswith(f"--row {row}")]
        _, *rest = shlex.split(line)
        call(*(str(tmp_path) if part == unique_name else part for part in rest))
        assert (tmp_path / rankings.name / f"{row}.run").read_text() == (rankings / f"{row}.run").read_text()

    written = {path: path.stat().st_mtime_ns for path in rankings.iterdir()}
    assert json.loads(call(*asked)) == results
    assert {path: path.stat().st_mtime_ns for path in rankings.iterdir()} == written, "what was done was done again"


SUMMARIES = """
title = "summaries"
recipe = "relsum"
baseline = "GRPO"
seeds = [0]
updates = 2
samples = 200
measures = ["nDCG@5", "R@90P, one threshold"]
[[arms]]
name = "title"
search = "title"
[[arms]]
name = "GRPO"
train = {}
[[arms]]
name = "DPO"
train = { by = "preferences", start = "GRPO", change = ["preference.margin_min=0"] }
"""
TURNS = """
title = "turns"
recipe = "resume"
baseline = "turns"
seeds = [0]
updates = 2
samples = 200
measures = ["RR@10"]
[[arms]]
name = "adapted"
search = "adapted-lead"
[[arms]]
name = "untaught"
search = "0"
of = "turns"
change = ["resume.retriever="]
[[arms]]
name = "turns"
train = { by = "turns" }
"""


def ranked_once(app: App, text: str, folder: Path, name: str) -> Results:
    """Run a plan, run it again, and return what it found."""
    (folder / "plan.toml").write_text(text)
    plan = read_plan(folder / "plan.toml")
    begin(app.home.experiment(name), plan, index="small", given=None)

    def run() -> set[tuple[Path, int]]:
        run_arms(app, plan, name=name, index="small", given=None, report=quiet)
        return {(path, path.stat().st_mtime_ns) for path in app.home.experiment(name).rglob("*.*")}

    assert run() == run(), "what was done was done again"
    return read_results(app.home, plan, name=name, index="small")


def test_summaries_by_grpo_and_by_dpo_on_its_groups_are_ranked_as_one_table(
    small_world: App, unique_name: str, tmp_path: Path
) -> None:
    app = small_world.with_settings(summary_settings())
    results = ranked_once(app, SUMMARIES, tmp_path, unique_name)
    [tail] = results.sets
    assert [arm.name for arm in tail.arms] == ["title", "GRPO", "DPO"]
    assert all(set(arm.measures) == {"nDCG@5", "R@90P, one threshold"} for arm in tail.arms)
    assert list(results.curves["reward"]) == ["GRPO"]
    first, preferred = (
        find_version(app.home.run(f"{unique_name}-{arm}-0") / "checkpoints", "0")[1] for arm in ("grpo", "dpo")
    )
    assert first.policy.sha256 != preferred.policy.sha256


def test_turns_are_ranked_with_the_retriever_that_they_ended_with(
    small_world: App, unique_name: str, tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(
        SMALL,
        train=TrainSettings(recipe="resume"),
        alternation=AlternationSettings(turns_max=1, measured_products=8),
        retriever=RetrieverSettings(steps=20, batch_pairs=32),
    )
    app = small_world.with_settings(settings)
    results = ranked_once(app, TURNS, tmp_path, unique_name)
    assert [[arm.name for arm in each.arms] for each in results.sets] == [["adapted", "untaught", "turns"]] * len(
        results.sets
    )
    turn = read_alternation(app.home.run(f"{unique_name}-turns-0") / STATE_FILE).best
    kept = read_run_settings(app.home.run(turn.run))
    [ranked, *_] = rank_run(
        app, kept, policy="latest", given=None, changes={"resume": {"retriever": turn.adapted}}, report=quiet
    )
    by_hand = measure_run(ranked.run, ranked.qrels, ["RR@10"])["RR@10"]
    assert results.sets[0].arms[2].measures["RR@10"].value == pytest.approx(sum(by_hand.values()) / len(by_hand))
    [points] = results.curves["RR@10 on dev queries after each turn"].values()
    assert points == ((1.0, turn.after),)
