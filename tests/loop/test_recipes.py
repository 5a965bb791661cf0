"""A recipe of one's own through Kafka: the same workers, log and proof as for ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import duckdb
import msgspec

from infra.app.app import App
from infra.app.settings import TrainSettings
from infra.recipes.recipe import NewRun
from infra.runs.training_runs import train_run
from infra.runs.verification import verify_run
from learner.checkpoints import load_current
from services.local import Endpoints
from tests.commands import command, environment
from tests.loop.conftest import SMALL, quiet


def test_a_users_own_recipe_trains_through_the_real_loop_and_its_log_proves_whole(small_world: App) -> None:
    settings = msgspec.structs.replace(SMALL, train=TrainSettings(recipe="tests.recipe_example:Distinction"))
    app = small_world.with_settings(settings)
    summary = train_run(
        app,
        NewRun(run="own", index="small", seed=0),
        recipe="distinction",
        updates=3,
        report=quiet,
    )
    assert summary.updates == 3
    assert summary.groups_trained > 0
    assert summary.valid_first == 1
    account = verify_run(app, "own", rebuild=True, offline=False)
    assert not account.findings
    with duckdb.connect(str(app.home.run("own") / "searchloop.duckdb"), read_only=True) as ledger:
        [(products, summaries)] = ledger.execute(
            "SELECT (SELECT count(DISTINCT product_id) FROM requests), "
            "(SELECT count(*) FROM outcomes WHERE summary <> '')"
        ).fetchall()
    assert products > 0
    assert summaries > 0


def test_the_loop_in_one_process_is_a_verb_that_goes_on_where_it_stopped(
    local_services: Endpoints, small_world: App, tmp_path: Path
) -> None:
    recipe = tmp_path / "plain.toml"
    recipe.write_text("")

    def call(updates: int) -> list[str]:
        called = command(
            small_world.home.root,
            *("loop", "--recipe", str(recipe), "--index", "small", "--run", "in-one", "--updates", str(updates)),
        )
        done = subprocess.run(
            called, env=environment(local_services, SMALL), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return [line.split(":")[0] for line in done.stdout.splitlines()]

    shutil.copytree(small_world.home.run("first"), small_world.home.run("in-one"))
    assert call(2) == ["version 1", "version 2", "checkpoints"]
    assert call(3) == ["version 3", "checkpoints"]
    _, manifest = load_current(small_world.home.run("in-one") / "checkpoints")
    assert manifest.policy.step == 3
