"""What stands in the log and is not of the chain that is learned."""

from __future__ import annotations

from collections.abc import Callable

from infra.context import App
from infra.running.training import stream
from infra.tasks.task import Prepared
from infra.verification import verify_run
from learner.checkpoints import CURRENT, load_current
from tests.loop.conftest import quiet
from tests.loop.test_going_on import AHEAD, taken_groups

Make = Callable[..., Prepared]


def test_a_run_that_is_set_back_by_hand_learns_on_from_there_and_no_group_twice(
    small_world: App, new_run: Make
) -> None:
    prepared = new_run(AHEAD, updates=3)
    app, run = small_world.with_settings(AHEAD), prepared.run
    stream(app, prepared, updates=3, seed=0, report=quiet)
    root = app.home.run(run) / "checkpoints"
    (older,) = root.glob("*-000001")
    (root / CURRENT).write_text(f"{older.name}\n")
    summary = stream(app, prepared, updates=3, seed=0, report=quiet)
    folder, manifest = load_current(root)
    assert summary.updates == manifest.policy.step == 3
    assert summary.groups_trained + summary.groups_flat + summary.groups_expired == 12
    assert (root / CURRENT).read_text().strip() == folder.name == summary.policy
    groups = taken_groups(app, run)
    assert len(groups) == len(set(groups))
    assert verify_run(app, run, rebuild=False, offline=False).findings == ()
