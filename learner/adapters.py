"""The LoRA adapters of one run on its vLLM servers: published where pruning cannot reach them, leased, and unloaded.

Each version's adapter is linked from its checkpoint into a separate folder with a unique name. The learner may
therefore retire the checkpoint while the server still reads the adapter. A process that samples from a version holds a
lease on it: a shared file lock, which the system releases when the process ends, however it ends. Only a process that
holds the lock exclusively may unload the version. So no generator can unload an adapter that is in use, neither its own
nor one that another generator uses on the same server.

All servers get a version, or it is not used: where one refuses it, the others unload it again. A server that does not
answer is left out instead (`learner.replicas`), and gets the version in use before it serves again. Each load is
followed by a check of log-probabilities (`learner.probes`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from learner.checkpoints import CheckpointError
from learner.policy import ADAPTER
from learner.probes import Probe, check_adapter, read_probes
from learner.replicas import Replica, Replicas
from learner.vllm import VllmError
from streams.errors import TransientError
from streams.events import PolicyRef
from streams.locks import take, wait_for
from streams.names import is_version_name
from streams.topics import version_name
from streams.whole_file import file_sha256, whole_folder

FOLDER = "adapters"
ADAPTER_FILES = (ADAPTER, "adapter_config.json")
PREFIX = "policy-v"
log = logging.getLogger(__name__)


def adapter_name(policy: PolicyRef) -> str:
    """Return the server's name for a version: `policy-v<lineage>-<step>`, never used for other weights.

    Raises CheckpointError if the version's name cannot be the name of a folder.
    """
    if not is_version_name(version_name(policy)):
        raise CheckpointError(f"policy {version_name(policy)!r}: expected a name like 1-ab12cd-000007")
    return PREFIX + version_name(policy)


class Adapters:
    """The adapters of one run on its servers. `load_on` may be called from any thread, the rest from one."""

    def __init__(
        self, replicas: Replicas, directory: Path, *, kept: int, difference_max: float, seen_as: str = ""
    ) -> None:
        """directory: where the adapters are put. kept: how many of the newest versions stay loaded; for a staleness
        limit s, use s + 2.

        difference_max: the largest difference of a log-probability, in nats, with which an adapter is taken.
        seen_as: the directory's path on the servers' machines; empty if the path is the same there.
        """
        self._replicas = replicas
        self._directory = directory.absolute()
        self._seen_as = seen_as or str(self._directory)
        self._kept = kept
        self._difference_max = difference_max
        self._lease: IO[str] | None = None
        self._probes: Sequence[Probe] = ()
        self._lock = threading.RLock()  # A server that comes back gets the version in use, and never the one before.
        self.current = ""
        replicas.prepare = self.load_on

    def use(self, policy: PolicyRef, checkpoint: Path) -> None:
        """Load a version on all servers and hold it until the next call; then unload old versions that are free.

        Raises CheckpointError if the version's files are gone or differ from the announced ones, VllmError if a server
        refuses the adapter or computes other log-probabilities, and TransientError if no server answers. The previous
        version then stays in use.
        """
        name = adapter_name(policy)
        with self._lock:
            lease = self._acquire(name)
            try:
                anew = self._link(name, policy, checkpoint)
                probes = read_probes(checkpoint)
                self._load_everywhere(name, probes, lease, anew=anew)
            except BaseException:
                lease.close()
                raise
            previous, self._lease, self.current, self._probes = self._lease, lease, name, probes
        if previous is not None:
            previous.close()
        self._prune()

    def load_on(self, replica: Replica) -> None:
        """Load the current version on a server that was started anew or was away, and check it there.

        Raises VllmError if the server refuses it, and TransientError if it is down.
        """
        with self._lock:
            replica.is_new_enough = False
            for name in list(replica.owed):
                replica.admin.unload_adapter(name)
                replica.owed.discard(name)
            if self.current:
                self._load(replica, self.current, self._probes, anew=False)

    def _load(self, replica: Replica, name: str, probes: Sequence[Probe], *, anew: bool) -> None:
        if not replica.is_new_enough:
            replica.admin.require_version()
            replica.is_new_enough = True
        if anew:
            replica.admin.unload_adapter(name)  # The server may have loaded the folder's earlier content.
        replica.admin.load_adapter(name, f"{self._seen_as}/{name}")
        replica.owed.discard(name)
        deadline = time.monotonic() + replica.timeout_seconds
        while True:
            try:
                check_adapter(replica.admin, name, probes, difference_max=self._difference_max)
                return
            except TransientError:
                if time.monotonic() > deadline or not replica.is_only_busy():
                    raise

    def _load_everywhere(self, name: str, probes: Sequence[Probe], lease: IO[str], *, anew: bool) -> None:
        """Load a version on every server that serves: on all that answer, or on none."""
        replicas = self._replicas.serving or self._replicas.all
        with ThreadPoolExecutor(max_workers=len(replicas)) as pool:
            loads = {replica.url: pool.submit(self._load, replica, name, probes, anew=anew) for replica in replicas}
        failed = {url: error for url, load in loads.items() if (error := load.exception()) is not None}
        refusals = [error for error in failed.values() if not isinstance(error, TransientError)]
        if refusals:
            for error in refusals:
                if not isinstance(error, VllmError):
                    raise error
            self._roll_back(name, replicas, lease)
            raise type(refusals[0])(
                f"policy version {name.removeprefix(PREFIX)} is not used: {len(refusals)} of {len(replicas)} servers "
                f"refuse it, and the others unloaded it again. {refusals[0]}"
            ) from refusals[0]
        if len(failed) == len(replicas):
            raise next(iter(failed.values()))
        for replica in replicas:
            if replica.url in failed:
                self._replicas.leave_out(replica, str(failed[replica.url]))
            else:
                self._replicas.take_back(replica)

    def _roll_back(self, name: str, replicas: Sequence[Replica], lease: IO[str]) -> None:
        """Unload a version that one server refuses from all of them, unless another generator samples from it."""
        if not take(lease):
            return
        for replica in replicas:
            self._unload(replica, name)

    def _unload(self, replica: Replica, name: str) -> None:
        """Unload an adapter, now or when the server comes back."""
        try:
            if not replica.serves:
                raise TransientError(replica.why_out)
            replica.admin.unload_adapter(name)
            replica.owed.discard(name)
        except (TransientError, VllmError) as error:
            log.debug("%s is unloaded from %s later: %s", name, replica.url, error)
            replica.owed.add(name)

    def close(self) -> None:
        """Release the version in use; it stays loaded."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def _link(self, name: str, policy: PolicyRef, checkpoint: Path) -> bool:
        """Put the adapter's two files into a separate folder, completely or not at all.

        The folder may already exist, from another generator or from an earlier process. It is used if it holds the
        checkpoint's files, and replaced otherwise. Returns whether it was replaced.
        """
        target = self._directory / name
        try:
            wanted = {file: file_sha256(checkpoint / file) for file in ADAPTER_FILES}
        except OSError as error:
            raise CheckpointError(f"policy {version_name(policy)}: {error}") from error
        if (found := wanted[ADAPTER]) != policy.sha256:
            raise CheckpointError(
                f"policy {version_name(policy)}: expected weights with sha256 {policy.sha256[:12]}…, "
                f"found {found[:12]}… in {checkpoint / ADAPTER}"
            )
        if _holds(target, wanted):
            return False
        try:
            with whole_folder(target, replace=True) as aside:
                exchanged = target.exists()
                for file in ADAPTER_FILES:
                    try:
                        os.link(checkpoint / file, aside / file)
                    except OSError:  # Another file system, or one without hard links.
                        shutil.copyfile(checkpoint / file, aside / file)
        except OSError as error:
            if _holds(target, wanted):  # Another generator was faster.
                return False
            raise CheckpointError(f"policy {version_name(policy)}: {error}") from error
        return exchanged

    def _prune(self) -> None:
        """Unload and delete the adapters that are older than the newest `kept` and that nobody holds."""
        for name in superseded([path.name for path in self._directory.glob(f"{PREFIX}*") if path.is_dir()], self._kept):
            if name == self.current:
                continue
            with contextlib.ExitStack() as stack:
                lease = stack.enter_context(self._lease_file(name).open("w"))
                if not take(lease):
                    continue  # Somebody samples from it.
                for replica in self._replicas.all:
                    self._unload(replica, name)
                shutil.rmtree(self._directory / name, ignore_errors=True)
                self._lease_file(name).unlink(missing_ok=True)

        for replica in self._replicas.serving:
            for name in list(replica.owed):
                self._unload(replica, name)

    def _acquire(self, name: str) -> IO[str]:
        """Return an open file with a shared lock on it. The lease lasts as long as the file is open."""
        self._directory.mkdir(parents=True, exist_ok=True)
        while True:
            file = self._lease_file(name).open("w")
            wait_for(file, shared=True)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # The file was deleted between our open and our lock; the next one is a new file.

    def _lease_file(self, name: str) -> Path:
        return self._directory / f"{name}.lease"


def _holds(folder: Path, wanted: dict[str, str]) -> bool:
    """Return whether a folder holds exactly these files, compared by sha256."""
    try:
        return {path.name: file_sha256(path) for path in folder.iterdir()} == wanted
    except OSError:
        return False


def superseded(names: list[str], kept: int) -> list[str]:
    """Return the names of the adapters that are not among the newest `kept`, oldest first.

    A later lineage is newer; within a lineage, a later step is newer. `policy-v2-ab12cd-000007` is lineage 2, step 7.
    """

    def age(name: str) -> tuple[int, int, str]:
        parts = name.removeprefix(PREFIX).split("-")
        numbers = [int(part) if part.isdigit() else 0 for part in (parts[0], parts[-1])]
        return numbers[0], numbers[1], name

    return sorted(names, key=age)[: max(len(names) - kept, 0)]
