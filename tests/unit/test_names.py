"""What comes from outside becomes part of a path only if it is a plain name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.experiments.rankings import row_file, set_folder
from infra.recipes.files import plan_path, recipe_path
from learner.adapters import adapter_name
from learner.checkpoints import MANIFEST, MANIFEST_SHA256, CheckpointError, Manifest, load_current, read_manifest
from search_env.models.crossencoder import (
    CURRENT_FILE,
    CrossEncoderError,
    CrossEncoderSettings,
    current_version,
    load_cross_encoder,
)
from storage.archive import close_segments
from storage.errors import EvaluationError, StorageError
from storage.schema import migrate
from streams.errors import EventError, SettingsError
from streams.events import PolicyRef
from streams.names import is_name, is_topic_name, is_version_name, version_folder
from tests.unit.test_checkpoints import save

PATHS = [
    "",
    ".",
    "..",
    "/etc",
    "//etc",
    "../../etc",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "a ",
    "~",
    "~root",
    "%2e%2e",
    ".hidden",
    "-rf",
    "\u2025",
    "\uff0e\uff0e",
    "a" * 300,
]
POLICY = PolicyRef(lineage="2-ab12cd", step=7, sha256="")


@pytest.mark.parametrize("text", PATHS)
def test_a_path_is_no_name(text: str) -> None:
    assert not is_name(text)
    assert not is_version_name(text)
    assert not is_version_name(f"{text}-000007")


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Z", "Cc"]), max_size=40))
def test_a_name_stays_inside_its_folder(text: str) -> None:
    if is_name(text) or is_topic_name(text):
        folder = Path("/home/runs/one")
        assert (folder / text).parent == folder
        assert ".." not in (folder / text).parts


@given(st.from_regex(r"[1-9][0-9]{0,2}-[0-9a-f]{6}", fullmatch=True), st.integers(min_value=0, max_value=10**9))
def test_every_name_that_a_learner_gives_is_accepted(lineage: str, step: int) -> None:
    policy = PolicyRef(lineage=lineage, step=step, sha256="")
    path = f"checkpoints/{lineage}-{step:06d}"
    assert version_folder(path, policy) == path
    assert adapter_name(policy).endswith(f"{step:06d}")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/checkpoints/2-ab12cd-000007",
        "checkpoints/../../other/checkpoints/2-ab12cd-000007",
        "../other/checkpoints/2-ab12cd-000007",
        "checkpoints/2-ab12cd-000007/..",
        "checkpoints/2-ab12cd-000007/",
        "./checkpoints/2-ab12cd-000007",
        "checkpoints//2-ab12cd-000007",
        "checkpoints/2-ab12cd-000008",
        "checkpoints\\2-ab12cd-000007",
        "checkpoints/2-ab12cd-000007\n",
        "CHECKPOINTS/2-ab12cd-000007",
        "2-ab12cd-000007",
        "checkpoints",
        "",
        "\0",
    ],
)
def test_only_the_versions_own_checkpoint_is_an_announced_path(path: str) -> None:
    with pytest.raises(EventError, match="expected the path 'checkpoints/2-ab12cd-000007'"):
        version_folder(path, POLICY)


@pytest.mark.parametrize("lineage", ["../../x", "/x", "a/b", "", "..", "a\0", "1-ab12cd/../../x", "a" * 300])
def test_a_lineage_that_is_a_path_names_no_version(lineage: str) -> None:
    policy = PolicyRef(lineage=lineage, step=7, sha256="")
    with pytest.raises(EventError, match="expected a name like"):
        version_folder(f"checkpoints/{lineage}-000007", policy)
    with pytest.raises(CheckpointError, match="expected a name like"):
        adapter_name(policy)


@pytest.mark.parametrize("step", [-1, -(10**6)])
def test_a_step_below_zero_names_no_version(step: int) -> None:
    with pytest.raises(EventError):
        version_folder(f"checkpoints/a-{step:06d}", PolicyRef(lineage="a-", step=step, sha256=""))


@pytest.mark.parametrize(
    "manifest",
    [
        Manifest(policy=POLICY, parent=None, files={"../secret": "0" * 64}),
        Manifest(policy=POLICY, parent=None, files={"/etc/hostname": "0" * 64}),
        Manifest(policy=PolicyRef(lineage="../../x", step=1, sha256=""), parent=None),
    ],
)
def test_a_manifest_that_names_paths_is_damaged_and_the_checkpoint_before_is_used(
    tmp_path: Path, manifest: Manifest
) -> None:
    whole, strange = save(tmp_path, 1), save(tmp_path, 2)
    content = msgspec.json.encode(manifest)
    (strange / MANIFEST).write_bytes(content)
    (strange / MANIFEST_SHA256).write_text(hashlib.sha256(content).hexdigest())
    with pytest.raises(CheckpointError, match="expected plain names in its manifest"):
        read_manifest(strange, verify=False)
    assert load_current(tmp_path)[0] == whole


@pytest.mark.parametrize("current", ["..", ".", ".1-a-000001.9.part", "1-a-000001/..", "/"])
def test_a_current_that_is_no_name_of_a_version_is_not_followed(tmp_path: Path, current: str) -> None:
    root = tmp_path / "run" / "checkpoints"
    whole = save(root, 1)
    (tmp_path / "run" / MANIFEST).write_bytes((whole / MANIFEST).read_bytes())
    (root / "CURRENT").write_text(current)
    assert load_current(root)[0] == whole


@pytest.mark.parametrize("name", ["..", "../other", "/etc"])
def test_a_setting_or_pointer_that_is_a_path_names_no_cross_encoder(tmp_path: Path, name: str) -> None:
    (tmp_path / CURRENT_FILE).write_text(name)
    with pytest.raises(CrossEncoderError, match="expected a version's name"):
        current_version(tmp_path)
    with pytest.raises(CrossEncoderError, match=r"cross_encoder\.version: expected one of"):
        load_cross_encoder(tmp_path, CrossEncoderSettings(version=name))


@pytest.mark.parametrize("name", ["../x", "/etc/x", ".."])
def test_recipes_plans_rows_and_sets_are_called_by_names(tmp_path: Path, name: str) -> None:
    for found in (recipe_path, plan_path):
        with pytest.raises(SettingsError, match="expected one of"):
            found(name)
    with pytest.raises(EvaluationError, match="row: expected a name"):
        row_file(tmp_path, "dev", name)
    with pytest.raises(EvaluationError, match="set: expected a name"):
        set_folder(tmp_path, name)
    assert set_folder(tmp_path, "held out") == tmp_path / "held-out"


def test_a_ledger_that_names_a_path_as_a_topic_gives_no_segment(tmp_path: Path) -> None:
    with duckdb.connect(":memory:") as connection:
        migrate(connection)
        names = [name for (name, *_) in connection.execute("DESCRIBE records").fetchall()]
        values = {"topic": "../../outside", "partition": 0, "record_offset": 0, "record_time_ms": 0, "kind": "requests"}
        connection.execute(
            f"INSERT INTO records VALUES ({', '.join('?' for _ in names)})", [values.get(name) for name in names]
        )
        with pytest.raises(StorageError, match="expected records of Kafka topics"):
            close_segments(connection, tmp_path / "run" / "archive")
    assert list(tmp_path.iterdir()) == []
