"""A checkpoint exists whole or not at all, and a damaged one is noticed and passed over."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from learner.checkpoints import (
    CheckpointError,
    Manifest,
    copy_checkpoint,
    load_current,
    new_lineage,
    prune_checkpoints,
    read_manifest,
    remove_unfinished,
    save_checkpoint,
)
from streams.events import PolicyRef


def save(root: Path, step: int, weights: bytes = b"weights", lineage: str = "1-a") -> Path:
    parent = PolicyRef(lineage=lineage, step=step - 1, sha256="x") if step else None
    manifest = Manifest(policy=PolicyRef(lineage=lineage, step=step, sha256="x"), parent=parent, positions={0: step})

    def write(folder: Path) -> Manifest:
        (folder / "model.safetensors").write_bytes(weights + str(step).encode())
        return manifest

    return save_checkpoint(root, manifest.policy, write)


def test_current_is_the_last_one_saved(tmp_path: Path) -> None:
    save(tmp_path, 1)
    second = save(tmp_path, 2)
    folder, manifest = load_current(tmp_path)
    assert folder == second
    assert manifest.positions == {0: 2}
    assert set(manifest.files) == {"model.safetensors"}


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_a_flipped_byte_is_noticed_and_the_one_before_is_used(tmp_path: Path, file: str) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    content = bytearray((second / file).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (second / file).write_bytes(content)
    assert load_current(tmp_path)[0] == first


@pytest.mark.parametrize("current", ["", "nothing-here-000009", "../../etc", "\udcff"])
def test_a_damaged_current_falls_back_to_the_newest_whole_checkpoint(tmp_path: Path, current: str) -> None:
    newest = save(tmp_path, 3)
    (tmp_path / "CURRENT").write_bytes(os.fsencode(current))
    assert load_current(tmp_path)[0] == newest


def test_a_checkpoint_that_is_deleted_while_the_folder_is_read_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = save(tmp_path, 3)
    listed = [*tmp_path.glob("*-*-*"), tmp_path / "1-a-000001"]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed))
    assert load_current(tmp_path)[0] == newest


def test_without_a_whole_checkpoint_the_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="searchloop train"):
        load_current(tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before_as_current(tmp_path: Path) -> None:
    first = save(tmp_path, 1)

    def write(folder: Path) -> Manifest:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="disk is full"):
        save_checkpoint(tmp_path, PolicyRef(lineage="1-a", step=2, sha256=""), write)
    assert load_current(tmp_path)[0] == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_was_killed_while_writing_is_never_loaded(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    aside = tmp_path / ".1-a-000002.123.part"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"half")
    assert load_current(tmp_path)[0] == first
    remove_unfinished(tmp_path)
    assert not aside.exists()
    assert load_current(tmp_path)[0] == first


def test_pruning_keeps_the_newest_the_warmed_up_and_every_nth(tmp_path: Path) -> None:
    for step in range(12):
        save(tmp_path, step)
    retired = prune_checkpoints(tmp_path, keep=2, keep_every=5)
    kept = sorted(read_manifest(path, verify=True).policy.step for path in tmp_path.glob("1-*"))
    assert kept == [0, 5, 10, 11]
    assert sorted(manifest.policy.step for manifest in retired) == [1, 2, 3, 4, 6, 7, 8, 9]


def test_a_kill_in_the_middle_of_pruning_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(4):
        save(tmp_path, step)

    def killed(folder: Path, **_: bool) -> None:
        next(Path(folder).iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoints(tmp_path, keep=2, keep_every=50)
    for folder in tmp_path.glob("1-*"):
        read_manifest(folder, verify=True)
    remove_unfinished(tmp_path)
    assert not list(tmp_path.glob(".*"))
    prune_checkpoints(tmp_path, keep=2, keep_every=50)
    assert sorted(read_manifest(path, verify=True).policy.step for path in tmp_path.glob("1-*")) == [0, 2, 3]


def test_what_a_run_began_with_is_copied_without_its_stream_and_never_pruned(tmp_path: Path) -> None:
    source = save(tmp_path / "recorded", 7)
    begin = copy_checkpoint(source, read_manifest(source, verify=True), tmp_path / "replayed")
    folder, manifest = load_current(tmp_path / "replayed")
    assert folder == begin and (folder / "model.safetensors").read_bytes() == b"weights7"
    assert (manifest.policy.step, manifest.positions, manifest.parent, manifest.update) == (7, {}, None, None)
    for step in (8, 9, 10):
        save(tmp_path / "replayed", step)
    assert [m.policy.step for m in prune_checkpoints(tmp_path / "replayed", keep=1, keep_every=1000)] == [8, 9]


def test_every_resume_gets_a_lineage_of_its_own() -> None:
    first = new_lineage(None)
    assert first.startswith("1-")
    assert new_lineage(first).startswith("2-")
    assert new_lineage(first) != new_lineage(first)


def test_pruning_never_takes_what_is_current_after_a_run_was_set_back(tmp_path: Path) -> None:
    for step in range(9):
        save(tmp_path, step)
    back = tmp_path / "1-a-000002"
    (tmp_path / "CURRENT").write_text(f"{back.name}\n")
    for step in (3, 4, 5):
        manifest = Manifest(
            policy=PolicyRef(lineage="2-b", step=step, sha256="x"),
            parent=PolicyRef(lineage="1-a" if step == 3 else "2-b", step=step - 1, sha256="x"),
        )
        newest = save_checkpoint(tmp_path, manifest.policy, lambda folder, manifest=manifest: manifest)  # type: ignore[misc]
        prune_checkpoints(tmp_path, keep=3, keep_every=100)
        assert load_current(tmp_path)[0] == newest
    assert sorted(path.name for path in tmp_path.glob("*-*-*")) == [
        "1-a-000000",
        "2-b-000003",
        "2-b-000004",
        "2-b-000005",
    ]


def test_pruning_deletes_no_copy_under_another_name_and_nothing_behind_a_link(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in range(6):
        save(root, step)
    shutil.copytree(root / "1-a-000002", root / "before-my-change-000002")
    elsewhere = tmp_path / "1-a-000003"
    (root / "1-a-000003").rename(elsewhere)
    (root / "1-a-000003").symlink_to(elsewhere)
    retired = prune_checkpoints(root, keep=2, keep_every=100)
    assert [each.policy.step for each in retired] == [1, 2]
    assert (root / "before-my-change-000002" / "model.safetensors").exists()
    assert (elsewhere / "model.safetensors").exists() and (root / "1-a-000003").is_symlink()
