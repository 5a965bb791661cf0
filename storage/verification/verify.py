"""The whole proof, composed of its parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb
import msgspec
import pyarrow as pa

from storage.errors import StorageError
from storage.log import Log
from storage.verification.account import (
    Account,
    Finding,
    Partition,
    PartitionRow,
    StageRow,
    Trust,
    one_line,
    verdict_of,
)
from storage.verification.asking import bounded
from storage.verification.chain import Chain, Head, find_chain
from storage.verification.checkpoints import Kept, checkpoint_findings, unannounced
from storage.verification.clicked import ClicksRead, ClickTerms, click_findings
from storage.verification.embedded import embedded_findings
from storage.verification.ending import ending_findings
from storage.verification.gradients import gradient_row
from storage.verification.identities import foreign_generations, identity_findings
from storage.verification.joins import join_findings
from storage.verification.metrics import metric_findings
from storage.verification.modes import mode_of, unseen_by
from storage.verification.partitions import Held, partition_rows
from storage.verification.proven import Earlier, keep, proven_now
from storage.verification.reading import Read, RecordsRead, read_log
from storage.verification.seal import seals, trust
from storage.verification.segments import archived_offsets, unlisted_findings
from storage.verification.stages import stage_rows
from streams.refusals import KnownRun
from streams.topics import version_name

T = TypeVar("T")


class Topics(msgspec.Struct, frozen=True, kw_only=True):
    """Kafka's view of a run.

    ends: (start, end) of each partition. committed: next offset per input partition of generator and environment.
    held and read access the log; see `partitions.Held` and `reading.Read`.
    """

    ends: Mapping[Partition, tuple[int, int]]
    committed: Mapping[Partition, int]
    held: Held
    read: Read


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a run that do not come from its log.

    head: the content of the newest checkpoint, None if there is none. kept: every checkpoint; None if they were not
    checked.
    updates: the number of updates that the run was to make, None if unknown. terms: the limits of its refusals, None if
    unknown. working: whether a worker of the run is alive.
    found: findings from earlier reading. foreign: objects in the ledger that are not searchloop's.
    joined: the positions of the run's joiner; None if it has none, or cannot be read.
    clicks: the terms of rewards from clicks; None if the run's rewards are not from clicks.
    """

    head: Head | None
    kept: Sequence[Kept] | None = None
    updates: int | None = None
    terms: KnownRun | None = None
    working: bool = False
    found: Sequence[Finding] = ()
    foreign: Sequence[str] = ()
    joined: Mapping[tuple[str, int], int] | None = None
    clicks: ClickTerms | None = None


def verify_log(
    log: Log,
    *,
    run: str,
    topics: Topics | None,
    known: Circumstances,
    rebuild: bool,
    trusted: str | None = None,
    memory: Path | None = None,
) -> Account:
    """Return the account of a run. Damage never raises an error: it is a finding.

    topics: None leaves Kafka out. rebuild: read every record, not only the newest; this takes as long as reading the
    whole log. trusted: a seal or a hash that the user kept elsewhere, which must be in the chain.
    memory: the run's folder, in which a proof that found nothing keeps what it has read, for the next one; None keeps
    nothing and uses nothing.
    Raises DeliveryError if Kafka goes away meanwhile.
    """
    proof = _Proof(log, run, topics, known, rebuild=rebuild, trusted=trusted, memory=memory)
    with bounded(log):
        account = proof.account()
        if not account.findings:
            proof.remember()
        return account


def unreadable(run: str, *, kafka: bool, known: Circumstances) -> Account:
    """Return the account of a run whose log cannot be read at all."""
    found = tuple(known.found)
    return Account(
        run=run,
        verdict=verdict_of(found),
        mode="nothing could be read",
        live=False,
        kafka=kafka,
        policy=version_name(known.head.policy) if known.head else None,
        seal=None,
        manifest_sha256=None,
        trusted=None,
        partitions=(),
        stages=(),
        uses_max=0,
        unchecked={},
        tables={},
        unseen=("everything: neither the ledger nor the archive could be read",),
        findings=found,
    )


