"""Machines that share no disk: homes of their own, and between them Kafka, Elasticsearch and an S3 store."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from infra.app.app import App
from infra.app.home import Home
from infra.app.installation import INSTALLATION_FILE
from learner.checkpoints import current_name, load_current
from services.local import Endpoints
from streams.clients import partitions_of
from streams.codec import decode
from streams.events import Position, Request, Update, fates_of
from streams.ids import group_id
from streams.kafka_settings import KafkaSettings
from streams.lease import counted
from streams.ranges import log_bounds, read_events, read_range
from streams.topics import topic_name, version_name
from tests.commands import ROOT, command

FORGOTTEN_SECONDS = 6.0
NO_DEV = {"SEARCHLOOP_DEV__EVERY": "0", "SEARCHLOOP_DEV__PATIENCE": "0"}  # No run ends before it should.
KAFKA = KafkaSettings(session_timeout_seconds=FORGOTTEN_SECONDS, partitions=2)


class Machine:
    """A home of its own, and the commands that run on it."""

    def __init__(self, root: Path, variables: dict[str, str]) -> None:
        root.mkdir()
        self.home = Home(root)
        self._variables = variables
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a command; its output goes to a file in the home."""
        output = (self.home.root / f"{'-'.join(arguments[:2])}.out").open("ab")
        process = subprocess.Popen(
            command(self.home.root, *arguments),
            cwd=ROOT,
            env=self._variables | more,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def said(self, name: str) -> str:
        """Return what a command has said so far."""
        return (self.home.root / f"{name}.out").read_text(errors="replace")

    def cut_off(self) -> None:
        """Kill every process of this machine at once, the workers of its commands, too."""
        doomed = [psutil.Process(each.pid) for each in self._started if each.poll() is None]
        doomed += [child for process in doomed for child in process.children(recursive=True)]
        for process in doomed:
            process.kill()
        psutil.wait_procs(doomed, timeout=30)

    def stop(self) -> None:
        """Press Ctrl-C on every command that still runs."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._started:
            process.wait(60)


def wait_until(true: Callable[[], bool], what: str, seconds: float = 240) -> None:
    """Return when it is true. Raises AssertionError if it does not become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.2)


def begin(machine: Machine, world: App, run: str) -> None:
    """Give a machine the small world's index, and its warmed-up run under another name."""
    shutil.copy2(world.home.root / INSTALLATION_FILE, machine.home.root / INSTALLATION_FILE)
    shutil.copytree(world.home.index("small"), machine.home.index("small"))
    shutil.copytree(world.home.run("first"), machine.home.run(run))


def steps(machine: Machine, run: str) -> int:
    name = current_name(machine.home.run(run).checkpoints)
    return int(name.rpartition("-")[2]) if name else 0


def endpoints(variables: dict[str, str]) -> Endpoints:
    return Endpoints(
        kafka=variables["SEARCHLOOP_KAFKA__BOOTSTRAP"], elasticsearch=variables["SEARCHLOOP_ELASTICSEARCH__URL"]
    )


def fates(kafka: KafkaSettings, app: App, run: str) -> tuple[dict[str, int], list[str]]:
    """Return what became of a run's requests, from its topics alone: counts, and a line for each that went wrong.

    Each request below the consumed ones must have one fate on the lineage of the newest policy, and no number of a
    request may be published twice or be left out.
    """
    requests = partitions_of(kafka, [topic_name(run, "requests")])
    made: dict[str, tuple[int, int]] = {}
    numbers: Counter[str] = Counter()
    for place, (first, end) in log_bounds(kafka, requests).items():
        for record in read_range(kafka, place, first, end, client_id=f"{run}-fates"):
            event = decode(record.value)
            assert isinstance(event, Request)
            numbers[event.request_id] += 1
            at = record.position
            made[group_id(run, Position(topic=at.topic, partition=at.partition, offset=at.offset))] = (
                at.partition,
                at.offset,
            )
    wrong = [f"request {name} was published {count} times" for name, count in numbers.items() if count > 1]
    expected = {f"{run}-{number:08d}" for number in range(len(numbers))}
    wrong += [f"request {name} was never published" for name in sorted(expected - set(numbers))]
    updates = {version_name(each.policy): each for each in counted(read_events(kafka, run, Update))}
    manifest = load_current(app.home.run(run).checkpoints)[1]
    name, ended = version_name(manifest.policy), Counter[str]()
    while (update := updates.get(name)) is not None:
        ended.update(group for groups in fates_of(update).values() for group in groups)
        name = version_name(update.parent)
    wrong += [f"group {group} has {count} fates" for group, count in ended.items() if count > 1]
    wrong += [f"group {group} is of no request" for group in ended if group not in made]
    below = manifest.requests_consumed
    lost = [
        group for group, (partition, offset) in made.items() if offset < below.get(partition, 0) and not ended[group]
    ]
    wrong += [f"group {group} was lost" for group in lost]
    counts = {
        "published": len(numbers),
        "consumed": sum(below.values()),
        "ended": len(ended),
        "updates": manifest.policy.step,
    }
    return counts, wrong
