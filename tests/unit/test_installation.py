"""A home has one id, made once, and never another."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from infra.app.installation import INSTALLATION_FILE, installation_id
from streams.errors import SettingsError


def test_the_id_is_made_once_and_survives(tmp_path: Path) -> None:
    first = installation_id(tmp_path / "new" / "home")
    assert len(first) == 32
    assert installation_id(tmp_path / "new" / "home") == first
    assert [path.name for path in (tmp_path / "new" / "home").iterdir()] == [INSTALLATION_FILE]
    (tmp_path / "new" / "home").rename(tmp_path / "moved")
    assert installation_id(tmp_path / "moved") == first
    assert installation_id(tmp_path / "other") != first


def test_processes_that_ask_at_once_get_the_same_id(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        for number in range(20):
            assert len(set(pool.map(installation_id, [tmp_path / str(number)] * 8, chunksize=1))) == 1


def test_a_file_system_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    first = installation_id(tmp_path)
    assert installation_id(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == [INSTALLATION_FILE]


@pytest.mark.parametrize("content", [b"", b"\n", b"shop", b"\xff" * 32, b"0" * 31, b"G" * 32])
def test_a_damaged_id_is_an_error_and_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INSTALLATION_FILE).write_bytes(content)
    with pytest.raises(SettingsError, match="expected an id of 32 hex digits"):
        installation_id(tmp_path)
    assert (tmp_path / INSTALLATION_FILE).read_bytes() == content
