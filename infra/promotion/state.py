"""The state of a ramp on disk: one file in the live run's folder, written by `promote`, read by servers."""

from __future__ import annotations

from pathlib import Path

import msgspec

from search_env.serving.ramp import Ramp
from streams.errors import SettingsError

RAMP_FILE = "ramp.json"


def read_ramp(folder: Path) -> Ramp | None:
    """Return the state of a live run's ramp, or None if no version was ever promoted.

    Raises SettingsError if the file holds no ramp.
    """
    path = folder / RAMP_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ramp)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SettingsError(
            f"{path}: expected the state of a ramp, got: {error}. Move the file away; people then get what they got "
            "before the first promotion"
        ) from error
