"""What a killed process leaves of shared checkpoints goes away later: on the store, and on the machine that copies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from learner.checkpoints import CURRENT, Manifest, save_checkpoint
from learner.publishing import Publishing
from learner.shared_checkpoints import FETCHED, FETCHED_KEPT, SharedCheckpoints
from streams.delivery import DeliverySettings
from streams.events import PolicyRef, PolicyVersion
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.shared_store import SharedStore, StoreSettings, open_store
from streams.stopping import Stop
from streams.stored_objects import StoreAwayError
from streams.topics import version_name

OURS, THEIRS = "run-learner-a", "run-learner-b"


def reference(step: int, lineage: str = "1-ab12cd") -> PolicyRef:
    return PolicyRef(lineage=lineage, step=step, sha256=f"{step:064x}")


def make(root: Path, step: int) -> Path:
    """Write a small checkpoint, and make it CURRENT."""
    parent = reference(step - 1) if step else None

    def write(folder: Path) -> Manifest:
        (folder / "weights.txt").write_text(f"weights of step {step}")
        return Manifest(policy=reference(step), parent=parent)

    return save_checkpoint(root, reference(step), write)


def said(step: int, *, holder: str = OURS, status: str = "published") -> PolicyVersion:
    policy = reference(step)
    return PolicyVersion(
        run="run",
        policy=policy,
        parent=reference(step - 1) if step else None,
        path=f"checkpoints/{version_name(policy)}",
        status=status,
        holder=holder,
        epoch=1,
    )


@pytest.fixture
def store(tmp_path: Path) -> SharedStore:
    opened = open_store(StoreSettings(url=f"file://{tmp_path}/store"))
    assert opened is not None
    return opened


class Holding(SimpleNamespace):
    """A lease that is held, with what the log said when it was taken."""

    def keep(self) -> None:
        pass


def begun(store: SharedStore, root: Path, log: list[PolicyVersion]) -> tuple[Publishing, SimpleNamespace]:
    """Return a learner's announcements, as after its start, and the outbox with what it sent."""
    post = Post(
        run="run",
        member="learner-1",
        kafka=KafkaSettings(),
        delivery=DeliverySettings(),
        stop=Stop(),
        store=store,
    )
    publishing = Publishing(post, root)
    publishing._lease = Holding(epoch=2, holder=OURS, announced={version_name(e.policy): e for e in log})  # type: ignore[assignment]
    sent: list[PolicyVersion] = []
    return publishing, SimpleNamespace(sent=sent, send=sent.append, flush=lambda: None)


def test_a_learner_retires_what_a_kill_left_on_the_store_and_nothing_else(store: SharedStore, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    shared = SharedCheckpoints(store, "run", root)
    for step in range(8):
        shared.put(make(root, step))
    other = make(tmp_path / "elsewhere", 9)
    shared.put(other)  # Newer than this home's, and never announced.
    for step in (0, 1, 2, 3, 4, 7):  # 0 can only have been deleted by a person; 7 is newer than the current one.
        whole = root / version_name(reference(step))
        whole.rename(tmp_path / f"gone-{step}")
    (root / CURRENT).write_text(version_name(reference(6)) + "\n")
    log = [said(0), said(1), said(2, holder=THEIRS), said(3, status="retired"), said(5), said(6), said(7)]
    log.append(said(4, holder=THEIRS, status="retired"))
    publishing, outbox = begun(store, root, log)
    publishing.retire_left(outbox, reference(6))  # type: ignore[arg-type]
    names = {int(name.rpartition("-")[2]) for name in shared.names()}
    assert names == {0, 2, 5, 6, 7, 9}
    assert [(each.policy.step, each.status, each.epoch) for each in outbox.sent] == [
        (1, "retired", 2),
        (3, "retired", 2),
        (4, "retired", 2),
    ]


def test_a_copy_of_the_stores_does_not_keep_a_version_there(store: SharedStore, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    shared = SharedCheckpoints(store, "run", root)
    shared.put(make(tmp_path / "before", 1))
    make(root, 2)
    shared.fetch(version_name(reference(1)))
    publishing, outbox = begun(store, root, [said(1), said(2)])
    publishing.retire_left(outbox, reference(2))  # type: ignore[arg-type]
    assert shared.names() == [] and [each.policy.step for each in outbox.sent] == [1]


def test_a_store_that_is_away_delays_no_learner(tmp_path: Path) -> None:
    class AwayStore:
        def names(self, place: str) -> list[str]:
            raise StoreAwayError("no answer")

    publishing, outbox = begun(AwayStore(), tmp_path, [said(1)])  # type: ignore[arg-type]
    publishing.retire_left(outbox, reference(2))  # type: ignore[arg-type]
    assert outbox.sent == []


KILLED = """
import sys
from pathlib import Path
from learner.shared_checkpoints import SharedCheckpoints
from streams.failpoints import FailpointSettings, arm
from streams.shared_store import StoreSettings, open_store
arm(FailpointSettings(kill=sys.argv[4], folder=sys.argv[5]))
store = open_store(StoreSettings(url=sys.argv[1]))
SharedCheckpoints(store, "run", Path(sys.argv[2])).fetch(sys.argv[3])
"""


@pytest.mark.parametrize("place", ["folder.before-rename", "folder.after-rename"])
def test_a_copy_whose_process_is_killed_is_forgotten_like_any_other(
    store: SharedStore, tmp_path: Path, place: str
) -> None:
    made, root = tmp_path / "made", tmp_path / "copies"
    shared = SharedCheckpoints(store, "run", made)
    for step in range(1, FETCHED_KEPT + 2):
        shared.put(make(made, step))
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            store.url,
            str(root),
            version_name(reference(1)),
            place,
            str(tmp_path / "marks"),
        ],
        check=False,
        timeout=60,
    )
    assert killed.returncode == -9
    copies = SharedCheckpoints(store, "run", root)
    for step in range(2, FETCHED_KEPT + 2):
        copies.fetch(version_name(reference(step)))
    kept = sorted(path.name for path in root.iterdir())
    assert kept == [version_name(reference(step)) for step in range(2, FETCHED_KEPT + 2)]
    assert all((root / name / FETCHED).exists() for name in kept)
