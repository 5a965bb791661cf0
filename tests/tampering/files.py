"""What somebody does to segments, checkpoints and settings; and what is still owed."""

from __future__ import annotations

import shutil

from learner.checkpoints import MANIFEST
from storage.archive import ARCHIVE
from storage.ledger import LEDGER
from tests.tampering.kinds import (
    KAFKA,
    cut,
    files,
    flip_ledger,
    more_in_kafka,
    older_current,
    other_optimizer,
    other_weights,
    rename_policy,
    replace,
    reward_in_segment,
    updates_wanted,
    without_segment_rows,
)

FILE_TAMPERINGS = (
    # The archive's and the ledger's files.
    files("archive: a segment deleted", "archive", lambda run: run.segment("rewards").unlink()),
    files("archive: a segment cut", "archive", lambda run: cut(run, listed=False)),
    files("archive: a segment cut, with its hash adjusted", "archive", lambda run: cut(run, listed=True)),
    files("archive: a reward changed in a segment, with its hash adjusted", "rebuilt from the log", reward_in_segment),
    files("archive: a record taken out of a segment, with its hash adjusted", "bytes are kept", without_segment_rows),
    files("archive: the folder deleted", "archive", lambda run: shutil.rmtree(run.folder / ARCHIVE)),
    files(
        "ledger: the file overwritten",
        "everything can be read",
        lambda run: (run.folder / LEDGER).write_bytes(b"x" * 9000),
    ),
    files("ledger: every page damaged", "everything can be read", flip_ledger),
    files("ledger: the file deleted", "everything can be read", lambda run: (run.folder / LEDGER).unlink()),
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
    # What is owed.
    files("settings overwritten", "everything can be read", lambda run: (run.folder / "settings.json").write_text("{")),
    files("the run stopped before its target", "the run has ended", lambda run: updates_wanted(run, 99)),
    files("Kafka holds more than the ledger", "everything is stored", more_in_kafka, KAFKA),
)
