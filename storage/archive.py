"""Closed segments of the log as Parquet files, byte for byte, so that the log outlives Kafka's retention.

A segment holds neighboring records of one partition: `<topic>/<partition>/<first offset>-<last offset>.parquet` with
key, value, headers and time as they came. When the ledger's table `records` holds enough records, the sink moves them
out of it. It writes the file under a temporary name, syncs it and renames it; then one transaction lists the file and
empties the table. If the sink is killed between the two, the file is unlisted and the records are still in the ledger.
The next segment begins at the same offset and covers the file. Readers may therefore meet a record twice, byte-equal,
and use it once.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from storage.columns import HEADERS
from storage.errors import StorageError
from streams.descriptions import describe
from streams.events import Position
from streams.failpoints import failpoint
from streams.names import is_topic_name
from streams.records import Received
from streams.whole_file import file_sha256, remove_unfinished, whole_file

SEGMENT_SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("record_offset", pa.int64()),
        ("record_time_ms", pa.int64()),
        ("kind", pa.string()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", HEADERS),
    ],
    metadata={"searchloop": "segment/1"},
)
ARCHIVE = "archive"  # The folder beside the ledger.
ROWS_AT_ONCE = 256  # A record may have 8 MB; most have about 10 kB.

_NAME = re.compile(r"(\d{20})-(\d{20})\.parquet")


class ArchiveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The conditions for closing a segment. If a sink runs, readers see a record once its segment is closed."""

    segment_mib_max: Annotated[
        int, msgspec.Meta(ge=1, le=4096), describe("Size of raw records in the ledger that closes a segment, in MiB.")
    ] = 64
    segment_seconds_max: Annotated[
        float,
        msgspec.Meta(gt=0),
        describe(
            "Age of the oldest open record that closes a segment. A smaller value shows records earlier and "
            "makes more segments."
        ),
    ] = 60.0


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One closed file; both offsets are inclusive. path is relative to the archive's folder."""

    topic: str
    partition: int
    first_offset: int
    last_offset: int
    records: int
    bytes: int
    sha256: str
    path: str


