"""The ledger built anew from the log's own bytes: equal to the live one, table by table, or the live one is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, zip_longest

import duckdb
import msgspec
import pyarrow as pa

from storage.contents import table_hashes
from storage.ledger import OFFLINE, build_batch, store_batch
from storage.log import RECORDS_AT_ONCE, Log
from storage.schema import migrate
from storage.verification.account import Finding, Partition, place
from storage.verification.stages import ask
from streams.delivery import Received

Read = Callable[[Partition, int, int], Iterator[Received]]
"""Called with (partition, first, end): Kafka's records from `first` up to, and without, `end`."""


def rebuilt_tables(
    log: Log, ends: Mapping[Partition, tuple[int, int]] | None, read: Read | None
) -> tuple[dict[str, str], list[Finding]]:
    """Return each table's content hash, built anew from the log, and a finding for each that is not the live one's.

    Kafka's bytes count where it still holds them, and the archive's copy must equal them; the archive's count before.
    """
    findings: list[Finding] = []
    digests: list[tuple[str, int, int, str]] = []
    with duckdb.connect(":memory:", config=dict(OFFLINE)) as connection:
        migrate(connection)
        for row in log.rows("SELECT topic, partition, next_offset FROM sink_offsets ORDER BY topic, partition"):
            partition = (row["topic"], row["partition"])
            nowhere = (row["next_offset"], row["next_offset"])
            start, end = ends.get(partition, nowhere) if ends is not None else nowhere
            said = read(partition, start, min(end, row["next_offset"])) if read is not None else iter(())
            records = _truth(partition, log.records(partition), said, start, findings)
            while some := list(islice(records, RECORDS_AT_ONCE)):
                batch = build_batch(some)
                tables = {name: rows for name, rows in batch.tables.items() if name != "records"}
                store_batch(connection, msgspec.structs.replace(batch, tables=tables))
                if partition[0].endswith(".generations"):
                    digests += [
                        (*partition, record.position.offset, hashlib.sha256(record.value or b"").hexdigest())
                        for record in some
                    ]
        anew = table_hashes(connection)
    live = table_hashes(log.connection)
    findings += [
        Finding(
            rule="rebuilt from the log",
            where=f"table {name}",
            what=f"the ledger holds {live.get(name, 'nothing')}; the log gives {anew.get(name, 'nothing')}",
        )
        for name in sorted({*live, *anew})
        if live.get(name) != anew.get(name)
    ]
    return anew, [*findings, *_sources(log, digests)]


def _truth(
    partition: Partition,
    kept: Iterator[Received],
    said: Iterator[Received],
    start: int,
    findings: list[Finding],
) -> Iterator[Received]:
    """Yield the partition's records: the kept ones below `start`, then Kafka's, each compared with its copy."""
    ours: list[Received] = []
    for record in kept:
        if record.position.offset >= start:
            ours.append(record)
            break
        yield record

    def rest() -> Iterator[Received]:
        yield from ours
        yield from kept

    for theirs, copy in zip_longest(said, rest()):
        if theirs is None:
            findings.append(
                Finding(
                    rule="bytes are kept",
                    where=place(*partition, copy.position.offset),
                    what="Kafka has no such record",
                )
            )
            return
        if copy != theirs:
            what = "is missing" if copy is None or copy.position != theirs.position else _difference(copy, theirs)
            findings.append(
                Finding(
                    rule="bytes are kept",
                    where=place(*partition, theirs.position.offset),
                    what=f"the kept copy of this record {what}",
                )
            )
            yield theirs
            yield from said
            return
        yield theirs


def _difference(copy: Received, theirs: Received) -> str:
    names = [
        field.name
        for field in msgspec.structs.fields(Received)
        if getattr(copy, field.name) != getattr(theirs, field.name)
    ]
    return f"differs from Kafka's in its {', '.join(names)}"


def _sources(log: Log, digests: list[tuple[str, int, int, str]]) -> list[Finding]:
    """Check that every reward names the bytes of the generation that it answers."""
    columns = list(zip(*digests, strict=True)) or [(), (), (), ()]
    types = (pa.string(), pa.int64(), pa.int64(), pa.string())
    names = ("topic", "partition", "record_offset", "sha256")
    log.connection.register(
        "generation_bytes",
        pa.table({name: pa.array(list(of), kind) for name, of, kind in zip(names, columns, types, strict=True)}),
    )
    return ask(
        log,
        "rewards answer generations",
        "the reward of group {group_id} answers other bytes (sha256 {content_sha256}) than {source_topic}"
        "[{source_partition}]@{source_offset} holds ({sha256})",
        """
        SELECT r.*, b.sha256 FROM rewards r JOIN generation_bytes b ON b.topic = r.source_topic
            AND b.partition = r.source_partition AND b.record_offset = r.source_offset
        WHERE b.sha256 <> r.content_sha256 ORDER BY r.topic, r.partition, r.record_offset
        """,
    )
