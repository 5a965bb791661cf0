"""Failpoints: named places where a worker can be told to die, to prove that it may die anywhere.

If the failpoints are off, a place costs one lookup in an empty dictionary. If one is on, the process kills itself with
SIGKILL. Nothing is flushed, closed or reported, as if the machine's owner had killed it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import msgspec

from streams.descriptions import describe
from streams.errors import SettingsError

# The places of the loop. Workers: after the broker has acknowledged a stage's records, and before and after the stage
# commits its offsets. Checkpoints: between the rename and the flip of CURRENT, and between that and the announcement.
# The sink: around COMMIT, and between a segment's rename and its entry into the ledger's list.
NAMES = (
    "generator.after-produce",
    "generator.before-commit",
    "generator.after-commit",
    "environment.after-produce",
    "environment.before-commit",
    "environment.after-commit",
    "learner.before-flip",
    "learner.after-flip",
    "learner.after-produce",
    "sink.before-commit",
    "sink.after-commit",
    "sink.before-listing",
)

# The places of writers. Temporary files and folders: when the content is synced, and when it is in place. A rebuild of
# the ledger: when the new ledger is whole under a temporary name, when it is chosen, when the old write-ahead log is
# gone, and when the new ledger is in place. The loop does not reach the places of a rebuild.
WRITING_NAMES = (
    "file.before-rename",
    "file.after-rename",
    "folder.before-rename",
    "folder.after-rename",
    "rebuild.before-choice",
    "rebuild.after-choice",
    "rebuild.before-replace",
    "rebuild.after-replace",
)


class FailpointSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The places where workers kill themselves, for fault tests; none by default."""

    kill: Annotated[
        str,
        describe(
            "Places at which a worker kills itself, as in `learner.before-flip:2,sink.after-commit`: at the "
            "second time, or without a number at the first. Empty: none."
        ),
    ] = ""
    folder: Annotated[
        str, describe("Folder that records the places that have killed. Each kills once, even after a restart.")
    ] = ""


_armed: dict[str, int] = {}
_folder = Path()


def arm(settings: FailpointSettings) -> None:
    """Switch on the places that the settings name, except those that have already killed.

    Raises SettingsError for an unknown place, or if no folder to remember them in is given.
    """
    global _folder
    _armed.clear()
    if not settings.kill:
        return
    if not settings.folder:
        raise SettingsError("failpoints.folder: expected a folder to record the places that have killed, got none")
    _folder = Path(settings.folder)
    _folder.mkdir(parents=True, exist_ok=True)
    for text in settings.kill.split(","):
        name, _, times = text.strip().partition(":")
        if name not in NAMES + WRITING_NAMES or not (times or "1").isdecimal():
            raise SettingsError(
                f"failpoints.kill: expected some of {', '.join(NAMES + WRITING_NAMES)}, each with a count, got {text!r}"
            )
        if not (_folder / name).exists():
            _armed[name] = int(times or "1")


def failpoint(name: str) -> None:
    """Die here if this place is armed and has been reached often enough."""
    if _armed and name in _armed:
        _armed[name] -= 1
        if _armed[name] <= 0:
            (_folder / name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
