"""What an earlier proof has read of a log, so that the next one reads only what is new.

A record's bytes count as proven if they lie in a closed segment and gave the rows that the ledger has. Of these
records, three things are kept: the sha256 of each segment, the sums of hashes of their rows by bucket of offsets, and
the hashes by which later records are compared with them. The next proof compares all three with what it finds, which
needs no record to be decoded. Whoever can change the log can change this memory, too; `--rebuild` does not use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from storage.contents import BUCKET_RECORDS
from storage.log import Log
from storage.schema import migrations
from storage.verification.account import Partition
from streams.refusals import KnownRun
from streams.whole_file import file_sha256, whole_folder

PLACE = "proven"  # A folder beside the ledger.
STATE, DIGESTS = "state.json", "digests.parquet"
FORMAT = 1  # Grows when a rule reads more of a record, so that older proofs no longer count.
ROWS_AT_ONCE = 20_000
Sums = dict[tuple[str, str, int, int], tuple[int, int, int]]  # table, topic, partition, bucket → rows, low, high

HASHES = ("sha256", "event_sha256", "inner_sha256")
PACKED = ", ".join(f"unhex({name}) AS {name}" for name in HASHES)
UNPACKED = ", ".join(f"lower(hex({name})) AS {name}" for name in HASHES)


class ProvenBucket(msgspec.Struct, frozen=True, array_like=True):
    """The rows of one table that the records of one bucket of offsets gave: their number and two sums of hashes."""

    table: str
    topic: str
    partition: int
    bucket: int
    rows: int
    low: str
    high: str


class Proven(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of a proof.

    basis: a hash of what decides how a record is judged; a state with another one does not count. below: by
    "topic/partition", the offset below which every record is proven. segments: sha256 by path. digests_sha256: of the
    file of hashes beside this one.
    """

    basis: str
    below: dict[str, int]
    segments: dict[str, str]
    buckets: tuple[ProvenBucket, ...]
    digests_sha256: str


class Earlier:
    """An earlier proof's state, as far as the log still is what it was. Without a state, nothing is proven."""

    def __init__(self, log: Log, folder: Path | None, terms: KnownRun | None) -> None:
        """folder: the run's; None uses no state."""
        self._folder = folder / PLACE if folder is not None else None
        state = _read(self._folder, basis_of(terms)) if self._folder is not None else None
        now = {row["path"]: row["sha256"] for row in log.rows("SELECT path, sha256 FROM archive_segments")}
        self._below: dict[str, int] = {}
        self._void: set[str] = set()
        self.sums: Sums = {}
        if state is None:
            return
        changed = {path for path, sha256 in state.segments.items() if now.get(path) != sha256}
        self._void = {path.rpartition("/")[0] for path in changed}
        self._below = {key: below for key, below in state.below.items() if key not in self._void}
        for each in state.buckets:
            if _key((each.topic, each.partition)) in self._below:
                at = (each.table, each.topic, each.partition, each.bucket)
                self.sums[at] = (each.rows, int(each.low), int(each.high))

    def below(self, partition: Partition) -> int:
        """Return the offset below which every record of a partition is proven: the beginning of a bucket."""
        return self._below.get(_key(partition), 0)

    def is_void(self, partition: Partition) -> bool:
        """Return whether a segment that was read is gone or another one now: the whole partition is to be read."""
        return _key(partition) in self._void

    def add_digests(self, log: Log, floors: Mapping[Partition, int]) -> None:
        """Add the kept hashes to the table `digests`: those of proven records below each partition's floor."""
        if not self._below or self._folder is None:
            return
        with pq.ParquetFile(self._folder / DIGESTS) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                arriving = pa.Table.from_batches([batch])
                topics, numbers = arriving.column("topic").to_pylist(), arriving.column("partition").to_pylist()
                offsets = arriving.column("record_offset").to_pylist()
                wanted = [
                    offset < min(floors.get((topic, number), 0), self.below((topic, number)))
                    for topic, number, offset in zip(topics, numbers, offsets, strict=True)
                ]
                arriving = arriving.filter(pa.array(wanted, pa.bool_()))
                log.connection.execute(f"INSERT INTO digests BY NAME SELECT * REPLACE ({UNPACKED}) FROM arriving")


