"""Pseudonyms: stable while the secret lives, unlinkable without it, and nothing raw on the disk."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.app.app import App
from infra.app.home import Home
from infra.commands.listen import listen
from streams.errors import SettingsError
from streams.pseudonyms import KEY_FILE, TABLE_FILE, PseudonymError, Pseudonyms

ANNA, TOUR = "anna@example.org", "session-of-anna"


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_an_id_keeps_its_pseudonym_in_every_process_of_a_home_and_has_another_in_another_home(tmp_path: Path) -> None:
    with Pseudonyms(tmp_path / "a") as first, Pseudonyms(tmp_path / "b") as other:
        anna, tour = first.of(ANNA, TOUR)
        assert (len(anna), len(tour)) == (32, 32)
        assert first.of(ANNA) == (anna, "")
        assert first.of("", TOUR)[1] not in ("", tour), "a session without its client is a person of its own"
        assert len({anna, tour, first.of("bert")[0], first.of("bert", TOUR)[1], *other.of(ANNA, TOUR)}) == 6
        assert first.of("", "") == ("", "")
        code = (
            "import sys; from pathlib import Path; from streams.pseudonyms import Pseudonyms; "
            "print(*Pseudonyms(Path(sys.argv[1])).of(sys.argv[2], sys.argv[3]))"
        )
        said = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a"), ANNA, TOUR], capture_output=True, text=True, check=True
        ).stdout
    assert said.split() == [anna, tour]


def test_files_are_for_their_owner_alone_and_hold_no_id(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Pseudonyms(tmp_path / "people") as names:
            names.of(ANNA, TOUR)
            files = sorted((tmp_path / "people").iterdir())
            assert {KEY_FILE, TABLE_FILE} <= {path.name for path in files}
            for path in files:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert stat.S_IMODE((tmp_path / "people").stat().st_mode) == 0o700
            assert ANNA.encode() not in on_disk(tmp_path / "people")
    finally:
        os.umask(old)
    (tmp_path / "people" / KEY_FILE).chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        Pseudonyms(tmp_path / "people")


def test_a_forgotten_person_gets_a_new_pseudonym_and_no_file_holds_the_old_secret(tmp_path: Path) -> None:
    folder = tmp_path / "people"
    with Pseudonyms(folder) as serving, Pseudonyms(folder) as forgetting:
        before = serving.of(ANNA, TOUR)
        secret = serving._secret(f"client\0{ANNA}")
        bert = serving.of("bert")
        assert secret in on_disk(folder)
        assert forgetting.forget([f" {ANNA}\u200b ", "nobody"]) == 1
        assert secret not in on_disk(folder)
        assert forgetting.forget([ANNA]) == 0
        after = serving.of(ANNA, TOUR)
        assert set(after).isdisjoint(before)
        assert serving.of("bert") == bert, "others stay who they are"
        assert serving.of("", "lonely") != ("", "")
        assert forgetting.forget(["lonely"]) == 1


def test_a_long_id_is_forgotten_whichever_length_it_was_cut_at(tmp_path: Path) -> None:
    name = "x" * 600
    with Pseudonyms(tmp_path) as names:
        served, imported = names.of(name[:100]), names.of(name[:512])
        assert names.forget([name]) == 2
        assert {names.of(name[:100]), names.of(name[:512])}.isdisjoint({served, imported})


def test_a_reader_that_holds_the_journal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.pseudonyms.BUSY_SECONDS", 0.2)
    with Pseudonyms(tmp_path) as reading, Pseudonyms(tmp_path) as forgetting:
        reading.of(ANNA)
        reading._table.execute("BEGIN")
        reading._table.execute("SELECT * FROM people").fetchall()
        with pytest.raises(PseudonymError, match="Forget the same persons again"):
            forgetting.forget([ANNA])
        reading._table.execute("COMMIT")
        assert forgetting.forget([ANNA]) == 0
        reading.of(ANNA)


def test_a_damaged_key_or_table_says_what_to_do(tmp_path: Path) -> None:
    Pseudonyms(tmp_path / "a").close()
    (tmp_path / "a" / KEY_FILE).write_text("short\n")
    with pytest.raises(SettingsError, match="64 hex digits"):
        Pseudonyms(tmp_path / "a")
    Pseudonyms(tmp_path / "b").close()
    (tmp_path / "b" / TABLE_FILE).write_bytes(b"no database" * 1_000)
    with pytest.raises(PseudonymError, match="move it away"):
        Pseudonyms(tmp_path / "b")


def test_the_verb_forgets_without_services_and_prints_no_id(tmp_path: Path) -> None:
    app = App(Home(tmp_path))
    with pytest.raises(SettingsError, match="a home that knows clients"):
        CliRunner().invoke(listen, ["--forget", ANNA], obj=app, catch_exceptions=False)
    with Pseudonyms(app.home.people) as names:
        before = [names.of(name) for name in (ANNA, "bert", "carl")]
        said = CliRunner().invoke(
            listen, ["--forget", "-", "--json"], obj=app, input=f"{ANNA}\n\nbert\ndora\n", catch_exceptions=False
        )
        assert json.loads(said.output) == {"asked": 3, "forgotten": 2}
        assert [names.of(name) == old for name, old in zip((ANNA, "bert", "carl"), before, strict=True)] == [
            False,
            False,
            True,
        ]
    said = CliRunner().invoke(listen, ["--forget", ANNA], obj=app, catch_exceptions=False)
    assert "1 secrets deleted for 1 ids" in said.output
    assert ANNA not in said.output
