"""The records' bytes, read once more: rows rebuilt from them must equal the ledger's, and Kafka's copy must equal ours.

Only sums of hashes and a few hashes per record are kept, so memory does not grow with the log. By default the newest
records of each partition are read, every update and policy version, and what is new since an earlier proof read all
(`proven`); `--rebuild` reads all records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

import duckdb
import msgspec
import pyarrow as pa

from storage.contents import BUCKET_RECORDS, LEFT_OUT, bucket_hashes, digest_text, table_hashes
from storage.entries import Entry, read_entry
from storage.ledger import OFFLINE, build_entries, store_batch
from storage.log import RECORDS_AT_ONCE, Log
from storage.schema import migrate
from storage.verification.account import Finding, Partition, place, span_text
from storage.verification.asking import SHOWN, ask, shortened
from storage.verification.digests import Digests
from storage.verification.proven import Earlier, Sums
from storage.verification.segments import kept_records
from streams.records import Received
from streams.refusals import KnownRun
from streams.topics import kind_of

Read = Callable[[Partition, int, int], Iterator[Received]]
"""Called with (partition, first, end): yields Kafka's records from `first` to `end` (exclusive)."""

NEWEST_RECORDS = 8 * BUCKET_RECORDS  # The records read of each partition by default: 3,500 records take a second.
SCRATCH_MEMORY = "512MiB"  # The memory of the ledger in which rows are rebuilt; it is emptied after each batch.
ALL_OF = frozenset({"updates", "policy-versions"})  # These are few, and everything depends on them.


