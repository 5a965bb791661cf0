"""Offsets: every record that Kafka had lies in the ledger once, and in the archive or beside it byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from storage.log import Log
from storage.verification.account import Finding, Partition, PartitionRow, place, span_text, spans
from storage.verification.asking import SHOWN, each, shortened

Held = Callable[[Partition, int, int], Iterable[int]]
"""Called with (partition, first, last): returns the offsets in this closed range at which Kafka holds a record."""

# Each record gives exactly one row in exactly one of these tables.
TABLES = (
    "requests",
    "generations",
    "rewards",
    "updates",
    "policy_versions",
    "dev_scores",
    "feedback",
    "impressions",
    "user_actions",
    "impression_outcomes",
    "decisions",
    "dead_letters",
)
UNACCOUNTED = f"""
WITH rows AS ({" UNION ALL ".join(f"SELECT topic, partition FROM {table}" for table in TABLES)}), counted AS (
    SELECT topic, partition, count(*) AS n FROM rows GROUP BY topic, partition
)
SELECT coalesce(sum(abs(s.records - coalesce(c.n, 0))), 0)::BIGINT AS records
FROM sink_offsets s LEFT JOIN counted c USING (topic, partition)
"""
"""Counts the stored records that have no row of their own, or more than one."""

# The sink's own dead letters stand at the places of the records that it could not decode.
OWN_LETTER = (
    "stage = 'sink' AND source_topic = topic AND source_partition = partition AND source_offset = record_offset"
)
RULES = (
    ("one row a record", "kept AND entries = 0", "the record is kept, but has no row in the ledger's tables"),
    ("one row a record", "entries > 1", "the record has more than one row in the ledger's tables"),
    ("bytes are kept", "NOT kept", "the record's row is there, its bytes are not (nor archived)"),
    ("offsets", "entries > 0 AND record_offset >= next_offset", "stored beyond the ledger's own position"),
)


def partition_rows(
    log: Log, ends: Mapping[Partition, tuple[int, int]] | None, held: Held | None
) -> tuple[list[PartitionRow], list[Finding]]:
    """Return the account of every partition, and the findings.

    ends: the offsets that Kafka holds of each partition, (start, end); None without Kafka, and then held is not called.
    The temporary table `segment_offsets` must exist (`segments.archived_offsets`).
    """
    _register(log)
    findings = [finding for rule in RULES for finding in _islands(log, *rule)]
    holes, lost = _holes(log, ends, held)
    findings += lost
    counted = {
        (row["topic"], row["partition"]): row
        for row in each(
            log,
            """
            SELECT topic, partition, any_value(next_offset) AS next_offset, any_value(said) AS said,
                count(*) FILTER (kept) AS kept, count(*) FILTER (archived) AS archived,
                coalesce(sum(entries - letters), 0)::BIGINT AS rows, coalesce(sum(letters), 0)::BIGINT AS letters
            FROM offsets GROUP BY topic, partition
            UNION ALL BY NAME
            SELECT topic, partition, next_offset, records AS said, 0 AS kept, 0 AS archived, 0 AS rows, 0 AS letters
            FROM sink_offsets ANTI JOIN offsets USING (topic, partition)
            """,
        )
    }
    account = []
    for partition in sorted({*counted, *(ends or {})}):
        row = counted.get(partition, {})
        start, end = (ends or {}).get(partition, (None, None))
        next_offset, kept, said = row.get("next_offset", 0), row.get("kept", 0), row.get("said", 0)
        if kept != said:
            what = f"the ledger counted {said} records, {kept} are kept"
            findings.append(Finding(rule="offsets", where=f"{partition[0]}[{partition[1]}]", what=what))
        if ends is not None and end is None and next_offset:
            what = f"the ledger has stored up to {next_offset}, Kafka has no such partition: its topic was deleted"
            findings.append(Finding(rule="offsets", where=f"{partition[0]}[{partition[1]}]", what=what))
        if end is not None and end < next_offset:
            what = (
                f"Kafka's log ends here, but the ledger has stored up to {next_offset}: the topic was made anew, or "
                "the broker lost what it had acknowledged"
            )
            findings.append(Finding(rule="offsets", where=place(*partition, end), what=what))
        account.append(
            PartitionRow(
                topic=partition[0],
                partition=partition[1],
                start=start,
                end=end,
                next_offset=next_offset,
                behind=max((end or 0) - next_offset, 0),
                gaps=holes.get(partition, 0),
                rows=row.get("rows", 0),
                dead_letters=row.get("letters", 0),
                archived=row.get("archived", 0),
                residual=next_offset - holes.get(partition, 0) - row.get("rows", 0) - row.get("letters", 0),
            )
        )
    return account, findings


def _register(log: Log) -> None:
    """Make the temporary table `offsets`: one row for each offset with a kept or stored record."""
    entries = " UNION ALL ".join(
        f"SELECT topic, partition, record_offset, false AS kept, false AS archived, 1 AS entries, "
        f"{f'coalesce({OWN_LETTER}, false)' if name == 'dead_letters' else 'false'} AS letter FROM {name}"
        for name in TABLES
    )
    log.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE offsets AS
        SELECT a.*, coalesce(s.next_offset, 0) AS next_offset, coalesce(s.records, 0) AS said FROM (
            SELECT topic, partition, record_offset, bool_or(kept) AS kept, bool_or(archived) AS archived,
                sum(entries)::INTEGER AS entries, count(*) FILTER (letter)::INTEGER AS letters
            FROM (
                SELECT topic, partition, record_offset, true AS kept, false AS archived, 0 AS entries, false AS letter
                FROM records
                UNION ALL SELECT topic, partition, record_offset, true, true, 0, false FROM segment_offsets
                UNION ALL {entries}
            ) GROUP BY ALL
        ) a LEFT JOIN sink_offsets s USING (topic, partition)
        """
    )


