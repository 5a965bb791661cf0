"""Every worker dies three times in one run, each time at a named place, and nothing is lost or counted twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.app.app import App
from infra.recipes.recipe import Prepared
from infra.replaying.reproduction import reproduce
from infra.runs.training import stream
from infra.runs.verification import verify_run
from streams.failpoints import NAMES
from tests.faults.world import SETTINGS, limit
from tests.loop.conftest import quiet

UPDATES = 8
UPDATES_MAX = 80


def test_every_worker_dies_at_every_named_place_and_the_contract_holds(
    small_world: App, new_run: Callable[..., Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = new_run(SETTINGS, updates=UPDATES)
    app = small_world.with_settings(SETTINGS)
    died = tmp_path / "failpoints"
    monkeypatch.setenv("SEARCHLOOP_FAILPOINTS__KILL", ",".join(NAMES))
    monkeypatch.setenv("SEARCHLOOP_FAILPOINTS__FOLDER", str(died))
    updates = 0
    # A segment closes after a time: a quick machine makes a few updates more until a sink has died there too.
    while updates < UPDATES_MAX and (not updates or {path.name for path in died.iterdir()} != set(NAMES)):
        updates += UPDATES
        limit(app, prepared, updates=updates)
        summary = stream(app, prepared, updates=updates, seed=0, report=quiet)
        assert summary.policy.endswith(f"-{updates:06d}")
    assert {path.name for path in died.iterdir()} == set(NAMES)
    account = verify_run(app, prepared.run, rebuild=True, offline=False)
    assert account.findings == ()
    assert account.uses_max == 1
    # The updates of all those lives, made again in one go: the weights of each are the same.
    made = reproduce(app, prepared.run, begin="0", updates_max=None, report=quiet)
    assert (made.updates, made.different) == (updates, None)
