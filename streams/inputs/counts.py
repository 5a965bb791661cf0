"""The rows that a reader left out or changed, by reason, with the line of the first, reported in one line."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

log = logging.getLogger(__name__)

Tell = Callable[[str], None]


def tell_log(text: str) -> None:
    """Report through the log, for a reader without another way to report."""
    log.warning("%s", text)


class Counted:
    """Rows by reason. `said` keeps the line number and the text of the first row of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.said: dict[str, str] = {}

    def add(self, reason: str, line: int, said: str = "") -> None:
        """Count a row under a reason."""
        self.counts[reason] += 1
        if reason not in self.said:
            self.said[reason] = f"line {line}" + (f": {said}" if said else "")

    @property
    def total(self) -> int:
        """Return the number of counted rows."""
        return self.counts.total()

    def told(self) -> str:
        """Return every reason with its count and its first line, "" if no row was counted."""
        return "; ".join(f"{count:,} {reason} (first, {self.said[reason]})" for reason, count in self.counts.items())
