"""Settings under their old names: files, variables and recorded runs from before the change go on working."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from infra.app.home import SETTINGS_FILE
from infra.app.layers import combine
from infra.app.renamed import RENAMED, RENAMED_VALUES, with_new_names
from infra.app.run_settings import RunSettings, read_run_settings, write_run_settings
from infra.app.settings import Settings
from streams.errors import SettingsError

RECORDED = Path(__file__).parents[1] / "golden" / "settings" / "run-before-the-recipes-had-names.json"


def test_a_recorded_run_of_old_names_is_read_with_every_value(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_bytes(RECORDED.read_bytes())
    kept = read_run_settings(tmp_path)
    assert kept.settings.train.recipe == "relsum"
    assert kept.settings.leser.expansions.terms_max == 3
    assert kept.settings.relsum.filter_delta == 0.07
    assert kept.settings.relsum.summary.tokens_max == 20


def test_a_layer_of_old_names_counts_and_each_name_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    layer = {"train": {"task": "summary"}, "summary_environment": {"filter_delta": "0.1"}}
    with caplog.at_level(logging.WARNING):
        settings = combine(Settings, [("old.toml", layer)])
    assert (settings.train.recipe, settings.relsum.filter_delta) == ("relsum", 0.1)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "summary_environment has the new name relsum: please rename it in old.toml",
        "train.task has the new name train.recipe: please rename it in old.toml",
    ]
    assert layer["train"] == {"task": "summary"}, "the caller's layer was changed"


def test_old_and_new_name_of_a_table_may_share_a_layer_but_not_a_setting() -> None:
    layer = {"environment": {"hits_logged": 3}, "leser": {"raw_queries_kept": 7}}
    assert with_new_names(layer, "") == {"leser": {"hits_logged": 3, "raw_queries_kept": 7}}
    with pytest.raises(SettingsError, match="environment: expected its new name leser alone, got both, in a file"):
        with_new_names({"environment": {"hits_logged": 3}, "leser": {"hits_logged": 4}}, "a file")


def test_a_run_is_written_with_the_new_names_alone(tmp_path: Path) -> None:
    run = RunSettings(run="r", recipe="leser", index="i", index_version="i-1", seed=0, updates=1, settings=Settings())
    write_run_settings(tmp_path, run)
    written = msgspec.json.decode((tmp_path / SETTINGS_FILE).read_bytes())["settings"]
    assert with_new_names(written, "") == written
    assert not [old for old in RENAMED if "." not in old and old in written]


def test_every_new_name_is_a_setting() -> None:
    tables = msgspec.to_builtins(Settings(), enc_hook=lambda _: "")
    for new in RENAMED.values():
        table = tables
        for part in new.split("."):
            assert part in table, new
            table = table[part]
    assert set(RENAMED_VALUES) <= set(RENAMED.values())
