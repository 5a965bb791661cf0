"""Progress on the terminal for all work that takes over two seconds; plain lines if there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Report = Callable[[str, int, int], None]
"""A function that gets (what, done, total); after a colon, `what` may give the current state of the work."""

LINE_SECONDS = 10.0


@contextmanager
def progress() -> Iterator[Report]:
    """Give a function that shows progress on standard error; standard output stays for results."""
    console = Console(stderr=True, markup=False)  # Names from a log or a catalogue are no markup.
    if not sys.stderr.isatty():
        yield plain_lines(lambda line: console.print(line, highlight=False, soft_wrap=True))
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, refresh_per_second=4) as bars:

        def report(what: str, done: int, total: int) -> None:
            name = what.split(":")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(what, total=total)
            bars.update(tasks[name], description=what, completed=done, total=total or None)

        yield report


def plain_lines(write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Report:
    """Return a function that writes one line when a task begins, and further lines while it takes long.

    The numbers of a task are written at most every `LINE_SECONDS`. The end of a task is written only if its last line
    is that old, so a log file has no repeated lines.
    """
    last: dict[str, tuple[float, str]] = {}

    def report(what: str, done: int, total: int) -> None:
        name = what.split(":")[0]
        line = f"{what} {done}/{total}" if total else what
        if name not in last:
            write(what if done == 0 else line)
        elif clock() - last[name][0] < LINE_SECONDS or line == last[name][1]:
            return
        else:
            write(line)
        last[name] = (clock(), line)

    return report
