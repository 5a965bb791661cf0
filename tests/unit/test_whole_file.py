"""A file is there whole or not at all, whoever else writes it."""

from pathlib import Path

import pytest

from streams.whole_file import whole_file


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
