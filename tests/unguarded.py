"""`searchloop` without its guarantees, to measure what they cost; the product has no such switch.

Taken away are: waiting for acknowledgements (one replica's is asked for, and not waited for), the idempotent producer,
commits that wait, fsync, the sha256 of records and files (but not the one that names a version's weights), and the
offsets in the sink's transaction. What is left does the same work: same events, same checkpoints, same rows.

Run as a script it is `searchloop` so: python tests/unguarded.py VERB…
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kafka
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

import learner.checkpoints
import learner.versions
import learner.workers
import search_env.workers
import storage.archive
import storage.ledger
import streams.clients
import streams.delivery
import streams.refusals
from streams.delivery import Outbox
from streams.records import Received

NO_HASH = "0" * 64


def take_away() -> None:
    """Replace what guards by what does not, in this process."""
    streams.clients.KafkaProducer = _careless_producer  # type: ignore[misc,assignment]
    Outbox.flush = _forget  # type: ignore[method-assign]
    for module in (learner.workers, search_env.workers, streams.delivery):
        module.commit = _commit_soon  # type: ignore[attr-defined]
    os.fsync = lambda _: None  # type: ignore[assignment]
    # Still hashed: the weights, which their hash names, and which is checked.
    learner.checkpoints.synced_hashes = lambda folder: {path.name: NO_HASH for path in folder.iterdir()}
    learner.checkpoints.file_sha256 = lambda _: NO_HASH
    storage.archive.file_sha256 = lambda _: NO_HASH
    for module in (search_env.workers, streams.refusals):
        module.content_sha256 = lambda _: NO_HASH  # type: ignore[attr-defined]
    read_manifest = learner.checkpoints.read_manifest
    for module in (learner.checkpoints, learner.versions):
        module.read_manifest = lambda folder, *, verify: read_manifest(folder, verify=False)  # type: ignore[attr-defined]
    storage.ledger._advance = lambda *_: None


def _careless_producer(**options: Any) -> Any:
    return kafka.KafkaProducer(**options | {"acks": 1, "enable_idempotence": False})


def _forget(outbox: Outbox) -> None:
    outbox._pending.clear()


def _commit_soon(consumer: Any, records: Sequence[Received]) -> None:
    offsets = {TopicPartition(r.position.topic, r.position.partition): r.position.offset + 1 for r in records}
    if offsets:
        consumer.commit_async({item: OffsetAndMetadata(offset, "", -1) for item, offset in offsets.items()})


def main() -> None:
    """Be `searchloop` without guarantees."""
    take_away()
    from infra.cli import main as searchloop

    searchloop()


if __name__ == "__main__":
    main()
