"""A file or folder is there whole or not at all, whoever else writes it and whenever the writer is killed."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.whole_file import (
    folder_aside,
    put_folder,
    remove_unfinished,
    synced_hashes,
    whole_file,
    whole_folder,
)

ROOT = Path(__file__).parents[2]
WRITE = """
import sys
from pathlib import Path
from streams.failpoints import FailpointSettings, arm
from streams.whole_file import whole_file, whole_folder
arm(FailpointSettings(kill=sys.argv[2], folder=sys.argv[3]))
place = Path(sys.argv[1])
if place.suffix:
    with whole_file(place) as aside:
        aside.write_text("new")
else:
    with whole_folder(place, replace=True) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "file").write_text("new")
"""
HOLD = """
import sys
from pathlib import Path
from streams.whole_file import whole_file, whole_folder
with (whole_file if sys.argv[2] == "file" else whole_folder)(Path(sys.argv[1])) as aside:
    print(aside.name, flush=True)
    sys.stdin.read()
"""


def text(place: Path) -> str:
    """Return what a file, or the file in a folder, holds."""
    return (place if place.suffix else place / "inner" / "file").read_text()


def killed(place: Path, at: str, folder: Path) -> int:
    command = [sys.executable, "-c", WRITE, str(place), at, str(folder)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def test_a_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    place = tmp_path / "new" / "vectors.npy"
    with whole_file(place) as aside:
        aside.write_text("half")
        assert not place.exists()
        aside.write_text("whole")
    assert place.read_text() == "whole"
    assert list(place.parent.iterdir()) == [place]


def test_a_block_that_raises_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "vectors.npy"
    place.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(place) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_two_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    place = tmp_path / "vectors.npy"
    with whole_file(place) as first, whole_file(place) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert place.read_text() == "first"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("place", ["state.json", "version"])
@pytest.mark.parametrize("moment", ["before-rename", "after-rename"])
def test_a_writer_that_is_killed_leaves_the_old_content_or_the_new_and_the_next_one_cleans_up(
    tmp_path: Path, place: str, moment: str
) -> None:
    target, kind = tmp_path / "there" / place, "file" if "." in place else "folder"
    assert killed(target, "", tmp_path / "marks") == 0
    (target if target.suffix else target / "inner" / "file").write_text("old")
    assert killed(target, f"{kind}.{moment}", tmp_path / "marks") == -signal.SIGKILL
    assert text(target) == ("old" if moment == "before-rename" else "new")
    assert killed(target, "", tmp_path / "marks") == 0
    assert text(target) == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_being_written_now_is_never_taken_for_abandoned(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "state"
    command = [sys.executable, "-c", HOLD, str(place), kind]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        aside = tmp_path / writer.stdout.readline().strip()
        assert remove_unfinished(tmp_path) == [] and aside.exists()
        with whole_file(tmp_path / "state") if kind == "file" else whole_folder(tmp_path / "state"):
            assert aside.exists()
        writer.kill()
    assert remove_unfinished(tmp_path) == [aside]
    assert list(tmp_path.iterdir()) == [place]


def test_a_users_own_file_of_a_like_name_stays(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in ("notes.writing", "page.html.writing", "other.html.0123abcd.writing")]
    for path in mine:
        path.write_text("mine")
    with whole_file(tmp_path / "page.html") as aside:
        aside.write_text("page")
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / "page.html"])


def test_content_is_synced_before_the_rename_and_its_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def noted(what: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            named = Path(f"/proc/self/fd/{arguments[0]}").readlink() if what == "sync" else arguments[0]
            steps.append(f"{what} {Path(str(named)).name.split('.')[0] or 'aside'}")
            return original(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync))
    monkeypatch.setattr(Path, "replace", noted("rename", Path.replace))
    monkeypatch.setattr(Path, "rename", noted("rename", Path.rename))
    with whole_file(tmp_path / "state.json") as aside:
        aside.write_text("new")
    assert steps == ["sync state", "rename state", f"sync {tmp_path.name}"]
    steps.clear()
    with whole_folder(tmp_path / "version") as folder:
        (folder / "weights.bin").write_text("new")
    assert steps == ["sync weights", "sync aside", "rename aside", f"sync {tmp_path.name}"]


def test_hashes_come_when_every_file_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {f"part-{number}": os.urandom(number * 10_000) for number in range(12)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)

    monkeypatch.setattr(os, "fsync", noted)
    assert synced_hashes(tmp_path) == {name: hashlib.sha256(each).hexdigest() for name, each in contents.items()}
    assert sorted(synced) == sorted(contents)


def test_a_disk_that_fails_to_sync_one_file_fails_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("weights", "optimizer"):
        (tmp_path / name).write_text(name)

    def failing(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name == "optimizer":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        synced_hashes(tmp_path)
    with pytest.raises(OSError, match="Input/output error"), whole_folder(tmp_path / "version") as aside:
        (aside / "optimizer").touch()
    assert not (tmp_path / "version").exists()


def test_a_folder_that_is_there_is_replaced_only_if_asked(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with whole_folder(place) as aside:
        (aside / "old").touch()
    with pytest.raises(FileExistsError), whole_folder(place) as aside:
        (aside / "new").touch()
    with pytest.raises(FileExistsError), folder_aside(tmp_path, "run") as aside:
        (aside / "new").touch()
        put_folder(aside, place)
    assert [path.name for path in place.iterdir()] == ["old"]
    with whole_folder(place, replace=True) as aside:
        (aside / "new").touch()
    assert [path.name for path in place.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_is_never_out_of_its_place_while_it_is_exchanged(tmp_path: Path) -> None:
    place = tmp_path / "version"
    with whole_folder(place) as aside:
        (aside / "file").write_text("0")
    code = "import sys; from pathlib import Path\nplace = Path(sys.argv[1]) / 'file'\nprint(flush=True)\n"
    code += "while (found := place.read_text()) != '60': assert found.isdigit()"
    reader = subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    reader.stdout.readline()
    for number in range(1, 61):
        with whole_folder(place, replace=True) as aside:
            (aside / "file").write_text(str(number))
    assert reader.wait(timeout=60) == 0


def test_without_an_exchange_in_one_step_a_folder_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.whole_file._renameat2", lambda: None)
    for content in ("old", "new"):
        with whole_folder(tmp_path / "version", replace=True) as aside:
            (aside / "file").write_text(content)
    assert (tmp_path / "version" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["version"]


def test_a_link_to_a_folder_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_text("precious")
    (tmp_path / "place").symlink_to(theirs)
    with whole_folder(tmp_path / "place", replace=True) as aside:
        (aside / "file").write_text("new")
    assert (theirs / "file").read_text() == "precious"
    assert not (tmp_path / "place").is_symlink() and (tmp_path / "place" / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place", "theirs"]