class _Proof:
    """Runs the parts one after another; a part that cannot read its input leaves a finding and an empty result."""

    def __init__(
        self,
        log: Log,
        run: str,
        topics: Topics | None,
        known: Circumstances,
        *,
        rebuild: bool,
        trusted: str | None,
        memory: Path | None,
    ) -> None:
        self._memory = memory
        self._records = RecordsRead(tables={}, unread=0)
        self._log, self._run, self._topics, self._known = log, run, topics, known
        self._rebuild, self._trusted = rebuild, trusted
        self._findings = list(known.found)
        self._failed = False

    def account(self) -> Account:
        """Run all parts, in an order in which each finds the tables that it needs."""
        log, topics, head, kept = self._log, self._topics, self._known.head, self._known.kept
        ends = topics.ends if topics else None
        self._add("the archive", lambda: archived_offsets(log))
        self._add("the archive", lambda: unlisted_findings(log))
        rows: list[PartitionRow] = []
        partitions = self._part("the offsets", lambda: partition_rows(log, ends, topics.held if topics else None), rows)
        read = self._records = self._read("the records", self._reading, self._records)
        none = Chain(links=(), origin=None, announced={})
        chain = self._part("the updates", lambda: find_chain(log, head), none)
        gradients = self._read("the gradients", lambda: gradient_row(log, chain, head), None)
        self._findings += gradients[3] if gradients else []
        empty: list[StageRow] = []
        stages = self._part("the stages", lambda: stage_rows(log, topics.committed if topics else {}), empty)
        stages = [*stages, *([gradients[0]] if gradients else [])]
        self._add("the names", lambda: identity_findings(log))
        self._add("what records hold of others", lambda: embedded_findings(log))
        self._add("the metrics", lambda: metric_findings(log))
        self._add("the outcomes of impressions", lambda: join_findings(log, self._known.joined))
        clicked = self._clicked()
        self._findings += clicked.findings
        if kept is not None:
            self._add("the checkpoints", lambda: checkpoint_findings(log, kept, chain))
        working = self._known.working or log.live
        step = head.policy.step if head else 0
        first = chain.links[0] if chain.links else None
        untold = version_name(first.policy) if first is not None and first.topic is None else None
        if kept is not None:
            self._add(
                "the end",
                lambda: ending_findings(
                    log,
                    partitions,
                    stages,
                    run=self._run,
                    working=working,
                    step=step,
                    updates=self._known.updates,
                    untold=untold,
                ),
            )
        trusted = self._trust(chain)
        foreign = self._read("the names", lambda: foreign_generations(log), 0)
        nobody: list[str] = []
        strays = self._read("the checkpoints", lambda: unannounced(log, kept or (), untold), nobody)
        return Account(
            run=self._run,
            verdict=verdict_of(self._findings),
            mode=mode_of(kafka=topics is not None, rebuild=self._rebuild, live=working),
            live=log.live,
            kafka=topics is not None,
            policy=version_name(head.policy) if head else None,
            seal=next(iter(seals(chain)), None) if chain.recorded else None,
            manifest_sha256=self._manifest_sha256(),
            trusted=trusted,
            partitions=tuple(partitions),
            stages=tuple(stages),
            uses_max=gradients[1] if gradients else 0,
            unchecked=gradients[2] if gradients else {},
            tables=read.tables,
            unseen=unseen_by(
                kafka=topics is not None,
                live=log.live,
                unread=read.unread,
                earlier=read.earlier,
                recorded=chain.recorded,
                trusted=trusted,
                foreign=foreign,
                strays=strays,
                clicks=clicked.unseen,
                objects=self._known.foreign,
                settings=self._known.updates is not None,
                retained=ends is None or all(start == 0 for start, _ in ends.values()),
            ),
            findings=tuple(self._findings),
        )

    def _reading(self) -> RecordsRead:
        topics = self._topics
        return read_log(
            self._log,
            topics.ends if topics else None,
            topics.read if topics else None,
            rebuild=self._rebuild,
            terms=self._known.terms,
            findings=self._findings,
            earlier=Earlier(self._log, None if self._rebuild else self._memory, self._known.terms),
        )

    def remember(self) -> None:
        """Keep what was read for the next proof; without a folder, or where none can be written, nothing is kept."""
        if self._memory is None or self._log.live:
            return
        with contextlib.suppress(OSError, duckdb.Error, pa.ArrowException):
            keep(self._memory, proven_now(self._log, self._records.whole, self._records.sums, self._known.terms))

    def _clicked(self) -> ClicksRead:
        nothing = ClicksRead(findings=[], checked=0, unseen="")
        terms = self._known.clicks
        if terms is None:
            return nothing
        return self._read("rewards from clicks", lambda: click_findings(self._log, self._run, terms), nothing)

    def _trust(self, chain: Chain) -> Trust | None:
        if self._trusted is None:
            return None
        said, found = trust(chain, self._known.kept or (), self._trusted)
        self._findings += found
        return said

    def _manifest_sha256(self) -> str | None:
        head = self._known.head
        name = version_name(head.policy) if head else None
        return next((each.manifest_sha256 for each in self._known.kept or () if each.name == name), None)

    def _read(self, what: str, work: Callable[[], T], otherwise: T) -> T:
        """Return the result of `work`; if it cannot read its input, add a finding and return `otherwise`."""
        try:
            return work()
        except (StorageError, duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
            rule, where = "everything can be read", f"run {self._run}: {what}"
            # If an earlier part could not make a table, a later part need not report that the table is missing.
            if not (isinstance(error, StorageError | duckdb.CatalogException) and self._failed):
                self._findings.append(Finding(rule=rule, where=where, what=one_line(error)))
            self._failed = True
            return otherwise

    def _part(self, what: str, work: Callable[[], tuple[T, list[Finding]]], otherwise: T) -> T:
        nothing: list[Finding] = []
        given, found = self._read(what, work, (otherwise, nothing))
        self._findings += found
        return given

    def _add(self, what: str, work: Callable[[], list[Finding]]) -> None:
        self._findings += self._read(what, work, [])
