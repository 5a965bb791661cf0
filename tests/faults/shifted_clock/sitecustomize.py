"""Shifts the wall clock of one worker, when it says so in a file; Python imports this before anything else.

The file that SHIFTED_CLOCK names holds a role and seconds ("learner -3600"). It is read at each look at the clock, so a
clock jumps while its worker runs. Monotonic time is left alone, as an operating system leaves it.
"""

import os
import sys
import time
from pathlib import Path

_true_ns = time.time_ns
_file = os.environ.get("SHIFTED_CLOCK", "")


def _shifted_ns() -> int:
    try:
        role, seconds = Path(_file).read_text().split()
    except (OSError, ValueError):  # There is none, or it is being written.
        return _true_ns()
    return _true_ns() + (int(seconds) * 1_000_000_000 if role in sys.argv else 0)


if _file:
    time.time_ns = _shifted_ns
    time.time = lambda: _shifted_ns() / 1e9
