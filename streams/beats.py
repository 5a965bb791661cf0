"""The sign of life of a worker for its supervisor: a file that each poll touches, and a hanging worker no longer does.

A worker has no port. Kubernetes and Compose therefore look at the file's age. Off, a poll costs one comparison.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec

from streams.descriptions import describe
from streams.errors import SettingsError

TOUCH_SECONDS = 1.0


class BeatSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file by which a worker shows that it lives; none by default."""

    file: Annotated[
        str,
        describe(
            "Path of a file that a worker touches at its polls, at most once a second. A probe may look at its age: "
            "more than kafka.poll_interval_seconds_max means that the worker hangs. Empty: none."
        ),
    ] = ""


class _Beat:
    """The file of this process, and when it was touched last."""

    file: Path | None = None
    touched: float = 0.0


def show_life_in(settings: BeatSettings) -> None:
    """Touch this file at each poll of the process from now on.

    Raises SettingsError if the folder of the file does not exist.
    """
    file = Path(settings.file) if settings.file else None
    if file is not None and not file.parent.is_dir():
        raise SettingsError(f"beat.file: expected a file in a folder that exists, got {settings.file}. Make the folder")
    _Beat.file, _Beat.touched = file, 0.0


def beat() -> None:
    """Show that the process lives, at most once in `TOUCH_SECONDS`.

    Raises OSError if the file cannot be written: a probe would end the worker later, and would not say why.
    """
    if _Beat.file is None:
        return
    now = time.monotonic()
    if now - _Beat.touched >= TOUCH_SECONDS or not _Beat.touched:
        _Beat.file.touch()
        _Beat.touched = now
