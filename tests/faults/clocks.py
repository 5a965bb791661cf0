"""The wall clock of each worker an hour back and a day ahead, jumping while it works: no duration follows it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from infra.app.app import App
from storage.log import open_log
from streams.events import Update
from tests.faults.progress import ROLES, watched
from tests.faults.results import Row
from tests.faults.world import SETTINGS, World, end_in_order, open_run, open_world, proved, stream_during

ROOT = Path(__file__).parents[2]
SHIFTS = {-3600: "−1 h", 86_400: "+1 d"}
UPDATES_PER_SHIFT = 3
RUN = "clocks"


def shift_clocks(world: World) -> list[Row]:
    """Shift the clock of each worker both ways in one run; return a row."""
    began = time.monotonic()
    file = world.home / "clock"
    file.write_text("nobody 0")
    path = [str(Path(__file__).parent / "shifted_clock"), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"SHIFTED_CLOCK": str(file), "PYTHONPATH": os.pathsep.join(path)}
    # A process of its own: what it forks its workers from has imported the shifted clock first.
    command = [sys.executable, "-m", "tests.faults.clocks", str(world.home), str(file)]
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)
    shifted, absurd = durations(world.app, RUN)
    dose = len(SHIFTS) * len(ROLES)
    held = f"{shifted} updates say another day or hour, no duration is below 0 or beyond the run's own"
    row = proved(world.app, RUN, fault="clock −1 h, +1 d", dose=dose, recovery=[], held=held, began=began)
    return [msgspec.structs.replace(row, broken=(*row.broken, *absurd))]


def stream_shifted(home: Path, file: Path) -> None:
    """Stream a run while one worker's clock after the other jumps away and back."""
    with open_world(home) as world:
        app, prepared = open_run(world.app, RUN, SETTINGS)

        def work(ended: threading.Event) -> None:
            with watched(app, RUN) as progress:
                for role in ROLES:
                    for seconds in (*SHIFTS, 0):
                        file.write_text(f"{role} {seconds}")
                        progress.wait("learner", progress.of("learner") + UPDATES_PER_SHIFT, ended)

        stream_during(app, prepared, work)
        end_in_order(app, prepared)


def durations(app: App, run: str) -> tuple[int, list[str]]:
    """Return how many updates carry a shifted time, and every duration in the log that cannot be true."""
    with open_log(app.home.run(run)) as log:
        updates = [event for _, event in log.events(Update)]
    times = sorted(update.made_at_ms for update in updates)
    middle = times[len(times) // 2]
    shifted = sum(abs(each - middle) > 1_800_000 for each in times)
    absurd = [
        f"update {update.policy.step}: {name} is {value}"
        for update in updates
        for name, value in update.metrics.items()
        if "seconds" in name and not 0 <= value < 3600
    ]
    return shifted, absurd


if __name__ == "__main__":
    stream_shifted(Path(sys.argv[1]), Path(sys.argv[2]))