def close_segments(connection: duckdb.DuckDBPyConnection, folder: Path) -> list[Segment]:
    """Move every record that the ledger still holds raw into closed segments, and return these segments.

    Raises OSError if a file cannot be written, duckdb.Error if the ledger cannot be written, and StorageError for a
    topic that Kafka would not accept. No record is lost then.
    """
    open_parts = connection.execute(
        "SELECT topic, partition, min(record_offset), max(record_offset), count(*) "
        "FROM records GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    if not open_parts:
        return []
    closed = []
    for topic, partition, first, last, count in open_parts:
        if not is_topic_name(topic):  # The topic becomes a folder's name, and anybody may have written the ledger.
            raise StorageError(f"ledger: expected records of Kafka topics, got the topic {topic[:200]!r}; rebuild it")
        path = Path(topic) / str(partition) / f"{first:020d}-{last:020d}.parquet"
        size, sha256 = _write(connection, folder / path, topic, partition)
        closed.append(
            Segment(
                topic=topic,
                partition=partition,
                first_offset=first,
                last_offset=last,
                records=count,
                bytes=size,
                sha256=sha256,
                path=str(path),
            )
        )
    failpoint("sink.before-listing")
    connection.execute("BEGIN")
    for segment in closed:
        list_segment(connection, segment)
    connection.execute("DELETE FROM records")  # Only this thread writes, so the records read above are all.
    connection.execute("COMMIT")
    return closed


def list_segment(connection: duckdb.DuckDBPyConnection, segment: Segment) -> None:
    """Enter a segment into the ledger's list."""
    connection.execute(
        "INSERT INTO archive_segments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", list(msgspec.structs.astuple(segment))
    )


def find_segments(folder: Path, partition: tuple[str, int] | None = None) -> list[Path]:
    """Return all segment files under the folder: by topic, partition, then first offset, longest first.

    partition: restricts the result to this topic and partition number.
    """
    found = []
    for path in folder.glob(f"{partition[0]}/{partition[1]}/*.parquet" if partition else "*/*/*.parquet"):
        if (match := _NAME.fullmatch(path.name)) and path.parent.name.isdecimal():
            order = (path.parts[-3], int(path.parent.name), int(match[1]), -int(match[2]))
            found.append((order, path))
    return [path for _, path in sorted(found)]


def read_archive(folder: Path, partition: tuple[str, int] | None = None) -> Iterator[Received]:
    """Yield every archived record once, in the order of the log within each partition.

    partition: restricts the result to this topic and partition number.
    Raises StorageError if a segment is damaged.
    """
    read: dict[tuple[str, int], int] = {}
    for path in find_segments(folder, partition):
        for record in read_segment(path):
            at = (record.position.topic, record.position.partition)
            if record.position.offset >= read.get(at, 0):
                read[at] = record.position.offset + 1
                yield record


def read_window(folder: Path, partition: tuple[str, int], first: int, end: int, *, gaps: bool) -> Iterator[Received]:
    """Yield the archived records of a partition from offset `first` to offset `end` (exclusive), in order.

    gaps: treat offsets that no segment holds as offsets at which Kafka never had a record.
    Raises StorageError, before the first record, if a segment of this window is missing; later if a segment is damaged.
    """
    named = [(match, path) for path in find_segments(folder, partition) if (match := _NAME.fullmatch(path.name))]
    wanted = [(int(match[1]), int(match[2]), path) for match, path in named]
    wanted = [(low, high, path) for low, high, path in wanted if high >= first and low < end]
    covered = first
    for low, high, _ in wanted:
        if low > covered and not gaps:
            raise _missing(folder, partition, covered, low - 1)
        covered = max(covered, high + 1)
    if covered < end and not gaps:
        raise _missing(folder, partition, covered, end - 1)
    at = first
    for _, _, path in wanted:
        for record in read_segment(path):
            if at <= record.position.offset < end:
                at = record.position.offset + 1
                yield record


def first_archived_at(folder: Path, partition: tuple[str, int], moment_ms: int) -> int | None:
    """Return the offset of the first archived record that is not older than this moment, None if there is none.

    Raises StorageError if a segment is damaged.
    """
    for path in find_segments(folder, partition):
        with _whole(path):
            rows = pq.read_table(path, columns=["record_offset", "record_time_ms"]).to_pylist()
        for row in rows:
            if row["record_time_ms"] >= moment_ms:
                return int(row["record_offset"])
    return None


def archived_bounds(folder: Path, partition: tuple[str, int]) -> tuple[int, int] | None:
    """Return a partition's first archived offset and the offset after its last one, None without archived records."""
    names = [match for path in find_segments(folder, partition) if (match := _NAME.fullmatch(path.name))]
    return (int(names[0][1]), max(int(match[2]) for match in names) + 1) if names else None


def archived_partitions(folder: Path, topic: str) -> list[int]:
    """Return the partitions of a topic that have archived records."""
    return sorted({int(path.parent.name) for path in find_segments(folder) if path.parts[-3] == topic})


def _missing(folder: Path, partition: tuple[str, int], first: int, last: int) -> StorageError:
    return StorageError(
        f"{folder}: no segment holds {partition[0]}[{partition[1]}]@{first}-{last}. Restore the missing segment from a "
        "copy; if Kafka never had a record there, say so with --gaps"
    )


def archive_holes(folder: Path) -> list[tuple[str, int, int, int]]:
    """Return the gaps below each partition's last archived offset: (topic, partition, first, last).

    No segment covers them. Kafka may never have had a record there (a transaction's marker takes an offset), or a
    segment is missing.
    """
    ends: dict[tuple[str, int], int] = {}
    holes = []
    for path in find_segments(folder):
        if match := _NAME.fullmatch(path.name):
            partition = (path.parts[-3], int(path.parent.name))
            first, last = int(match[1]), int(match[2])
            if first > ends.get(partition, 0):
                holes.append((*partition, ends.get(partition, 0), first - 1))
            ends[partition] = max(ends.get(partition, 0), last + 1)
    return holes


def read_segment(path: Path) -> Iterator[Received]:
    """Yield one segment's records as they came.

    Raises StorageError if the file is damaged: each page carries a checksum.
    """
    with _whole(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for rows in file.iter_batches(batch_size=ROWS_AT_ONCE):
            for row in rows.to_pylist():
                yield Received(
                    position=Position(topic=row["topic"], partition=row["partition"], offset=row["record_offset"]),
                    timestamp_ms=row["record_time_ms"],
                    key=row["key"],
                    value=row["value"],
                    headers=tuple((header["name"], header["value"]) for header in row["headers"]),
                )


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Raise StorageError for every Arrow error about a damaged segment."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise StorageError(
            f"{path}: expected a whole segment of the archive, got a damaged file ({' '.join(str(error).split())}); "
            "restore it from a copy, or read these offsets from Kafka again"
        ) from error


def describe_segment(folder: Path, path: Path) -> Segment:
    """Return the ledger's list entry for a segment's file.

    Raises StorageError for a file whose name is not a segment's, or that is damaged.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise StorageError(f"{path}: expected a name like {0:020d}-{9:020d}.parquet")
    with _whole(path):
        records = pq.read_metadata(path).num_rows
    return Segment(
        topic=path.parts[-3],
        partition=int(path.parent.name),
        first_offset=int(match[1]),
        last_offset=int(match[2]),
        records=records,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        path=str(path.relative_to(folder)),
    )


def _write(connection: duckdb.DuckDBPyConnection, path: Path, topic: str, partition: int) -> tuple[int, str]:
    """Write one partition's open records, completely or not at all; return the file's size and hash."""
    with whole_file(path) as aside:
        rows = connection.sql(
            "SELECT * FROM records WHERE topic = ? AND partition = ? ORDER BY record_offset", params=[topic, partition]
        ).to_arrow_reader(ROWS_AT_ONCE)
        # Close the reader in any case: an error's traceback keeps the reader, and the reader keeps the database. DuckDB
        # 2.0 waits forever to reopen a file that this process has not released.
        with (
            rows,
            pq.ParquetWriter(aside, SEGMENT_SCHEMA, compression="zstd", write_page_checksum=True) as writer,
        ):
            for batch in rows:
                writer.write_batch(batch.cast(SEGMENT_SCHEMA))
        size, sha256 = aside.stat().st_size, file_sha256(aside)
    # The next segment after a killed sink ends at another offset, so the leftovers have another name. The sink is the
    # only writer here.
    remove_unfinished(path.parent)
    return size, sha256
