"""The processes of a run's learner: the first one starts the others on its machine, or they meet at an address."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from infra.app.app import App
from infra.runs.supervisor import STOP_SECONDS, worker_command
from learner.learning import LearnerSettings
from learner.processes import ALONE, LearnerProcessError, LearnerProcessGoneError, Processes, join
from services.private_variables import for_role, piped
from streams.errors import SettingsError
from streams.owned_folders import FolderKind, OwnedFolder, remove_abandoned
from streams.stopping import Stop

MEETING = "SEARCHLOOP_LEARNER__MEETING"
MEETINGS = FolderKind(prefix="searchloop-learner-", mark="lock")


class MeetingTable(msgspec.Struct, frozen=True, kw_only=True):
    """The settings table with the address where the learner's processes meet."""

    learner: LearnerSettings = LearnerSettings()


@contextmanager
def learner_processes(app: App, run: str, *, worker: int, count: int, stop: Stop) -> Iterator[Processes]:
    """Give this process among the `count` of the run's learner. worker: its number; the first one has rank 0.

    The first process starts the others here, unless `learner.meeting` names an address where they come by themselves.
    Raises SettingsError if this number is too high, LearnerProcessError if the others do not come.
    """
    if count == 1:
        yield ALONE
        return
    rank = max(worker - 1, 0)
    if rank >= count:
        raise SettingsError(
            f"--worker: expected at most {count} for a learner (learner.processes of run {run!r}), got {worker}. "
            "Start the run with learner.processes set higher"
        )
    meeting = app.tables(MeetingTable).learner.meeting
    if rank and not meeting:
        raise SettingsError(
            "learner.meeting: expected tcp://HOST:PORT of the machine of the run's first learner process, got nothing. "
            "Set it there, too, or leave it empty in both: the first process then starts the others"
        )
    with ExitStack() as stack:
        helpers: list[subprocess.Popen[bytes]] = []
        if not meeting:
            folder = stack.enter_context(meeting_folder())
            meeting = f"file://{folder}/meeting"
            for helper in range(1, count):
                helpers.append(_start_helper(app, run, worker=helper + 1, meeting=meeting))
                stack.callback(_end, helpers[-1])

        def watch() -> None:
            for number, helper in enumerate(helpers, start=1):
                if (status := helper.poll()) is not None:
                    # Killed by a signal, it may be started again; with an error of its own, it would end so again.
                    kind = LearnerProcessGoneError if status < 0 else LearnerProcessError
                    raise kind(
                        f"learner process {number} of {count} ended with status {status}; the lines above in this log "
                        "say why. Nothing is lost; the learner goes on from its newest checkpoint when it starts again"
                    )

        processes = join(meeting, rank=rank, count=count, watch=watch, stop=stop)
        stack.callback(processes.close)
        yield processes
        processes.end()  # Not after an error: the others may be in the middle of an update.


@contextmanager
def meeting_folder() -> Iterator[Path]:
    """Give a new folder where a learner's processes find each other, and remove those of killed learners."""
    remove_abandoned(MEETINGS)
    folder = OwnedFolder(MEETINGS)
    try:
        yield folder.path
    finally:
        folder.remove()


def _start_helper(app: App, run: str, *, worker: int, meeting: str) -> subprocess.Popen[bytes]:
    """Start one more process of the learner; it ends when its standard input closes."""
    command = [*worker_command(app.home.root), "learner", "--run", run, "--worker", str(worker), "--supervised"]
    variables = for_role(os.environ | app.private | app.worker_environment() | {MEETING: meeting}, "learner")
    environment, secrets = piped(variables)
    helper = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, cwd=Path.cwd())
    assert helper.stdin is not None
    helper.stdin.write(secrets)
    helper.stdin.flush()
    return helper


def _end(helper: subprocess.Popen[bytes]) -> None:
    """Let a helper end by itself, and kill it if it does not."""
    assert helper.stdin is not None
    helper.stdin.close()
    try:
        helper.wait(STOP_SECONDS / 2)
    except subprocess.TimeoutExpired:
        helper.kill()
        helper.wait()
