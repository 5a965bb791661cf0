"""Which folders a training refuses before it makes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
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
    how = {"recipe": "leser", "index": "shop", "updates": 1, "seed": 0, "run": "traffic", "report": quiet}
    with pytest.raises(SettingsError, match=f"holds a log and no policy .{holds} in .*new name with --run"):
        next(loop_run(app, **how))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="holds a log and no policy"):
        train_run(app, **how, queries_file=None, held_out=())  # type: ignore[arg-type]
    assert [path.name for path in folder.iterdir()] == [holds]
