"""A recipe of one's own through Kafka: the same workers, log and proof as for ours."""

from __future__ import annotations

import duckdb
import msgspec

from infra.app.app import App
from infra.app.settings import TrainSettings
from infra.runs.training_runs import train_run
from infra.runs.verification import verify_run
from tests.loop.conftest import SMALL, quiet


def test_a_users_own_task_trains_through_the_real_loop_and_its_log_proves_whole(small_world: App) -> None:
    settings = msgspec.structs.replace(SMALL, train=TrainSettings(recipe="tests.recipe_example:Distinction"))
    app = small_world.with_settings(settings)
    summary = train_run(
        app,
        recipe="distinction",
        index="small",
        queries_file=None,
        held_out=[],
        updates=3,
        seed=0,
        run="own",
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
