"""The whole proof for one run: offsets, stages, gradients and, where asked for, the ledger built anew."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from storage.log import Log
from storage.verification.account import Account, Finding, Partition
from storage.verification.gradients import Head, gradient_row
from storage.verification.partitions import Held, partition_rows
from storage.verification.rebuilt import Read, rebuilt_tables
from storage.verification.stages import stage_rows
from streams.topics import version_name


class Topics(msgspec.Struct, frozen=True, kw_only=True):
    """What Kafka says of a run.

    ends: (start, end) of each partition. committed: next offset per input partition of generator and environment.
    held and read look into the log; see `partitions.Held` and `rebuilt.Read`.
    """

    ends: Mapping[Partition, tuple[int, int]]
    committed: Mapping[Partition, int]
    held: Held
    read: Read


def verify_log(
    log: Log, *, run: str, topics: Topics | None, head: Head | None, found: list[Finding], rebuild: bool
) -> Account:
    """Return the account of a run.

    topics: None leaves Kafka out. head: what the newest checkpoint says, None if there is none. found: what is wrong
    already, in what was read before. rebuild: also build the ledger anew and compare; it takes as long as reading the
    whole log.
    """
    partitions, residuals = partition_rows(log, topics.ends if topics else None, topics.held if topics else None)
    stages, lost = stage_rows(log, topics.committed if topics else {})
    learner, uses_max, gradients = gradient_row(log, run, head)
    tables, differences = (
        rebuilt_tables(log, topics.ends if topics else None, topics.read if topics else None) if rebuild else ({}, [])
    )
    return Account(
        run=run,
        live=log.live,
        kafka=topics is not None,
        policy=version_name(head.policy) if head else None,
        partitions=tuple(partitions),
        stages=(*stages, learner),
        uses_max=uses_max,
        tables=tables,
        findings=(*found, *residuals, *lost, *gradients, *differences),
    )