def proven_now(log: Log, whole: Mapping[Partition, int], sums: Sums, terms: KnownRun | None) -> tuple[Proven, Log]:
    """Return the state after a proof without a finding, and the log that has the hashes; see `keep`.

    whole: the partitions of which every record is proven, by this proof or an earlier one, and where each ends.
    """
    below: dict[str, int] = {}
    segments: dict[str, str] = {}
    for partition, end in whole.items():
        reached, mine = _archived(log, partition)
        if (floor := min(reached, end) // BUCKET_RECORDS * BUCKET_RECORDS) > 0:
            below[_key(partition)] = floor
            segments |= mine
    buckets = tuple(
        ProvenBucket(table, topic, partition, bucket, rows, str(low), str(high))
        for (table, topic, partition, bucket), (rows, low, high) in sorted(sums.items())
        if (bucket + 1) * BUCKET_RECORDS <= below.get(_key((topic, partition)), 0)
    )
    return Proven(basis_of(terms), below, segments, buckets, ""), log


def keep(folder: Path, found: tuple[Proven, Log]) -> None:
    """Write the state into the run's folder. The log must still be open. Raises OSError."""
    proven, log = found
    with whole_folder(folder / PLACE, replace=True) as aside:
        rows = log.connection.sql(
            f"SELECT d.* REPLACE ({PACKED}) FROM digests d ORDER BY topic, partition, record_offset"
        ).to_arrow_reader(ROWS_AT_ONCE)
        with pq.ParquetWriter(aside / DIGESTS, rows.schema, compression="zstd") as writer:
            for batch in rows:
                writer.write_table(_below(pa.Table.from_batches([batch]), proven.below))
        proven = msgspec.structs.replace(proven, digests_sha256=file_sha256(aside / DIGESTS))
        (aside / STATE).write_bytes(msgspec.json.encode(proven))


def basis_of(terms: KnownRun | None) -> str:
    """Return a hash of the schema, of this code's rules and of the run's terms."""
    parts = [str(FORMAT), duckdb.__version__, *(step.sha256 for step in migrations()), repr(terms)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(folder: Path, basis: str) -> Proven | None:
    """Return a whole state with this basis; None if there is none. A damaged one is as good as none."""
    try:
        state = msgspec.json.decode((folder / STATE).read_bytes(), type=Proven)
        whole = state.basis == basis and file_sha256(folder / DIGESTS) == state.digests_sha256
    except (OSError, ValueError):
        return None
    return state if whole else None


def _archived(log: Log, partition: Partition) -> tuple[int, dict[str, str]]:
    """Return the offset up to which segments hold every kept record of a partition, and their sha256 by path."""
    rows = log.rows(
        "SELECT path, sha256, last_offset FROM archive_segments WHERE topic = ? AND partition = ?", partition
    )
    found = {str(row["path"]): (str(row["sha256"]), int(str(row["last_offset"]))) for row in rows}
    (beside,) = log.rows("SELECT min(record_offset) AS first FROM records WHERE topic = ? AND partition = ?", partition)
    end = max((last + 1 for _, last in found.values()), default=0)
    end = end if beside["first"] is None else min(end, int(beside["first"]))
    return end, {path: sha256 for path, (sha256, _) in found.items()}


def _below(rows: pa.Table, below: Mapping[str, int]) -> pa.Table:
    places: Sequence[tuple[str, int, int]] = list(
        zip(*(rows.column(name).to_pylist() for name in ("topic", "partition", "record_offset")), strict=True)
    )
    return rows.filter(pa.array([at < below.get(_key((topic, number)), 0) for topic, number, at in places], pa.bool_()))


def _key(partition: Partition) -> str:
    return f"{partition[0]}/{partition[1]}"
