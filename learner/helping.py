"""A process that helps a learner: it computes its share of each update, and writes nothing.

It speaks to no broker. It begins with the checkpoint that rank 0 names, and then makes the same steps as rank 0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from learner.checkpoints import MANIFEST, read_manifest
from learner.learning import Learner, LearnerSettings
from learner.processes import LearnerProcessError, Processes
from learner.shared_checkpoints import SharedCheckpoints
from streams.whole_file import file_sha256


class _Beginning(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint that all processes of a learner begin with."""

    name: str
    manifest_sha256: str


def begin_together(processes: Processes, folder: Path) -> None:
    """Tell the helping processes which checkpoint this learner goes on from, once they can read it."""
    beginning = _Beginning(name=folder.name, manifest_sha256=file_sha256(folder / MANIFEST))
    processes.tell(msgspec.json.encode(beginning))


def help_learner(
    checkpoints: Path,
    *,
    run: str,
    learner: LearnerSettings,
    no_repeat: bool,
    processes: Processes,
    stop: Callable[[], bool],
    shared: SharedCheckpoints | None = None,
) -> None:
    """Share the work of the run's learner until it ends, or until `stop` says so.

    checkpoints: the run's folder of them. shared: where a checkpoint comes from that this machine lacks.
    Raises LearnerProcessError if rank 0 is gone, or has another checkpoint of the same name than this machine.
    """
    message = processes.hear(stop)
    if message is None:
        return
    beginning = msgspec.json.decode(message, type=_Beginning)
    folder = checkpoints / beginning.name
    if shared is not None:
        shared.fetch(beginning.name, manifest_sha256=beginning.manifest_sha256)
    manifest = read_manifest(folder, verify=True)
    if (found := file_sha256(folder / MANIFEST)) != beginning.manifest_sha256:
        raise LearnerProcessError(
            f"learner process {processes.rank}: expected checkpoint {beginning.name} with the manifest "
            f"{beginning.manifest_sha256[:12]}… of the first process, found {found[:12]}… in {checkpoints}. Give all "
            "processes the same folder, or the same store.url"
        )
    state = Learner.resume(folder, manifest, run=run, settings=learner, no_repeat=no_repeat, processes=processes)
    while state.follow(stop):
        pass
