"""The sign of life of a worker: a file that each poll touches, at most once a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import streams.beats
from streams.beats import TOUCH_SECONDS, BeatSettings, beat, show_life_in
from streams.errors import SettingsError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(streams.beats.time, "monotonic", lambda: now[0])
    yield now
    show_life_in(BeatSettings())


def test_no_file_is_touched_by_default(clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    show_life_in(BeatSettings())
    beat()
    assert list(tmp_path.iterdir()) == []


def test_the_file_comes_with_the_first_poll_and_is_touched_at_most_once_a_second(
    clock: list[float], tmp_path: Path
) -> None:
    file = tmp_path / "alive"
    show_life_in(BeatSettings(file=str(file)))
    assert not file.exists(), "a worker that still loads its models is not ready"
    beat()
    assert file.exists()
    file.unlink()
    clock[0] += TOUCH_SECONDS / 2
    beat()
    assert not file.exists()
    clock[0] += TOUCH_SECONDS / 2
    beat()
    assert file.exists()


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"beat\.file: expected a file in a folder that exists"):
        show_life_in(BeatSettings(file=str(tmp_path / "no" / "alive")))
