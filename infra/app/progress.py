"""Progress on the terminal for whatever takes over two seconds; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Report = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, of how much); after a colon `what` may say how it goes."""

LINE_SECONDS = 10.0


@contextmanager
def progress() -> Iterator[Report]:
    """Give a function that shows progress on standard error; standard output stays for results."""
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield _plain_lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, refresh_per_second=4) as bars:

        def report(what: str, done: int, total: int) -> None:
            name = what.split(":")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(what, total=total)
            bars.update(tasks[name], description=what, completed=done, total=total or None)

        yield report


def _plain_lines(console: Console) -> Report:
    last: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        # A log file wants the beginning, the end, and a sign of life in between.
        name = what.split(":")[0]
        if name not in last or 0 < total <= done or time.monotonic() - last[name] > LINE_SECONDS:
            last[name] = time.monotonic()
            console.print(f"{what} {done}/{total}" if total else what, highlight=False, soft_wrap=True)

    return report
