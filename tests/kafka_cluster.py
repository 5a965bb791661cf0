"""Three Kafka brokers for tests, on the artefacts of the embedded one: they are killed, frozen, and cut off.

Where the kernel allows it each broker has a network namespace of its own on a bridge, so that one can be cut off from
the other two while clients still reach it, or from everybody. Elsewhere they share the loopback device, `can_cut` is
False, and a frozen process (SIGSTOP) is the nearest thing: it is silent too, but it does not act on what it missed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaError
from kafka.protocol.admin.topics import ElectionType

from services.artefacts import cache_directory, provision_artefacts, read_lock, silent
from services.jdks import find_jdks, jdk_for_kafka
from services.kafka import LocalKafka
from services.processes import free_ports
from streams.clients import connect_admin
from streams.errors import DeliveryError
from streams.kafka_settings import KafkaSettings

NODES = (1, 2, 3)
PORT, CONTROLLER_PORT = 9092, 9093  # In a namespace of its own every broker may have the same ones.
HEAP_MEGABYTES = 256
WAIT_SECONDS = 240.0  # Only so that nothing hangs for ever: on a busy machine three brokers take minutes.
# A machine may let us make namespaces and still carry nothing between them: the last try does without.
TRIES_IN_NAMESPACES = 2
FIRST_TRIES_SECONDS = 150.0
TAIL_BYTES = 1500
LOOK_SECONDS = 0.1


class KafkaCluster:
    """Three brokers that are controllers, too; they end with this process, also when it is killed.

    nodes: by their number, 1 to 3. replication: every topic that the tests make has three replicas.
    """

    def __init__(self, home: Path, *, namespaces: bool) -> None:
        """home: an empty folder for data and logs. namespaces: whether each broker gets a namespace of its own."""
        self.can_cut = namespaces
        self._tag = f"sl{secrets.token_hex(2)}"
        self._subnet = f"10.213.{secrets.randbelow(250) + 1}"
        lock, cache = read_lock(), cache_directory("")
        provision_artefacts(cache, lock.kafka, silent)
        self._jdk = jdk_for_kafka(find_jdks())
        self._brokers = {node: LocalKafka(home / f"broker-{node}", cache=cache, jars=lock.kafka) for node in NODES}
        self._brokers[1].provision(jdk=self._jdk)
        ports = free_ports(2 * len(NODES))
        self._addresses = {
            node: (f"{self._subnet}.{node}", PORT, CONTROLLER_PORT)
            if self.can_cut
            else ("127.0.0.1", ports[2 * node - 2], ports[2 * node - 1])
            for node in NODES
        }
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._cut: set[int] = set()
        self._frozen: set[int] = set()
        self._newest: dict[TopicPartition, int] = {}  # The newest leader epoch that a broker has shown.
        # A child dies with the thread that started it, so one thread starts them all and lives as long as we do.
        self._starter = ThreadPoolExecutor(max_workers=1)

    @property
    def settings(self) -> KafkaSettings:
        """Return how clients reach the cluster."""
        bootstrap = ",".join(f"{host}:{port}" for host, port, _ in self._addresses.values())
        return KafkaSettings(bootstrap=bootstrap, replication=len(NODES), partitions=len(NODES))

    def up(self, seconds: float) -> None:
        """Start everything, and return when all brokers answer as one cluster; TimeoutError says why they do not."""
        if self.can_cut:
            self._make_network()
        for node in NODES:
            self._prepare(node)
        for node in NODES:
            self.start(node)
        try:
            wait_until(lambda: self._alive() == set(NODES), "three brokers", seconds=seconds, unless=self._ended)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self._consoles()}") from error

    def down(self) -> None:
        """Kill everything, and take the network away."""
        for node in list(self._running):
            self.kill(node)
        self._starter.shutdown()
        if self.can_cut:
            for node in NODES:
                _ip("netns", "del", self._namespace(node), check=False)
            _ip("link", "del", f"{self._tag}b", check=False)

    def start(self, node: int) -> None:
        """Start a broker that does not run; it does not answer yet."""
        broker = self._brokers[node]
        command = broker.command(jdk=self._jdk, heap_megabytes=HEAP_MEGABYTES, tags=[])
        if self.can_cut:
            command = ["ip", "netns", "exec", self._namespace(node), *command]
        if shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        console = (broker.logs / "console.log").open("ab")
        with console:
            self._running[node] = self._starter.submit(
                subprocess.Popen,
                command,
                cwd=broker.directory,
                env=broker.environment() | {"PATH": os.environ["PATH"]},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            ).result()

    def kill(self, node: int) -> None:
        """Kill a broker with SIGKILL."""
        process = self._running.pop(node)
        process.kill()
        process.wait()

    def freeze(self, node: int) -> None:
        """Stop a broker's process where it is."""
        self._running[node].send_signal(signal.SIGSTOP)
        self._frozen.add(node)

    def thaw(self, node: int) -> None:
        """Let a frozen broker go on."""
        self._running[node].send_signal(signal.SIGCONT)
        self._frozen.discard(node)

    def cut(self, node: int) -> None:
        """Cut a broker off from the other two, both ways; clients go on reaching it, and them."""
        self._cut.add(node)
        for other in NODES:
            if other != node:
                _ip("-n", self._namespace(node), "route", "add", "blackhole", f"{self._subnet}.{other}/32")

    def unplug(self, node: int) -> None:
        """Cut a broker off from everybody: its link is down."""
        _ip("link", "set", f"{self._tag}h{node}", "down")

    def mend(self, node: int) -> None:
        """Join a broker that was cut off or unplugged with the others again."""
        if node in self._cut:
            self._cut.remove(node)
            for other in NODES:
                if other != node:
                    _ip("-n", self._namespace(node), "route", "del", "blackhole", f"{self._subnet}.{other}/32")
        _ip("link", "set", f"{self._tag}h{node}", "up")

    def make_whole(self) -> None:
        """Undo whatever was done to the brokers; they come back by and by."""
        for node in list(self._frozen):
            self.thaw(node)
        for node in NODES:
            if self.can_cut:
                self.mend(node)
            if node not in self._running:
                self.start(node)

    def partitions(self, topics: Sequence[str]) -> dict[TopicPartition, dict[str, Any]]:
        """Return leader and replicas of each partition, as those brokers show them that are reached first."""
        with self._admin() as admin:
            return {
                TopicPartition(topic["name"], each["partition_index"]): each
                for topic in admin.describe_topics(list(topics))
                for each in topic["partitions"]
            }

    def leader(self, partition: TopicPartition) -> int:
        """Return the node that leads a partition, waiting while there is none.

        A broker that is cut off goes on answering that it leads: what is older than an answer before counts as none.
        """

        def known() -> int:
            found = self.partitions([partition.topic])[partition]
            if found["leader_epoch"] < self._newest.get(partition, 0):
                return 0
            self._newest[partition] = int(found["leader_epoch"])
            return int(found["leader_id"])

        return int(wait_until(lambda: (node := known()) > 0 and node, f"a leader of {partition}"))

    def wait_in_sync(self, topics: Sequence[str]) -> None:
        """Return when every replica of these topics holds all that is acknowledged."""

        def in_sync() -> bool:
            found = self.partitions(topics)
            return bool(found) and all(len(each["isr_nodes"]) == len(NODES) for each in found.values())

        wait_until(in_sync, "three replicas in sync")

    def elect_preferred(self) -> None:
        """Make the first replica of each partition its leader again, cleanly."""
        with self._admin() as admin:
            admin.elect_leaders(ElectionType.PREFERRED, raise_errors=False)

    @contextlib.contextmanager
    def _admin(self) -> Iterator[KafkaAdminClient]:
        admin = connect_admin(self.settings)
        try:
            yield admin
        finally:
            admin.close()

    def _alive(self) -> set[int]:
        with self._admin() as admin:
            shown = admin.describe_cluster()["brokers"]
        return {each["broker_id"] for each in shown if not each.get("is_fenced")}

    def _ended(self) -> list[int]:
        """Return the brokers whose process has ended by itself."""
        return [node for node, process in self._running.items() if process.poll() is not None]

    def _consoles(self) -> str:
        """Return the last lines that each broker printed and logged."""
        tails = {
            node: "".join(
                path.read_bytes()[-TAIL_BYTES:].decode(errors="replace") for path in broker.logs.glob("*.log")
            )
            for node, broker in self._brokers.items()
        }
        return "\n".join(f"broker {node} wrote last:\n{tail}" for node, tail in tails.items())

    def _prepare(self, node: int) -> None:
        broker, (host, port, controller_port) = self._brokers[node], self._addresses[node]
        broker.prepare(port=port, controller_port=controller_port)
        settings = dict(line.partition("=")[::2] for line in broker.properties.read_text().splitlines())
        voters = ",".join(f"{each}@{at}:{inner}" for each, (at, _, inner) in self._addresses.items())
        settings |= {
            "node.id": str(node),
            "controller.quorum.voters": voters,
            "listeners": f"BROKER://{host}:{port},CONTROLLER://{host}:{controller_port}",
            "advertised.listeners": f"BROKER://{host}:{port}",
            "default.replication.factor": "3",
            "offsets.topic.replication.factor": "3",
            "transaction.state.log.replication.factor": "3",
            "share.coordinator.state.topic.replication.factor": "3",
        }
        broker.properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        meta = broker.data / "meta.properties"
        kept = dict(line.partition("=")[::2] for line in meta.read_text().splitlines())
        kept |= {"node.id": str(node), "cluster.id": self._cluster_id}
        meta.write_text("".join(f"{name}={value}\n" for name, value in kept.items()))

    @functools.cached_property
    def _cluster_id(self) -> str:
        return secrets.token_urlsafe(16).replace("-", "A").replace("_", "B")

    def _namespace(self, node: int) -> str:
        return f"{self._tag}-{node}"

    def _make_network(self) -> None:
        bridge = f"{self._tag}b"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self._subnet}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for node in NODES:
            namespace, here, there = self._namespace(node), f"{self._tag}h{node}", f"{self._tag}n{node}"
            _ip("netns", "add", namespace)
            _ip("link", "add", here, "type", "veth", "peer", "name", there)
            _ip("link", "set", there, "netns", namespace)
            _ip("link", "set", here, "master", bridge)
            _ip("link", "set", here, "up")
            _ip("-n", namespace, "addr", "add", f"{self._subnet}.{node}/24", "dev", there)
            _ip("-n", namespace, "link", "set", there, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")


@contextlib.contextmanager
def kafka_cluster(home: Path) -> Iterator[KafkaCluster]:
    """Give a cluster that answers, until the end of the block.

    What does not come up is made anew on another network, and in the end without namespaces; a warning says why.
    """
    attempts = [True] * TRIES_IN_NAMESPACES if may_cut() else []
    for number, namespaces in enumerate([*attempts, False]):
        cluster = KafkaCluster(home / f"try-{number}", namespaces=namespaces)
        try:
            try:
                cluster.up(FIRST_TRIES_SECONDS if namespaces else WAIT_SECONDS)
            except TimeoutError as error:
                if not namespaces:
                    raise
                warnings.warn(f"three brokers did not come up: {error}", stacklevel=2)
                continue
            yield cluster
            return
        finally:
            cluster.down()


def wait_until(
    condition: Callable[[], Any], what: str, *, seconds: float = WAIT_SECONDS, unless: Callable[[], Any] = bool
) -> Any:
    """Return what the condition gives as soon as it is true; an election in the midst of a question counts as not yet.

    unless: what it returns, if anything, makes waiting vain. Raises TimeoutError then, and after these seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(KafkaError, DeliveryError):
            if found := condition():
                return found
        if vain := unless():
            raise TimeoutError(f"waited for {what}, but {vain} ended")
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(LOOK_SECONDS)


@functools.cache
def may_cut() -> bool:
    """Return whether this machine lets us make network namespaces with a bridge between them."""
    name = f"sl{secrets.token_hex(2)}p"
    try:
        made = [
            _ip("netns", "add", name, check=False),
            _ip("link", "add", name, "type", "bridge", check=False),
        ]
        _ip("link", "del", name, check=False)
        _ip("netns", "del", name, check=False)
    except FileNotFoundError:
        return False
    return all(made)


def _ip(*arguments: str, check: bool = True) -> bool:
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and ended.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")
    return ended.returncode == 0