class RecordsRead(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the reading.

    tables: each table's hash, if the whole table was read. unread: the number of records that no proof has read.
    earlier: those that an earlier proof has read, and this one has not. whole: the end of each partition of which
    every record is proven; sums: of the rows of its records.
    """

    tables: dict[str, str]
    unread: int
    earlier: int = 0
    whole: dict[Partition, int] = {}
    sums: Sums = {}


def read_log(
    log: Log,
    ends: Mapping[Partition, tuple[int, int]] | None,
    read: Read | None,
    *,
    rebuild: bool,
    terms: KnownRun | None,
    findings: list[Finding],
    earlier: Earlier,
) -> RecordsRead:
    """Read records, compare them with the ledger's rows and with Kafka, and make the temporary table `digests`.

    ends, read: the offsets that Kafka holds, and a function that reads them; None without Kafka. terms: the limits of
    the run's refusals, None if unknown. findings: the list to which findings are added. earlier: what an earlier proof
    has read; a rebuild leaves it out.
    """
    digests = Digests(log.connection, terms)
    anew: Sums = {}
    floors: dict[Partition, int] = {}  # Where reading begins.
    unread: dict[Partition, int] = {}  # Below, no proof has read anything: 0 where an earlier one reaches the floor.
    ends_of: dict[Partition, int] = {}
    with duckdb.connect(":memory:", config={**OFFLINE, "threads": 1, "memory_limit": SCRATCH_MEMORY}) as scratch:
        migrate(scratch)
        names = sorted(name for name in table_hashes(scratch) if name != "sink_offsets")
        for row in log.rows("SELECT topic, partition, next_offset FROM sink_offsets ORDER BY topic, partition"):
            partition = (row["topic"], row["partition"])
            first = _floor(partition, row["next_offset"], rebuild=rebuild or earlier.is_void(partition))
            proven = (
                0 if rebuild else min(earlier.below(partition), row["next_offset"] // BUCKET_RECORDS * BUCKET_RECORDS)
            )
            floors[partition] = first = min(first, proven) if proven else first
            unread[partition], ends_of[partition] = (0 if proven else first), row["next_offset"]
            records = _truth(log, partition, first, row["next_offset"], ends, read, findings)
            while some := [read_entry(record) for record in islice(records, RECORDS_AT_ONCE)]:
                _add(scratch, some, names, anew)
                digests.add(some)
        if not rebuild:
            earlier.add_digests(log, floors)
            for at, sums in earlier.sums.items():
                if at[3] * BUCKET_RECORDS < floors.get((at[1], at[2]), 0):
                    anew[at] = sums
        wrong, totals = _differences(log, anew, unread, names)
        findings += wrong
        if rebuild:
            totals["sink_offsets"] = table_hashes(scratch)["sink_offsets"]
            live = table_hashes(log.connection)
            if totals["sink_offsets"] != live.get("sink_offsets"):
                findings.append(_difference("sink_offsets", live.get("sink_offsets"), totals["sink_offsets"], ()))
    findings += _later_columns(log)
    return RecordsRead(
        tables=totals if rebuild else {},
        unread=sum(unread.values()),
        earlier=sum(floor for partition, floor in floors.items() if not unread[partition]),
        whole={partition: end for partition, end in ends_of.items() if not unread[partition]},
        sums=anew,
    )


def _floor(partition: Partition, next_offset: int, *, rebuild: bool) -> int:
    """Return the offset at which the reading of a partition begins: the beginning of a bucket."""
    if rebuild or kind_of(partition[0]) in ALL_OF:
        return 0
    return max(next_offset - NEWEST_RECORDS, 0) // BUCKET_RECORDS * BUCKET_RECORDS


def _truth(
    log: Log,
    partition: Partition,
    first: int,
    next_offset: int,
    ends: Mapping[Partition, tuple[int, int]] | None,
    read: Read | None,
    findings: list[Finding],
) -> Iterator[Received]:
    """Yield a partition's records from `first` on: Kafka's if it still holds them, the kept ones below.

    Each of Kafka's records is compared with its kept copy.
    """
    kept = kept_records(log, partition, first, findings)
    start, end = ends.get(partition, (next_offset, next_offset)) if ends is not None else (next_offset, next_offset)
    low, high = max(start, first), min(end, next_offset)
    theirs = read(partition, low, high) if read is not None and low < high else iter(())
    wrong: list[Finding] = []
    more = 0
    for ours, other in _side_by_side(kept, theirs):
        record = other or ours
        assert record is not None
        said = _compared(ours, other, low, high)
        if said and len(wrong) < SHOWN:
            where = place(*partition, record.position.offset)
            wrong.append(Finding(rule="bytes are kept", where=where, what=said))
        elif said:
            more += 1
        yield record
    findings += shortened("bytes are kept", wrong, more)


def _side_by_side(
    kept: Iterator[Received], theirs: Iterator[Received]
) -> Iterator[tuple[Received | None, Received | None]]:
    """Yield our record and Kafka's for each offset; None if one side has no record."""
    ours, other = next(kept, None), next(theirs, None)
    while ours is not None or other is not None:
        if other is None or (ours is not None and ours.position.offset < other.position.offset):
            yield ours, None
            ours = next(kept, None)
        elif ours is None or other.position.offset < ours.position.offset:
            yield None, other
            other = next(theirs, None)
        else:
            yield ours, other
            ours, other = next(kept, None), next(theirs, None)


def _compared(ours: Received | None, theirs: Received | None, low: int, high: int) -> str:
    """Return the fault of one offset, "" if there is none. low, high: the range that Kafka was asked for."""
    if ours is None:
        return "the kept copy of this record is missing"
    if theirs is None:
        return "Kafka has no such record" if low <= ours.position.offset < high else ""
    names = [
        field.name
        for field in msgspec.structs.fields(Received)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    return f"the kept copy of this record differs from Kafka's in its {', '.join(names)}" if names else ""


def _add(scratch: duckdb.DuckDBPyConnection, entries: list[Entry], names: Iterable[str], sums: Sums) -> None:
    """Build the rows of some records in an empty ledger, add up their hashes, and empty the ledger again."""
    batch = build_entries(entries)
    tables = {name: rows for name, rows in batch.tables.items() if name not in LEFT_OUT}
    store_batch(scratch, msgspec.structs.replace(batch, tables=tables))
    for name in tables:
        for at, (count, low, high) in bucket_hashes(scratch, name):
            before = sums.get((name, *at), (0, 0, 0))
            sums[name, *at] = (before[0] + count, before[1] + low, before[2] + high)
        scratch.execute(f'TRUNCATE "{name}"')


def _differences(
    log: Log, anew: Sums, floors: Mapping[Partition, int], names: Iterable[str]
) -> tuple[list[Finding], dict[str, str]]:
    """Return a finding for each table whose rows differ from the rows of the bytes, and the hash of the latter."""
    log.connection.register(
        "read_floors",
        pa.table(
            {
                "topic": pa.array([topic for topic, _ in floors], pa.string()),
                "partition": pa.array([partition for _, partition in floors], pa.int32()),
                "first": pa.array(list(floors.values()), pa.int64()),
            }
        ),
    )
    findings: list[Finding] = []
    totals: dict[str, str] = {}
    known = {row["table_name"] for row in log.rows("SELECT table_name FROM duckdb_tables() WHERE NOT temporary")}
    read = (
        "coalesce(t.record_offset >= (SELECT any_value(f.first) FROM read_floors f "
        "WHERE f.topic = t.topic AND f.partition = t.partition), true)"
    )
    for name in names:
        ours = {at[1:]: sums for at, sums in anew.items() if at[0] == name}
        total, live, different = [0, 0, 0], [0, 0, 0], []
        for sums in ours.values():
            total = [a + b for a, b in zip(total, sums, strict=True)]
        for at, sums in bucket_hashes(log.connection, name, only=read) if name in known else ():
            live = [a + b for a, b in zip(live, sums, strict=True)]
            if ours.pop(at, None) != sums:
                different.append(at)
        different = sorted({*different, *ours})
        totals[name] = digest_text(*total)
        if different:
            findings.append(_difference(name, digest_text(*live), totals[name], different))
    return findings, totals


def _difference(name: str, live: str | None, anew: str, buckets: Iterable[tuple[str, int, int]]) -> Finding:
    places = [
        place(topic, partition, span_text(bucket * BUCKET_RECORDS, (bucket + 1) * BUCKET_RECORDS - 1))
        for topic, partition, bucket in buckets
    ]
    where = f": rows of {', '.join(places[:4])}{' …' if len(places) > 4 else ''} differ" if places else ""
    return Finding(
        rule="rebuilt from the log",
        where=f"table {name}",
        what=f"the ledger holds {live or 'nothing'}; the log gives {anew}{where}",
    )


def _later_columns(log: Log) -> list[Finding]:
    """Check the columns that a ledger of an older searchloop lacks in its old rows."""
    rule = "rebuilt from the log"
    return [
        *ask(
            log,
            rule,
            "the row names record hash {record_sha256}, the record has {sha256}",
            "SELECT u.topic, u.partition, u.record_offset, u.record_sha256, d.sha256 FROM updates u "
            "JOIN digests d USING (topic, partition, record_offset) WHERE u.record_sha256 <> d.sha256 ORDER BY ALL",
        ),
        *ask(
            log,
            rule,
            "the row names epoch {row_epoch} of {row_holder}, the record has epoch {epoch} of {holder}",
            "SELECT p.topic, p.partition, p.record_offset, p.epoch AS row_epoch, p.holder AS row_holder, d.epoch, "
            "d.holder FROM policy_versions p JOIN digests d USING (topic, partition, record_offset) "
            "WHERE (p.epoch IS NOT NULL OR p.holder IS NOT NULL) "
            "AND (p.epoch::VARCHAR, p.holder) IS DISTINCT FROM (d.epoch, d.holder) ORDER BY ALL",
        ),
    ]
