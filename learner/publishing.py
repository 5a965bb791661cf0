"""How a learner's versions reach the others: stored where all machines read, then announced, by one learner alone."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import msgspec

from learner.checkpoints import Manifest, current_name
from learner.intake import Intake
from learner.learning import Learner
from learner.processes import ALONE, Processes
from learner.shared_checkpoints import SharedCheckpoints
from streams.clock import now_ms
from streams.delivery import Outbox
from streams.events import PolicyRef, PolicyVersion
from streams.lease import Lease
from streams.posts import Post
from streams.stalls import StallWatch
from streams.stored_objects import StoreAwayError, StoreError
from streams.topics import version_name
from streams.tracing import current_tracing

RETRY_SECONDS = 1.0
log = logging.getLogger(__name__)


class Publishing:
    """The announcements of one learner; use it as a context manager.

    With a store, it holds the run's lease and stores each checkpoint before its announcement. Without one, this
    machine's disk is the place where all workers read.
    """

    def __init__(self, post: Post, checkpoints: Path, processes: Processes = ALONE) -> None:
        """checkpoints: the run's folder of them on this machine. processes: this one among those of the learner."""
        self._post = post
        self._checkpoints = checkpoints
        self._processes = processes
        self._closing = ExitStack()
        self._lease: Lease | None = None
        self._shared = SharedCheckpoints(post.store, post.run, checkpoints) if post.store is not None else None
        self._stalls = StallWatch(post.delivery.stall_seconds, log, where=f"learner of run {post.run}")
        self._stored: set[str] = set()

    def __enter__(self) -> Publishing:
        """Take the lease, if machines share a store. Raises LeaseError if another machine has it."""
        if self._shared is not None:
            post = self._post
            lease = Lease(post.run, "learner", machine=post.machine, kafka=post.kafka, delivery=post.delivery)
            self._lease = self._closing.enter_context(lease)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def keep(self) -> None:
        """Return if this is still the run's only learner, and its other processes live; tell them that this one does.

        Raises LeaseError if another learner has begun, LearnerProcessError if one of its processes is gone.
        """
        if self._lease is not None:
            self._lease.keep()
        self._processes.keep()

    def take_over(self) -> None:
        """Make the version that was announced last CURRENT, if another machine announced it.

        Raises CheckpointError if the store lacks it, StoreAwayError if the store does not answer.
        """
        if self._lease is None or self._shared is None or (last := self._lease.last) is None:
            return
        name = version_name(last.policy)  # Without a holder, this machine made it, before there was a store.
        if (
            isinstance(last.holder, str)
            and last.holder != self._lease.holder
            and name != current_name(self._checkpoints)
        ):
            log.info("going on from %s of %s", name, last.holder)
            told = last.manifest_sha256 if isinstance(last.manifest_sha256, str) else ""
            self._shared.take_over(name, manifest_sha256=told)

    def announce(
        self, outbox: Outbox, state: Learner, folder: Path, intake: Intake, *, update: bool, began_ns: int = 0
    ) -> None:
        """Publish the version in `folder` with the granted requests, after its checkpoint is durable.

        update: True publishes first the update that made the version. began_ns: when the update began, for its trace.
        A store that is away is waited for; after a stop request, the version stays unannounced until the next start.
        """
        if not self._store(folder):
            return
        self.keep()
        made, tracing = state.manifest.update, current_tracing()
        if update and made is not None:
            traced = tracing.updated(made, began_ns=began_ns) if tracing and began_ns else ()
            outbox.send(made, headers=(*traced, *(self._lease.headers if self._lease is not None else ())))
        self._send(
            outbox,
            PolicyVersion(
                run=state.run,
                policy=state.manifest.policy,
                parent=state.manifest.parent,
                path=f"checkpoints/{folder.name}",
                requests_consumed=intake.consumed,
                requests_admitted=intake.granted,
                manifest_sha256=state.manifest_sha256,
                made_at_ms=now_ms(),
            ),
        )
        outbox.flush()

    def retire(self, outbox: Outbox, retired: Manifest) -> None:
        """Announce that a version's checkpoint is deleted, and delete it from the store, too.

        Raises LeaseError if another learner has begun: the versions on the store are that one's now.
        """
        self._retire(outbox, retired.policy, retired.parent)

    def retire_left(self, outbox: Outbox, current: PolicyRef) -> None:
        """Retire what an earlier learner left on the store when it was killed while it retired versions.

        These are the versions that were announced as retired, and those that this home announced last and then
        deleted, up to `current`. What only another home has announced stays: it may hold it still.
        """
        if self._lease is None or self._shared is None:
            return
        try:
            stored = self._shared.names()
        except (StoreAwayError, StoreError) as error:
            log.warning("what earlier learners left on the store stays for now: %s", error)
            return
        for name in stored:
            said = self._lease.announced.get(name)
            if said is None or said.parent is None or self._shared.is_own(name):
                continue
            deleted_here = said.holder == self._lease.holder and said.policy.step < current.step
            if said.status == "retired" or deleted_here:
                self._retire(outbox, said.policy, said.parent)
        outbox.flush()

    def _retire(self, outbox: Outbox, policy: PolicyRef, parent: PolicyRef | None) -> None:
        self.keep()
        name = version_name(policy)
        self._send(
            outbox,
            PolicyVersion(
                run=self._post.run,
                policy=policy,
                parent=parent,
                path=f"checkpoints/{name}",
                status="retired",
                made_at_ms=now_ms(),
            ),
        )
        if self._shared is not None:
            self._stored.discard(name)
            self._shared.retire(name)

    def _send(self, outbox: Outbox, event: PolicyVersion) -> None:
        if self._lease is not None:
            event = msgspec.structs.replace(event, epoch=self._lease.epoch, holder=self._lease.holder)
        outbox.send(event)

    def _store(self, folder: Path) -> bool:
        """Store a checkpoint once; return False if a stop request ended the wait for the store."""
        if self._shared is None or folder.name in self._stored:
            return True
        while not self._post.stop():
            try:
                self._shared.put(folder)
            except StoreAwayError as error:
                self._stalls.waiting_for(f"the store, to share {folder.name}: {error}")
                self.keep()
                self._post.stop.wait(RETRY_SECONDS)
                continue
            self._stalls.progress()
            self._stored.add(folder.name)
            return True
        return False
