"""A failpoint kills once, at its n-th time, and does nothing at all unless it was armed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streams.errors import SettingsError
from streams.failpoints import NAMES, WRITING_NAMES, FailpointSettings, arm, failpoint

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from streams.failpoints import FailpointSettings, arm, failpoint
arm(FailpointSettings(kill="learner.before-flip:3", folder=sys.argv[1]))
for number in range(5):
    print(number, flush=True)
    failpoint("learner.after-flip")
    failpoint("learner.before-flip")
"""


def test_the_third_time_kills_and_a_restart_lives(tmp_path: Path) -> None:
    for expected, status in (("0 1 2", -signal.SIGKILL), ("0 1 2 3 4", 0)):
        ended = subprocess.run(
            [sys.executable, "-c", CODE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (ended.stdout.split(), ended.returncode) == (expected.split(), status)


def test_unarmed_nothing_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    died: list[tuple[int, int]] = []
    monkeypatch.setattr("streams.failpoints.os.kill", lambda pid, number: died.append((pid, number)))
    arm(FailpointSettings())
    for name in NAMES + WRITING_NAMES:
        failpoint(name)
    assert died == []
    arm(FailpointSettings(kill=NAMES[0], folder=str(tmp_path)))
    failpoint(NAMES[1])
    assert died == []
    failpoint(NAMES[0])
    assert [number for _, number in died] == [signal.SIGKILL]
    arm(FailpointSettings())


@pytest.mark.parametrize("kill", ["nowhere", "learner.before-flip:x", "learner.before-flip,,"])
def test_an_unknown_place_is_an_error(kill: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"failpoints\.kill: expected some of generator\.after-produce"):
        arm(FailpointSettings(kill=kill, folder=str(tmp_path)))
    with pytest.raises(SettingsError, match=r"failpoints\.folder: expected a folder"):
        arm(FailpointSettings(kill="learner.before-flip"))


def test_every_name_stands_somewhere_in_the_code() -> None:
    sources = "".join(
        path.read_text() for room in ("streams", "learner", "storage") for path in (ROOT / room).rglob("*.py")
    )
    placed = set(re.findall(r'failpoint\(f?"([^"]+)"\)', sources))
    stages = ("generator", "environment", "learner", "sink")
    expanded = {
        name.replace(part, stage) for name in placed for part in ("{stage}", "{self._stage}") for stage in stages
    }
    assert set(NAMES + WRITING_NAMES) <= expanded
