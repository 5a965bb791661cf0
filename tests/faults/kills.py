"""Every worker killed at random times, by the hundred, in one long run."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter

import msgspec

from tests.faults.progress import LOOK_SECONDS, ROLES, signal_role, watched
from tests.faults.results import Journal, Row
from tests.faults.world import SETTINGS, World, end_in_order, open_run, proved, stream_during

PAUSE_SECONDS_MAX = 2.0  # A worker is struck at a random moment of so long a time, anywhere in its work.


class Strike(msgspec.Struct, frozen=True, kw_only=True):
    """One fault that was done, and how long the role took to get on."""

    role: str
    seconds: float


def kill_workers(world: World, *, dose: int) -> list[Row]:
    """Kill each worker so often, in random order at random times, in one run; return a row for each role.

    Between two kills the role that was struck gets on again and the learner makes an update: or the second would only
    repeat the first.
    """
    began, run = time.monotonic(), "kills"
    journal = Journal(world.home / "kills.jsonl", Strike)
    app, prepared = open_run(world.app, run, SETTINGS)
    done = Counter(strike.role for strike in journal.read())
    left = [role for role in ROLES for _ in range(max(dose - done[role], 0))]
    chance = random.Random(len(left))
    chance.shuffle(left)

    def work(ended: threading.Event) -> None:
        with watched(app, run) as progress:
            for role in left:
                progress.wait("learner", progress.of("learner"), ended)
                ended.wait(chance.random() * PAUSE_SECONDS_MAX)
                signal_role(app, run, role, signal.SIGKILL)
                struck = time.monotonic()
                ended.wait(LOOK_SECONDS)  # What it had sent already still arrives, and is no recovery.
                progress.wait(role, progress.of(role), ended)
                journal.add(Strike(role=role, seconds=time.monotonic() - struck))

    if left:
        stream_during(app, prepared, work)
    end_in_order(app, prepared)
    strikes = journal.read()
    whole = proved(app, run, fault="kill -9", dose=len(strikes), recovery=[], held="one run", began=began)
    return [
        msgspec.structs.replace(
            whole,
            fault=f"kill -9 {role}",
            dose=sum(strike.role == role for strike in strikes),
            recovery_seconds=tuple(strike.seconds for strike in strikes if strike.role == role),
        )
        for role in ROLES
    ]
