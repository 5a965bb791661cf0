"""Machines that share nothing but Kafka, Elasticsearch and an S3 store: namespaces and a home of their own."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from infra.app.app import App
from infra.app.home import Home
from infra.app.installation import INSTALLATION_FILE
from infra.runs.living import known_workers
from learner.checkpoints import current_name, load_current
from services.local import Endpoints
from streams.clients import partitions_of
from streams.codec import decode
from streams.events import Position, Request, Update, fates_of
from streams.ids import group_id
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_events, read_range
from streams.topics import topic_name, version_name
from tests.commands import command
from tests.namespace import MachineCommand, Namespace

FORGOTTEN_SECONDS = 6.0
SAME_START_MS = 1000
NO_DEV = {"SEARCHLOOP_DEV__EVERY": "0", "SEARCHLOOP_DEV__PATIENCE": "0"}  # No run ends before it should.
KAFKA = KafkaSettings(session_timeout_seconds=FORGOTTEN_SECONDS, partitions=2)


class Machine:
    """A home of its own, and the commands that run on it: in namespaces of their own, behind three doors."""

    def __init__(self, root: Path, variables: dict[str, str], *, hidden: Sequence[Path] = ()) -> None:
        """root: its home, a new folder; the machine sees no other folder beside it.

        variables: those of its commands; the services that they name are its doors. hidden: further folders of this
        computer that the machine must not see.
        """
        root.mkdir()
        self.home = Home(root)
        self._variables = variables
        self._hidden = tuple(hidden)
        self._namespace: Namespace | None = None  # While the machine is on.
        self._started: list[MachineCommand] = []

    def start(self, *arguments: str, **more: str) -> MachineCommand:
        """Start `searchloop`; its output goes to a file in the home."""
        return self.execute(command(self.home.root, *arguments), "-".join(arguments[:2]), **more)

    def execute(self, line: Sequence[str], name: str, **more: str) -> MachineCommand:
        """Start any command; its output goes to the file of this name in the home. Switches the machine on."""
        if self._namespace is None:
            self._namespace = Namespace(self.home.root, doors=doors(self._variables), hidden=self._hidden)
        output = self.home.root / f"{name}.out"
        started = self._namespace.start(line, variables=self._variables | more, output=output)
        self._started.append(started)
        return started

    def said(self, name: str) -> str:
        """Return what a command has said so far."""
        return (self.home.root / f"{name}.out").read_text(errors="replace")

    def kill_worker(self, run: str, role: str) -> None:
        """Kill the worker of this role that a supervisor here keeps alive; wait for one that is just being started."""

        def killed() -> bool:
            for worker in known_workers(self.home.run(run)):
                process = self._namespace.find(worker.pid) if self._namespace and worker.role == role else None
                # The list may be older than the machine's last start, which gives the same pids again.
                if process and abs(process.create_time() * 1000 - worker.started_ms) < SAME_START_MS:
                    process.kill()
                    return True
            return False

        wait_until(killed, f"a {role} to kill")

    def cut_off(self) -> None:
        """Kill every process of this machine at once, with its doors; the next command switches it on again."""
        if self._namespace is not None:
            self._namespace.kill()
            self._namespace = None

    def stop(self) -> None:
        """Press Ctrl-C on every command that still runs."""
        for process in self._started:
            process.send_signal(signal.SIGINT)
        for process in self._started:
            process.wait(60)


def doors(variables: Mapping[str, str]) -> list[int]:
    """Return the ports of Kafka, Elasticsearch and the store that these variables name."""
    addresses = (
        f"kafka://{variables['SEARCHLOOP_KAFKA__BOOTSTRAP']}",
        variables["SEARCHLOOP_ELASTICSEARCH__URL"],
        variables["AWS_ENDPOINT_URL"],
    )
    found = [urlsplit(address) for address in addresses]
    assert all(each.hostname == "127.0.0.1" and each.port for each in found), f"not on this loopback: {addresses}"
    return [each.port for each in found if each.port]


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
    updates = {version_name(each.policy): each for each in read_events(kafka, run, Update)}
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
