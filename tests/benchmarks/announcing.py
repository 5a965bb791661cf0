"""How soon a new policy version writes: from its announcement to the first candidate, and how old trained groups are.

1. Announcement to first candidate. A stand-in for the learner writes checkpoints of the demo's policy and announces
   them as the learner does, each with one request granted; a real generator in a process of its own, with a home of its
   own if there is a store, answers. The clock begins when the checkpoint is whole on the learner's disk, so storing and
   fetching count. It ends with the timestamp of the group's record, which the generator sets when it sends the group.
   Three sides in turn: one folder for both (no store), a store in a folder, and an object store (moto's S3 server,
   which is slower than a real one).
2. Policy lag, with --run: of the groups that a run's updates were made from, the mean and the largest number of updates
   between the version that wrote a group and the version that learned from it.

Run: python tests/benchmarks/announcing.py [--versions 30] [--store none,folder,s3]
or, on a log of your own: … --kafka HOST:PORT --run RUN
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from learner.batches import BatchSettings
from learner.checkpoints import Manifest
from learner.generation import GenerationSettings
from learner.learning import write_policy_checkpoint
from learner.policy import build_tiny
from learner.policy_settings import TinySettings
from learner.prompts import PromptSettings, tokenize_request
from learner.shared_checkpoints import SharedCheckpoints
from learner.workers import run_generator
from services.local import LocalServices
from services.settings import LocalSettings
from streams.clients import connect_producer, create_topics, partitions_of
from streams.clock import now_ms
from streams.codec import decode
from streams.delivery import DeliverySettings, Outbox
from streams.events import Generation, PolicyRef, PolicyVersion, Request, Reward, Update
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.ranges import log_bounds, read_events, read_range
from streams.shared_store import StoreSettings, open_store
from streams.stopping import Stop
from streams.topics import topic_name
from streams.whole_file import file_sha256
from tests.object_store import BUCKET, s3_server

GOALS_MS = {"none": 250, "folder": 250, "s3": 2000}
WARM = 3  # Versions that are not counted: the first one loads the model.
DELIVERY = DeliverySettings()
WORDS = ["red patch cable", "blue toner cartridge", "wireless noise cancelling headphones", "garden hose connector"]


def main() -> None:
    """Measure, and print a table and one JSON line for each row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--versions", type=int, default=30, help="announcements to measure, of each side")
    parser.add_argument("--store", default="none,folder,s3", help="sides to measure")
    parser.add_argument("--kafka", help="address of a broker that holds the log of a run")
    parser.add_argument("--run", help="this run's policy lag")
    parser.add_argument("--generate", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        generate(*options.generate)
    elif options.run:
        show_lag(KafkaSettings(bootstrap=options.kafka), options.run)
    else:
        show_announcing(options.store.split(","), options.versions)


def show_announcing(sides: list[str], versions: int) -> None:
    """Measure the sides in turn, version by version, on one broker, and print their rows."""
    with tempfile.TemporaryDirectory() as folder, s3_server() as bucket, own_kafka() as kafka:
        os.environ.update(bucket)
        learners = {side: Announcer(side, kafka, Path(folder) / side) for side in sides}
        try:
            found: dict[str, list[int]] = {side: [] for side in sides}
            for step in range(versions + WARM):
                for side, learner in learners.items():
                    found[side].append(learner.announce(step))
        finally:
            for learner in learners.values():
                learner.close()
    print(f"{'store':>8}{'versions':>10}{'median ms':>11}{'p90 ms':>8}{'max ms':>8}{'goal ms':>9}")
    for side, all_ms in found.items():
        ms = sorted(all_ms[WARM:])
        row = {
            "store": side,
            "versions": len(ms),
            "median_ms": statistics.median(ms),
            "p90_ms": ms[int(len(ms) * 0.9)],
            "max_ms": ms[-1],
            "goal_ms": GOALS_MS[side],
        }
        print(f"{side:>8}" + "".join(f"{row[name]:>{width}}" for name, width in zip(
            ("versions", "median_ms", "p90_ms", "max_ms", "goal_ms"), (10, 11, 8, 8, 9), strict=True)))  # fmt: skip
        print(json.dumps(row))


class Announcer:
    """A stand-in for the learner: real checkpoints, real announcements, one request granted with each."""

    def __init__(self, side: str, kafka: KafkaSettings, folder: Path) -> None:
        self.run = f"announcing-{side}"
        self._kafka = kafka
        self._checkpoints = folder / "learner" / "checkpoints"
        url = {"none": "", "folder": f"file://{folder}/store", "s3": f"s3://{BUCKET}/{side}"}[side]
        store = open_store(StoreSettings(url=url))
        self._shared = SharedCheckpoints(store, self.run, self._checkpoints) if store is not None else None
        create_topics(kafka, self.run)
        self._outbox = Outbox(connect_producer(kafka, client_id=self.run), self.run, stage="learner", settings=DELIVERY)
        self._policy = build_tiny(WORDS * 4, TinySettings())
        self._seen = 0
        home = folder / ("generator" if store is not None else "learner")
        self._generator = subprocess.Popen(
            [sys.executable, __file__, "--generate", kafka.bootstrap, self.run, str(home), url],
            stdin=subprocess.PIPE,
        )

    def announce(self, step: int) -> int:
        """Make a version, announce it, and return the milliseconds until its group was sent."""
        request = Request(
            request_id=f"{self.run}-{step:08d}", run=self.run, query_id=f"q{step}", query=WORDS[2], index="i-1",
            split="train", made_at_ms=now_ms(),
        )  # fmt: skip
        self._outbox.send(request, partition=0)
        self._outbox.flush()
        manifest = Manifest(policy=PolicyRef(lineage="1-aaaaaa", step=step, sha256=""), parent=None)
        folder, kept = write_policy_checkpoint(self._checkpoints, self._policy, manifest, None)
        began = now_ms()
        if self._shared is not None:
            self._shared.put(folder)
        self._outbox.send(
            PolicyVersion(
                run=self.run,
                policy=kept.policy,
                parent=None,
                path=f"checkpoints/{folder.name}",
                requests_admitted={0: step + 1},
                manifest_sha256=file_sha256(folder / "manifest.json"),
                made_at_ms=began,
            )
        )
        self._outbox.flush()
        while True:
            if self._generator.poll() is not None:
                raise SystemExit(f"announcing: the generator of {self.run} ended; see above")
            for sent_ms, group in self._groups():
                if group.policy.step == step:
                    return sent_ms - began
            time.sleep(0.05)

    def close(self) -> None:
        """End the generator."""
        self._generator.terminate()
        self._generator.wait()

    def _groups(self) -> Iterator[tuple[int, Generation]]:
        place = partitions_of(self._kafka, [topic_name(self.run, "generations")])[0]
        ((_, end),) = log_bounds(self._kafka, [place]).values()
        records = read_range(self._kafka, place, self._seen, end, client_id="announcing")
        self._seen = end
        for record in records:
            if isinstance(event := decode(record.value), Generation):
                yield record.timestamp_ms, event


def generate(bootstrap: str, run: str, home: str, url: str) -> None:
    """Be the generator of a run until the end of the process."""
    run_generator(
        Post(
            run=run,
            member="generator-1",
            kafka=KafkaSettings(bootstrap=bootstrap, partitions=1),
            delivery=DELIVERY,
            stop=Stop(),
            store=open_store(StoreSettings(url=url)),
            machine="here",
        ),
        checkpoints=Path(home) / "checkpoints",
        seed=0,
        generation=GenerationSettings(),
        encode_prompt=partial(tokenize_request, settings=PromptSettings()),
        batch=BatchSettings(groups=1, staleness_max=1),
    )


def show_lag(kafka: KafkaSettings, run: str) -> None:
    """Print how old the groups were that a run learned from."""
    written = {reward.group_id: reward.generation.policy.step for reward in read_events(kafka, run, Reward)}
    lags = [
        update.parent.step - written[group]
        for update in read_events(kafka, run, Update)
        for group in (*update.trained, *update.flat)
        if group in written
    ]
    row = {"run": run, "groups": len(lags), "lag_mean": round(statistics.mean(lags), 3), "lag_max": max(lags)}
    print(json.dumps(row))


@contextmanager
def own_kafka() -> Iterator[KafkaSettings]:
    """Give a broker of this script's own."""
    with tempfile.TemporaryDirectory(prefix="searchloop-announcing-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        services = LocalServices(Path(folder), LocalSettings(quick_start=True), attached=True)
        try:
            yield KafkaSettings(bootstrap=services.up().kafka, partitions=1)
        finally:
            services.remove()


if __name__ == "__main__":
    main()
