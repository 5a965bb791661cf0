"""Which folders a training refuses before it makes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.recipes.recipe import NewRun
from infra.runs.training_runs import loop_run, train_run
from storage.archive import ARCHIVE
from storage.ledger import LEDGER
from streams.errors import SettingsError
from tests.loop.conftest import quiet


@pytest.mark.parametrize("holds", [LEDGER, ARCHIVE, "topics.json"])
def test_a_log_that_no_training_made_gets_no_policy(tmp_path: Path, holds: str) -> None:
    app = App(Home(tmp_path), settings=Settings())
    folder = app.home.run("traffic")
    (folder / holds).mkdir(parents=True)
    new = NewRun(run="traffic", index="shop")
    with pytest.raises(SettingsError, match=f"holds a log and no policy .{holds} in .*new name with --run"):
        next(loop_run(app, new, recipe="leser", updates=1, report=quiet))
    with pytest.raises(SettingsError, match="holds a log and no policy"):
        train_run(app, new, recipe="leser", updates=1, report=quiet)
    assert [path.name for path in folder.iterdir()] == [holds]
