"""What stands in the log and is not of the chain that is learned: an abandoned lineage, and announcements of nobody."""

from __future__ import annotations

from collections.abc import Callable

from infra.app.app import App
from infra.recipes.recipe import Prepared
from infra.runs.training import stream
from infra.runs.verification import verify_run
from learner.checkpoints import CURRENT, load_current
from streams.clients import create_topics, partitions_of
from streams.events import PolicyRef, PolicyVersion, Update
from streams.lag import end_offsets
from streams.topics import topic_name, version_name
from tests.loop.conftest import quiet
from tests.loop.test_going_on import AHEAD, taken_groups
from tests.outboxes import opened_outbox

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


def test_announcements_that_are_not_the_learners_end_and_hasten_nothing(small_world: App, new_run: Make) -> None:
    prepared = new_run(AHEAD, updates=2)
    app, run = small_world.with_settings(AHEAD), prepared.run
    create_topics(app.settings.kafka, run, folder=app.home.run(run))
    first = load_current(app.home.run(run) / "checkpoints")[1].policy
    future = PolicyRef(lineage="9-ffffff", step=10**6, sha256="0" * 64)
    with opened_outbox(app.settings.kafka, run) as outbox:
        outbox.send(Update(run=run, policy=future, parent=first, trained=(), requests_consumed={0: 3000}))
        outbox.send(Update(run="other", policy=future, parent=first, trained=(), requests_consumed={0: 3000}))
        for policy, admitted in ((future, {0: 3000}), (first, {0: 3000}), (first, {7: 5, -1: 3, 0: -4})):
            outbox.send(
                PolicyVersion(
                    run=run,
                    policy=policy,
                    parent=None,
                    path=f"checkpoints/{version_name(policy)}",
                    requests_consumed=admitted,
                    requests_admitted=admitted,
                )
            )
        outbox.flush()
    summary = stream(app, prepared, updates=2, seed=0, report=quiet)
    assert summary.updates == 2
    assert summary.groups_trained + summary.groups_flat == 8
    (asked,) = end_offsets(
        app.settings.kafka, partitions_of(app.settings.kafka, [topic_name(run, "requests")])
    ).values()
    assert asked < 100
