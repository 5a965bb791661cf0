"""Named places where a worker can be told to die, to prove that it may die anywhere.

Off, a place costs one look at an empty dictionary. On, the process kills itself with SIGKILL, so nothing is flushed,
closed or said, as when the machine's owner does it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import msgspec

from streams.errors import SettingsError

# Where they stand: after the broker has acknowledged what a stage sent, before and after it commits its offsets; in a
# checkpoint between the rename and the flip of CURRENT, and between that and the announcement; in the sink around
# COMMIT, and between a segment's rename and its entry into the ledger's list.
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

# In whatever writes a file or a folder aside: when it is synced, and when it is in place. In a rebuild of the ledger:
# when the new one is whole under a name of its own, when it has been chosen, when the write-ahead log of the old one is
# gone, and when the new one is in place. The loop does not reach the last ones.
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
    """Where workers kill themselves, for fault tests; nowhere by default."""

    kill: Annotated[
        str,
        msgspec.Meta(
            description="places, as in `learner.before-flip:2,sink.after-commit`: at the n-th time, or the first"
        ),
    ] = ""
    folder: Annotated[
        str, msgspec.Meta(description="remembers which places have killed: each does so once, also after a restart")
    ] = ""


_armed: dict[str, int] = {}
_folder = Path()


def arm(settings: FailpointSettings) -> None:
    """Switch the places on that the settings name, but for those that have killed already.

    Raises SettingsError for an unknown place, or without a folder to remember them in.
    """
    global _folder
    _armed.clear()
    if not settings.kill:
        return
    if not settings.folder:
        raise SettingsError("failpoints.folder: expected a folder in which to remember what has killed, got none")
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
    """Die here, if this place is armed and has been reached often enough."""
    if _armed and name in _armed:
        _armed[name] -= 1
        if _armed[name] <= 0:
            (_folder / name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
