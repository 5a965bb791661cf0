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
        yield plain_lines(lambda line: console.print(line, highlight=False, soft_wrap=True))
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


def plain_lines(write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Report:
    """Return a function that writes each thing once as a line, and a sign of life while one takes long.

    Something new is written when it begins. From then on its numbers are written every `LINE_SECONDS` at most, and its
    end only if the line before it is that old: a log file holds nothing twice.
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
