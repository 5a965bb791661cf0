"""Times as people type them: a moment ("2026-01-31T08:00") or an age ("90m", "2h", "3d")."""

from __future__ import annotations

import re
from datetime import datetime

from streams.errors import SettingsError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def moment_ms(text: str, *, now_ms: int, option: str) -> int:
    """Return the moment in milliseconds since the epoch; without a zone, the machine's zone applies.

    Raises SettingsError naming the option.
    """
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return now_ms - round(float(match[1]) * SECONDS[match[2]] * 1000)
    try:
        return round(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise SettingsError(
            f"{option}: expected a moment such as 2026-01-31T08:00, or an age such as 90m, 2h or 3d, got {text!r}"
        ) from error
