"""Exports for other tools, read back by those tools: TensorBoard's own reader, DuckDB and pyarrow."""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from infra.app.home import Home
from infra.cli import cli
from infra.monitoring.exporting import export_parquet, export_tensorboard
from storage.curves import CurvePoint, curves
from storage.ledger import LEDGER
from storage.log import open_log
from storage.view_files import view_names
from streams.errors import SettingsError
from streams.events import Event
from tests.finished_run import write_run
from tests.stored_events import RUN, dev_score, reward


def test_a_log_is_read_within_a_gibibyte_and_puts_aside_nothing_beside_the_user_s_files(run: Path) -> None:
    before = sorted(path.name for path in run.iterdir())
    with open_log(run) as log:
        (found,) = log.rows(
            "SELECT current_setting('memory_limit') AS most, current_setting('temp_directory') AS aside"
        )
        # Ten million lists in no order are more than that.
        log.rows(
            "SELECT count(*) FROM (SELECT hash(range) AS h, list(range) FROM range(10_000_000) GROUP BY h ORDER BY h)"
        )
        assert found["most"] == "1.0 GiB"
        assert not Path(found["aside"]).is_relative_to(run)
        assert sorted(path.name for path in run.iterdir()) == before


def silent(said: str) -> None:
    """Take what an export says."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a finished run with two dev scores; what a killed learner left does not count."""
    folder = Home(tmp_path_factory.mktemp("home")).run(RUN)
    folder.mkdir(parents=True)
    killed = msgspec.structs.replace(
        reward(900, step=4),
        generation=msgspec.structs.replace(
            reward(900, step=4).generation, policy=msgspec.structs.replace(dev_score(4).policy, lineage="9-killed")
        ),
    )
    extra: list[tuple[str, Event]] = [("rewards", killed)]
    extra += [("dev-scores", msgspec.structs.replace(dev_score(step), value=0.2 + step / 100)) for step in (0, 5)]
    write_run(folder, extra=extra)
    return folder


def read_back(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Return TensorBoard's own reading of a folder: (step, value, time) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(each.step, each.value, each.wall_time) for each in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_reads_every_curve_as_the_ledger_has_it(run: Path, tmp_path: Path) -> None:
    with open_log(run) as log:
        points = list(curves(log))
        export_tensorboard(log, RUN, tmp_path / "curves", silent)
    found = read_back(tmp_path / "curves" / RUN)
    assert {(name, step) for name, rows in found.items() for step, _, _ in rows} == {
        (point.name.replace("@", "_"), point.step) for point in points
    }
    by_place = {(point.name.replace("@", "_"), point.step): point for point in points}
    for name, rows in found.items():
        for step, value, at in rows:
            assert value == pytest.approx(by_place[name, step].value, rel=1e-6), "TensorBoard keeps 32 bits"
            assert at == pytest.approx(by_place[name, step].at, abs=1e-3)
    with duckdb.connect(str(run / LEDGER), read_only=True) as ledger:
        expected = ledger.execute("SELECT step, metrics['loss'] FROM surviving_updates ORDER BY step").fetchall()
    assert [(step, pytest.approx(value, rel=1e-6)) for step, value, _ in found["update/loss"]] == expected


def test_a_step_has_one_value_also_after_a_killed_learner(run: Path) -> None:
    with open_log(run) as log:
        points = list(curves(log))
        (both,) = log.rows("SELECT count(*) AS n FROM reward_by_version WHERE step = 4")
    assert both["n"] == 2, "two lineages wrote groups at this step"
    places = [(point.name, point.step) for point in points]
    assert len(set(places)) == len(places)
    assert {point.step for point in points if point.name == "reward/mean"} == {0, 1, 2, 3, 4}
    assert [point for point in points if point.name == "dev/nDCG@10"] == [
        CurvePoint(name="dev/nDCG@10", step=0, value=0.2, at=0.001),
        CurvePoint(name="dev/nDCG@10", step=5, value=0.25, at=0.001),
    ]


def test_each_parquet_file_has_the_rows_of_its_view(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    with open_log(run) as log:
        names = view_names(log)
        export_parquet(log, folder, silent)
    assert {"accounting", "candidate_outcomes", "reward_by_version", "surviving_updates"} <= set(names)
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.parquet" for name in names]
    with duckdb.connect(str(run / LEDGER), read_only=True) as ledger:
        for name in names:
            file = folder / f"{name}.parquet"
            (rows,) = ledger.execute(f'SELECT count(*) FROM "{name}"').fetchone() or (None,)
            assert pq.read_metadata(file).num_rows == rows, name
            if name == "reward_by_version":  # Its means are summed in no fixed order.
                continue
            both = f"(SELECT * FROM read_parquet('{file}')), theirs AS (SELECT * FROM \"{name}\")"
            sql = f"WITH ours AS {both} SELECT count(*) FROM (SELECT * FROM ours EXCEPT ALL SELECT * FROM theirs)"
            if "avg" not in str(
                ledger.execute(f"SELECT sql FROM duckdb_views() WHERE view_name = '{name}'").fetchone()
            ):
                assert ledger.execute(sql).fetchone() == (0,), name
    outcomes = pq.read_table(folder / "candidate_outcomes.parquet")
    assert outcomes.num_rows == 22 * 8
    assert outcomes.filter(outcomes["outcome"].to_numpy(zero_copy_only=False) == "failed").num_rows == 7


def test_an_existing_folder_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with open_log(run) as log:
        with pytest.raises(SettingsError, match=r"--parquet: expected a new folder, but .*mine exists"):
            export_parquet(log, tmp_path / "mine", silent)
        with pytest.raises(SettingsError, match=r"--tensorboard: expected a new folder, but .*mine exists"):
            export_tensorboard(log, RUN, tmp_path / "mine", silent)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_failed_export_leaves_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.view_files.view_names", lambda log: ["accounting", "no_such_view"])
    with open_log(run) as log, pytest.raises(Exception, match="no_such_view"):
        export_parquet(log, tmp_path / "tables", silent)
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_the_error_says_how_to_get_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with open_log(run) as log, pytest.raises(SettingsError, match=r"pip install 'searchloop\[tensorboard\]'"):
        export_tensorboard(log, RUN, tmp_path / "curves", silent)


def test_report_exports_and_still_prints_its_json_alone(run: Path, tmp_path: Path) -> None:
    given = ["--home", str(run.parents[1]), "report", "--run", RUN, "--json"]
    done = CliRunner().invoke(cli, [*given, "--parquet", str(tmp_path / "t"), "--tensorboard", str(tmp_path / "c")])
    assert done.exit_code == 0, done.output
    assert msgspec.json.decode(done.stdout)["run"] == RUN
    assert "views to" in done.stderr and "curves to" in done.stderr
    assert (tmp_path / "t" / "accounting.parquet").exists()