def _islands(log: Log, rule: str, condition: str, what: str) -> list[Finding]:
    """Return a finding for each run of neighboring offsets for which the condition holds."""
    findings: list[Finding] = []
    more = 0
    for row in each(
        log,
        f"""
        SELECT topic, partition, min(record_offset) AS first, max(record_offset) AS last FROM (
            SELECT topic, partition, record_offset,
                record_offset - row_number() OVER (PARTITION BY topic, partition ORDER BY record_offset) AS island
            FROM offsets WHERE {condition}
        ) GROUP BY topic, partition, island ORDER BY ALL
        """,
    ):
        if len(findings) < SHOWN:
            where = place(row["topic"], row["partition"], span_text(row["first"], row["last"]))
            findings.append(Finding(rule=rule, where=where, what=what))
        else:
            more += 1
    return shortened(rule, findings, more)


def _holes(
    log: Log, ends: Mapping[Partition, tuple[int, int]] | None, held: Held | None
) -> tuple[dict[Partition, int], list[Finding]]:
    """Return the number of unused offsets below each partition's position, and a finding for each lost range."""
    gaps: dict[Partition, int] = {}
    findings: list[Finding] = []
    more = 0
    for row in each(
        log,
        """
        SELECT topic, partition, previous + 1 AS first, least(record_offset, next_offset) - 1 AS last FROM (
            SELECT topic, partition, record_offset, next_offset,
                lag(record_offset, 1, -1) OVER (PARTITION BY topic, partition ORDER BY record_offset) AS previous
            FROM offsets
            UNION ALL
            SELECT s.topic, s.partition, s.next_offset, s.next_offset, coalesce(max(o.record_offset), -1)
            FROM sink_offsets s LEFT JOIN offsets o USING (topic, partition) GROUP BY ALL
        ) WHERE previous + 1 < least(record_offset, next_offset) ORDER BY ALL
        """,
    ):
        partition, first, last = (row["topic"], row["partition"]), row["first"], row["last"]
        start = ends[partition][0] if ends is not None and partition in ends else None
        lost = 0
        for low, high, why in _lost(partition, first, last, start, held):
            lost += high - low + 1
            if len(findings) < SHOWN:
                where = place(*partition, span_text(low, high))
                findings.append(Finding(rule="nothing lost", where=where, what=why))
            else:
                more += 1
        gaps[partition] = gaps.get(partition, 0) + last - first + 1 - lost
    return gaps, shortened("nothing lost", findings, more)


def _lost(
    partition: Partition, first: int, last: int, start: int | None, held: Held | None
) -> Iterator[tuple[int, int, str]]:
    """Yield the closed ranges of a hole that had records, as far as this can be known, each with its message.

    Kafka skips some offsets (a transaction's marker takes one). So a hole is a gap if Kafka holds nothing there.
    Offsets that have fallen out of its retention, or that cannot be asked for, are assumed lost.
    """
    if held is None or start is None:
        yield first, last, "neither in the ledger nor in the archive; without Kafka nobody knows what stood there"
        return
    if first < start:
        why = f"neither in the ledger nor in the archive, and Kafka's log begins only at {start}"
        yield first, min(last, start - 1), why
    if last >= start:
        for low, high in spans(held(partition, max(first, start), last)):
            yield low, high, "Kafka holds a record here; it is neither in the ledger nor in the archive"
