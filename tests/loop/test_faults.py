"""Every worker dies three times in one run, each time at a named place, and nothing is lost or counted twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.context import App
from infra.reproduction import reproduce
from infra.tasks.task import Prepared
from infra.training import stream
from infra.verification import verify_run
from streams.failpoints import NAMES
from tests.faults.world import SETTINGS
from tests.loop.conftest import quiet

UPDATES = 8


def test_every_worker_dies_at_every_named_place_and_the_contract_holds(
    small_world: App, new_run: Callable[..., Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = new_run(SETTINGS, updates=UPDATES)
    app = small_world.with_settings(SETTINGS)
    monkeypatch.setenv("SEARCHLOOP_FAILPOINTS__KILL", ",".join(NAMES))
    monkeypatch.setenv("SEARCHLOOP_FAILPOINTS__FOLDER", str(tmp_path / "failpoints"))
    summary = stream(app, prepared, updates=UPDATES, seed=0, report=quiet)
    assert {path.name for path in (tmp_path / "failpoints").iterdir()} == set(NAMES)
    assert summary.updates == UPDATES
    assert summary.restarts >= len(NAMES)
    account = verify_run(app, prepared.run, rebuild=True, offline=False)
    assert account.findings == ()
    assert account.uses_max == 1
    # The updates of all those lives, made again in one go: the weights of each are the same.
    made = reproduce(app, prepared.run, begin="0", updates_max=None, report=quiet)
    assert (made.updates, made.different) == (UPDATES, None)
