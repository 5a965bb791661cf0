"""What somebody does to segments, checkpoints and settings; and what is still owed."""

from __future__ import annotations

import shutil

from learner.checkpoints import MANIFEST
from storage.archive import ARCHIVE
from storage.ledger import LEDGER
from tests.stored_events import RUN
from tests.tampering.kinds import (
    KAFKA,
    beside,
    cut,
    cut_file,
    files,
    flip_ledger,
    folder_for_segment,
    foreign_segment,
    in_kafka,
    made_up_update,
    more_in_kafka,
    older_current,
    other_optimizer,
    other_weights,
    pipe,
    raw_manifest,
    rename_policy,
    replace,
    reward_in_segment,
    unlisted_segment,
    updates_wanted,
    without_segment_rows,
)

FILE_TAMPERINGS = (
    # The archive's and the ledger's files.
    files("archive: a segment deleted", "archive", lambda run: run.segment("rewards").unlink()),
    files("archive: a segment cut", "archive", lambda run: cut(run, listed=False)),
    files("archive: a segment cut, with its hash adjusted", "archive", lambda run: cut(run, listed=True)),
    replace(
        files(
            "archive: a reward changed in a segment, with its hash adjusted", "rebuilt from the log", reward_in_segment
        ),
        kafka_rule="bytes are kept",  # Kafka's copy is the truth then, and the ledger's rows agree with it.
    ),
    files("archive: a record taken out of a segment, with its hash adjusted", "bytes are kept", without_segment_rows),
    files("archive: a segment of no bytes", "archive", lambda run: run.segment("rewards").write_bytes(b"")),
    files("archive: a folder in place of a segment", "archive", folder_for_segment),
    files(
        "archive: records in another order, with its hash adjusted",
        "archive",
        lambda run: run.rewrite_segment(
            run.segment("rewards"), lambda found: [found[0], found[2], found[1], *found[3:]]
        ),
    ),
    files(
        "archive: a record twice in a segment, with its hash adjusted",
        "archive",
        lambda run: run.rewrite_segment(run.segment("rewards"), lambda found: [*found[:2], found[1], *found[2:]]),
    ),
    files(
        "archive: a record's key changed, with its hash adjusted",
        "bytes are kept",
        lambda run: run.rewrite_segment(run.segment("rewards"), lambda found: [found[0] | {"key": b"x"}, *found[1:]]),
        KAFKA,
    ),
    files(
        "archive: a record's headers changed, with its hash adjusted",
        "bytes are kept",
        lambda run: run.rewrite_segment(
            run.segment("rewards"), lambda found: [found[0] | {"headers": [{"name": "a", "value": b"b"}]}, *found[1:]]
        ),
        KAFKA,
    ),
    replace(
        files(
            "archive: a record's time changed, with its hash adjusted",
            "rebuilt from the log",
            lambda run: run.rewrite_segment(
                run.segment("rewards"), lambda found: [found[0] | {"record_time_ms": 5}, *found[1:]]
            ),
        ),
        kafka_rule="bytes are kept",
    ),
    files("archive: another reward in a segment that nobody lists", "archive", unlisted_segment),
    files("archive: a damaged segment that nobody lists", "archive", lambda run: beside(run, 99).write_bytes(b"junk")),
    files("archive: a segment of another run's topic", "archive", foreign_segment),
    files("archive: a pipe in place of a segment", "everything can be read", lambda run: pipe(run.segment("rewards"))),
    files("archive: the folder deleted", "archive", lambda run: shutil.rmtree(run.folder / ARCHIVE)),
    files(
        "ledger: the file overwritten",
        "everything can be read",
        lambda run: (run.folder / LEDGER).write_bytes(b"x" * 9000),
    ),
    files("ledger: every page damaged", "everything can be read", flip_ledger),
    files("ledger: the file deleted", "everything can be read", lambda run: (run.folder / LEDGER).unlink()),
    files("ledger: cut", "everything can be read", lambda run: cut_file(run.folder / LEDGER)),
    files("ledger: no bytes", "everything can be read", lambda run: (run.folder / LEDGER).write_bytes(b"")),
    files("ledger: a pipe in its place", "everything can be read", lambda run: pipe(run.folder / LEDGER)),
    # Checkpoints.
    files("checkpoints: 0 deleted", "the beginning is kept", lambda run: shutil.rmtree(run.checkpoint(0))),
    files(
        "checkpoints: a file of 0 changed",
        "checkpoints",
        lambda run: (run.checkpoint(0) / "config.json").write_text("{}"),
    ),
    files(
        "checkpoints: 0 changed, with its manifest's hash adjusted",
        "manifests are the announced ones",
        lambda run: ((run.checkpoint(0) / "config.json").write_text("{}"), run.manifest(0)),
    ),
    files(
        "checkpoints: the weights of 0 changed, with the hashes adjusted",
        "weights are the policy's",
        lambda run: (other_weights(run, 0), run.manifest(0)),
    ),
    files(
        "checkpoints: the newest weights changed, with the hashes adjusted",
        "weights are the policy's",
        lambda run: (other_weights(run, -1), run.manifest(-1)),
    ),
    files(
        "checkpoints: weights changed, policy renamed, hashes adjusted",
        "head is the newest",
        lambda run: (other_weights(run, -1), rename_policy(run)),
    ),
    files("checkpoints: another version's optimizer", "checkpoints", other_optimizer),
    files(
        "checkpoints: another version's optimizer, with the hashes adjusted",
        "manifests are the announced ones",
        lambda run: (other_optimizer(run), run.manifest(-1)),
    ),
    files(
        "checkpoints: an older version's optimizer deleted, hashes adjusted",
        "chain of hashes",
        lambda run: ((run.checkpoint(-2) / "optimizer.safetensors").write_bytes(b""), run.manifest(-2)),
    ),
    files(
        "checkpoints: recent_groups emptied",
        "manifests are the announced ones",
        lambda run: run.manifest(-1, recent_groups=()),
    ),
    files(
        "checkpoints: positions set back", "manifests tell their update", lambda run: run.manifest(-1, positions={0: 1})
    ),
    files(
        "checkpoints: positions set back, update and fates adjusted",
        "manifests tell their update",
        lambda run: run.manifest(
            -1, positions={0: 1}, update=replace(run.told(-1).update, positions={0: 1}, trained=())
        ),
    ),
    files(
        "checkpoints: a parent removed",
        "manifests are the announced ones",
        lambda run: run.manifest(-2, parent=None, update=None),
    ),
    files(
        "checkpoints: a manifest that is no JSON",
        "checkpoints",
        lambda run: (run.checkpoint(-1) / MANIFEST).write_bytes(b"\x00{"),
    ),
    files("checkpoints: a manifest deleted", "checkpoints", lambda run: (run.checkpoint(-2) / MANIFEST).unlink()),
    files(
        "checkpoints: weights added that nobody lists",
        "checkpoints",
        lambda run: (run.checkpoint(-2) / "adapter_model.safetensors").write_bytes(b"x"),
    ),
    files(
        "checkpoints: CURRENT overwritten",
        "checkpoints",
        lambda run: (run.checkpoints / "CURRENT").write_bytes(b"\xff\x00/"),
    ),
    files("checkpoints: the newest deleted, CURRENT set back", "head is the newest", older_current),
    files(
        "checkpoints: all deleted",
        "lineage",
        lambda run: [shutil.rmtree(path) for path in run.checkpoints.glob("*-*-*")],
    ),
    files(
        "checkpoints: every one deleted before the first update",
        "the beginning is kept",
        lambda run: (
            run.rewrite(
                lambda records: (
                    [r for r in records if r.position.topic.endswith(".requests")][:1]
                    + [r for r in records if r.position.topic.endswith(".policy-versions")][:1]
                ),
                topics=True,
            ),
            shutil.rmtree(run.checkpoints),
        ),
    ),
    files(
        "checkpoints: a position that no table holds",
        "checkpoints",
        lambda run: run.manifest(-1, positions={0: 10**30}),
    ),
    files(
        "checkpoints: a position of -1",
        "checkpoints",
        lambda run: run.manifest(-1, positions={0: -1}),
    ),
    files(
        "checkpoints: a metric that is infinite",
        "checkpoints",
        lambda run: raw_manifest(run, b'"loss":0.5', b'"loss":1e400'),
    ),
    files(
        "checkpoints: a key that nobody knows",
        "manifests are the announced ones",
        lambda run: raw_manifest(run, b"{", b'{"x":1,', count=1),
    ),
    files(
        "checkpoints: a key twice",
        "manifests are the announced ones",
        lambda run: raw_manifest(run, b"{", b'{"positions":{"0":1},', count=1),
    ),
    files(
        "checkpoints: a listed file that is a path",
        "checkpoints",
        lambda run: run.manifest(-1, files={"../../settings.json": "0"}),
    ),
    files("checkpoints: CURRENT names an older one", "head is the newest", lambda run: run.point_to(-2)),
    files("checkpoints: CURRENT names the first one", "head is the newest", lambda run: run.point_to(0)),
    files("checkpoints: an update made up, with its checkpoint and CURRENT", "versions are announced", made_up_update),
    files(
        "checkpoints: a pipe in place of CURRENT",
        "everything can be read",
        lambda run: pipe(run.checkpoints / "CURRENT"),
    ),
    # Kafka's topics.
    files(
        "Kafka: the topic of rewards deleted",
        "offsets",
        lambda run: run.topics.records.pop((f"{RUN}.rewards", 0)),
        KAFKA,
    ),
    files(
        "Kafka: the topic of updates deleted",
        "offsets",
        lambda run: run.topics.records.pop((f"{RUN}.updates", 0)),
        KAFKA,
    ),
    files("Kafka: a record's time changed", "bytes are kept", lambda run: in_kafka(run, timestamp_ms=1), KAFKA),
    files("Kafka: a record's key changed", "bytes are kept", lambda run: in_kafka(run, key=b"x"), KAFKA),
    files(
        "Kafka: a record's headers changed", "bytes are kept", lambda run: in_kafka(run, headers=(("a", b"b"),)), KAFKA
    ),
    files("Kafka: a record made a tombstone", "bytes are kept", lambda run: in_kafka(run, value=None), KAFKA),
    files(
        "Kafka: a record deleted", "bytes are kept", lambda run: run.topics.records[f"{RUN}.rewards", 0].pop(3), KAFKA
    ),
    # What is owed.
    files("settings overwritten", "everything can be read", lambda run: (run.folder / "settings.json").write_text("{")),
    files("the run stopped before its target", "the run has ended", lambda run: updates_wanted(run, 99)),
    files("Kafka holds more than the ledger", "everything is stored", more_in_kafka, KAFKA),
)
