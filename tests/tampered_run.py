"""Tools of somebody who rewrites a finished run, and adjusts what he can so that nobody notices."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from learner.checkpoints import CURRENT, MANIFEST, MANIFEST_SHA256, Manifest
from storage.archive import ARCHIVE, SEGMENT_SCHEMA, find_segments
from storage.ledger import LEDGER
from streams.codec import content_sha256, decode, encode_event
from streams.events import Event, Generation, Reward, Update
from streams.records import Received
from streams.topics import kind_of
from streams.whole_file import file_sha256
from tests.finished_run import FakeTopics, store

E = TypeVar("E", bound=Event)


class Tampered:
    """A copy of a run, to be tampered with: its folder, and its topics."""

    def __init__(self, folder: Path, topics: FakeTopics) -> None:
        self.folder = folder
        self.topics = FakeTopics(topics.all())
        self.checkpoints = folder / "checkpoints"

    def sql(self, *statements: str) -> None:
        """Change rows of the ledger alone."""
        with duckdb.connect(str(self.folder / LEDGER)) as connection:
            for statement in statements:
                connection.execute(statement)

    def value(self, sql: str) -> Any:
        """Return the one value that a query gives."""
        with duckdb.connect(str(self.folder / LEDGER), read_only=True) as connection:
            return connection.execute(sql).fetchall()[0][0]

    def wipe(self, kind: str) -> None:
        """Take a topic out of ledger and archive, as if it had never been."""
        table = kind.replace("-", "_")
        self.sql(
            f"DELETE FROM {table} WHERE topic LIKE '%.{kind}'",
            *({"rewards": ["DELETE FROM outcomes"], "updates": ["DELETE FROM update_groups"]}.get(kind, [])),
            f"DELETE FROM sink_offsets WHERE topic LIKE '%.{kind}'",
            f"DELETE FROM archive_segments WHERE topic LIKE '%.{kind}'",
        )
        for path in (self.folder / ARCHIVE).glob(f"*.{kind}"):
            shutil.rmtree(path)

    def rewrite(
        self, change: Callable[[list[Received]], list[Received]], *, topics: bool = False, rehash: bool = False
    ) -> None:
        """Write ledger and archive anew from changed records. topics: Kafka's copy too.

        rehash: rewards get the hash of the generation that now lies at their source.
        """
        records = change(self.topics.all())
        if rehash:
            at = {r.position: r.value or b"" for r in records}
            records = [_rehashed(record, at) for record in records]
        (self.folder / LEDGER).unlink()
        shutil.rmtree(self.folder / ARCHIVE)
        store(self.folder, records)
        if topics:
            self.topics = FakeTopics(records)

    def events(self, kind: type[E], change: Callable[[E], Event | None], **how: bool) -> None:
        """Rewrite every event of a kind; None drops its record, and those after it move up."""

        def changed(records: list[Received]) -> list[Received]:
            found: list[Received] = []
            for record in records:
                try:
                    event: Event | None = decode(record.value)
                except Exception:  # Not an event: nothing to change in it.
                    found.append(record)
                    continue
                if isinstance(event, kind):
                    event = change(event)
                if event is not None:
                    found.append(msgspec.structs.replace(record, value=encode_event(event)))
            return closed_up(found)

        self.rewrite(changed, **how)

    def segment(self, kind: str, number: int = 0) -> Path:
        """Return a segment's file."""
        return [path for path in find_segments(self.folder / ARCHIVE) if kind_of(path.parts[-3]) == kind][number]

    def list_segment(self, path: Path, **columns: object) -> None:
        """Let the ledger list a segment as it is now."""
        listed = {"sha256": file_sha256(path), "bytes": path.stat().st_size, **columns}
        sets = ", ".join(f"{name} = {value!r}" for name, value in listed.items())
        self.sql(f"UPDATE archive_segments SET {sets} WHERE path = '{path.relative_to(self.folder / ARCHIVE)}'")

    def rewrite_segment(self, path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """Rewrite a segment's rows, and list it with its new hash."""
        rows = change(pq.read_table(path).to_pylist())
        pq.write_table(pa.Table.from_pylist(rows, SEGMENT_SCHEMA), path, compression="zstd", write_page_checksum=True)
        self.list_segment(path, records=len(rows))

    def checkpoint(self, number: int) -> Path:
        """Return a checkpoint's folder: 0 is the first, -1 the newest."""
        return sorted(self.checkpoints.glob("*-*-*"), key=lambda path: path.name[-6:])[number]

    def manifest(self, number: int, **changes: Any) -> None:
        """Change a manifest, give it the hashes of the files as they are now, and adjust its own hash."""
        folder = self.checkpoint(number)
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        files = {name: file_sha256(folder / name) for name in manifest.files}
        content = msgspec.json.encode(msgspec.structs.replace(manifest, **{"files": files, **changes}))
        (folder / MANIFEST).write_bytes(content)
        (folder / MANIFEST_SHA256).write_text(hashlib.sha256(content).hexdigest() + "\n")

    def told(self, number: int) -> Manifest:
        """Return a manifest."""
        return msgspec.json.decode((self.checkpoint(number) / MANIFEST).read_bytes(), type=Manifest)

    def point_to(self, number: int) -> None:
        """Let CURRENT name a checkpoint."""
        (self.checkpoints / CURRENT).write_text(self.checkpoint(number).name + "\n")


def closed_up(records: list[Received]) -> list[Received]:
    """Return the records with their offsets closed up."""
    ends: dict[str, int] = {}
    found = []
    for record in records:
        topic = record.position.topic
        at = ends.get(topic, 0)
        ends[topic] = at + 1
        found.append(msgspec.structs.replace(record, position=msgspec.structs.replace(record.position, offset=at)))
    return found


def _rehashed(record: Received, at: dict[Any, bytes]) -> Received:
    try:
        event = decode(record.value)
    except Exception:
        return record
    if not isinstance(event, Reward) or event.source not in at:
        return record
    source = decode(at[event.source])
    assert isinstance(source, Generation)
    event = msgspec.structs.replace(event, content_sha256=content_sha256(at[event.source]))
    return msgspec.structs.replace(record, value=encode_event(event))


def rechained(event: Update, change: Callable[[Update], Update], step: int) -> Update:
    """Return the update, changed if it is the one of this step."""
    return change(event) if event.policy.step == step else event
