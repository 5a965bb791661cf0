"""The mutation test: each tampering in the table is done to a finished run, and its rule must find it.

Each is looked for in one mode, the modes in turn; SEARCHLOOP_TAMPERING=full looks in every mode, also in those that
cannot see it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from infra.app.home import RunFolder
from infra.runs.verification import prove
from storage.verification.account import Account
from storage.verification.rules import RULES
from tests.finished_run import FakeTopics, write_run
from tests.stored_events import RUN
from tests.tampered_run import Tampered
from tests.tampering import TAMPERINGS
from tests.tampering.kinds import BOTH, Tampering

FULL = os.environ.get("SEARCHLOOP_TAMPERING", "") == "full"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FakeTopics]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, write_run(folder)


def proved(run: Tampered, mode: str, *, rebuild: bool = False, trusted: str | None = None) -> Account:
    topics = run.topics.seen() if mode == "kafka" else None
    return prove(RunFolder(run.folder), run=RUN, topics=topics, working=False, rebuild=rebuild, trusted=trusted)


def lines(account: Account) -> list[str]:
    return [f"{finding.rule}: {finding.where}: {finding.what}" for finding in account.findings]


@pytest.fixture
def run(finished: tuple[Path, FakeTopics], tmp_path: Path) -> Tampered:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    return Tampered(folder, finished[1])


def looks() -> list[tuple[Tampering, str]]:
    if FULL:
        return [(tampering, mode) for tampering in TAMPERINGS for mode in BOTH]
    return [(tampering, tampering.modes[number % len(tampering.modes)]) for number, tampering in enumerate(TAMPERINGS)]


@pytest.mark.parametrize(("tampering", "mode"), looks(), ids=lambda value: getattr(value, "name", value))
def test_a_tampering_is_found_by_its_rule(run: Tampered, tampering: Tampering, mode: str) -> None:
    tampering.do(run)
    account = proved(run, mode)
    if mode in tampering.modes:
        assert tampering.rule_in(mode) in {finding.rule for finding in account.findings}, lines(account)
        assert account.verdict != "sound"
    else:
        assert account.sound, lines(account)


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("rebuild", [False, True])
def test_the_run_itself_is_sound_in_every_mode(run: Tampered, mode: str, rebuild: bool) -> None:
    account = proved(run, mode, rebuild=rebuild)
    assert lines(account) == []
    assert account.verdict == "sound" and account.mode == mode + (", rebuild" if rebuild else "")
    assert account.unchecked == {"rejected": 1, "disputed": 1}


def test_there_are_forty_tamperings_and_every_rule_finds_one() -> None:
    assert len(TAMPERINGS) >= 40
    assert len({tampering.name for tampering in TAMPERINGS}) == len(TAMPERINGS)
    found = {tampering.rule for tampering in TAMPERINGS}
    # These three have tests of their own, on logs that a finished run cannot hold.
    assert set(RULES) - found == {
        "nothing lost",
        "requests end",
        "first in the log wins",
        "trusted value",
        # Of live traffic: tests/services/test_listening.py.
        "one outcome an impression",
        "an action counts once",
        # tests/services/test_clicked_proof.py.
        "rewards follow from clicks",
    }
