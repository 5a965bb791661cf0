"""One local Kafka: a KRaft node that is both broker and controller, with its storage in the home directory."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tempfile
import tomllib
import uuid
from collections.abc import Sequence
from pathlib import Path

from services.artefacts import Artefact, Progress, artefact_path, cache_lock, silent
from services.errors import ProvisionError
from services.jdks import Jdk
from services.processes import java_environment
from services.security import BROKER, MECHANISM, SecurityFolder, superusers, write_private
from streams.acls import ROLES
from streams.secrets import Secret, redact, reveal
from streams.whole_file import write_file

ROLE = "kafka"
NODE_ID = 1
BOOTSTRAP = "bootstrap.checkpoint"
# For tens of records per second, the optimizing compiler costs more than it saves. Without it the first answer takes
# 4.0 s of processor time instead of 6.5 s, and 170 MB instead of 200.
FAST_COMPILER = ("-XX:TieredStopAtLevel=1",)
MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # a group of 64 candidates with token ids and log-probabilities is under 1 MB

# One node for one laptop: replication factor 1, small files and few threads. An undeclared topic is an error, not a new
# topic with default settings. Each topic sets its own retention (streams.topics). By default an idle controller writes
# two records a second, which caused a quarter of the broker's load. A broker that was killed cannot register again
# before its old session ends; the default of 9 s was most of its restart time. Paths are relative to the broker's
# working directory, because Java reads .properties files as Latin-1: the home of a Käufer would become that of a
# KÃ¤ufer.
PROPERTIES = """\
process.roles=broker,controller
node.id={node_id}
controller.quorum.voters={node_id}@127.0.0.1:{controller_port}
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=BROKER://127.0.0.1:{port}
listener.security.protocol.map={protocols}
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
log.dirs=data
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
message.max.bytes={message_bytes_max}
replica.fetch.max.bytes={message_bytes_max}
fetch.max.bytes={fetch_bytes_max}
socket.request.max.bytes=104857600
log.segment.bytes=134217728
log.index.size.max.bytes=1048576
log.cleaner.dedupe.buffer.size=16777216
log.cleaner.threads=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
num.network.threads=2
num.io.threads=4
background.threads=2
num.replica.fetchers=1
controlled.shutdown.enable=false
metadata.max.idle.interval.ms=10000
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=1000
"""
OPEN_PROTOCOLS = "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT"
SECURE_PROTOCOLS = "BROKER:SASL_SSL,CONTROLLER:SSL"
# The controller's port accepts only the broker, which authenticates by its certificate. Clients authenticate by name
# and password. Everything that no rule allows is refused.
SECURE_PROPERTIES = """\
config.providers=file
config.providers.file.class=org.apache.kafka.common.config.provider.FileConfigProvider
sasl.enabled.mechanisms={mechanism}
sasl.mechanism.inter.broker.protocol={mechanism}
listener.name.broker.scram-sha-512.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.controller.ssl.client.auth=required
ssl.keystore.type=PKCS12
ssl.keystore.location=../security/{store}
ssl.keystore.password=${{file:../security/stores.properties:password}}
ssl.key.password=${{file:../security/stores.properties:password}}
ssl.truststore.type=PEM
ssl.truststore.location=../security/ca.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users={superusers}
allow.everyone.if.no.acl.found=false
"""

LOG4J = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = logs/kafka.log
appender.file.filePattern = logs/kafka-%i.log.gz
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 16MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
"""


class LocalKafka:
    """The files and the command line of one local Kafka; this class starts and stops no process."""

    def __init__(
        self, directory: Path, *, cache: Path, jars: tuple[Artefact, ...], security: SecurityFolder | None = None
    ) -> None:
        """directory: folder of data, logs and settings. security: enables TLS and users; its folder is beside it."""
        self.directory = directory
        self.users = directory / "users.formatted"
        self._security = security
        self.data = directory / "data"
        self.logs = directory / "logs"
        self.properties = directory / "server.properties"
        self.log4j = directory / "log4j2.properties"
        self._cache = cache
        self._class_path = ":".join(str(artefact_path(cache, jar)) for jar in jars)
        identity = hashlib.sha256("".join(jar.sha256 for jar in jars).encode()).hexdigest()[:12]
        self._bootstrap = cache / f"kafka-{jars[0].version}-{identity}" / BOOTSTRAP

    def provision(self, *, jdk: Jdk, progress: Progress = silent) -> None:
        """Let Kafka's own tool format a storage once, and keep its feature levels for every later storage.

        The tool starts a JVM, which takes 2.5 s. Its output differs between two storages only in the ids of
        meta.properties. Raises ProvisionError with the tool's output if it fails.
        """
        meta = self.data / "meta.properties"
        if self._security is None:
            if self.users.exists() and meta.exists():
                raise ProvisionError(
                    f"the Kafka of {self.directory} has users, but their passwords in {self.directory.parent}/security "
                    "are gone. Restore that folder, or name another --home"
                )
            self._provision_open(jdk, progress)
        elif not meta.exists():
            progress("formatting Kafka's storage, with users", 0, 0)
            self.data.mkdir(parents=True, exist_ok=True)
            self._format(jdk, self.data / BOOTSTRAP, users=scram_users(self._security))
            self.users.touch()

    def _provision_open(self, jdk: Jdk, progress: Progress) -> None:
        if self._bootstrap.exists():
            return
        with cache_lock(self._cache, progress):
            progress("formatting Kafka's storage", 0, 0)
            self._bootstrap.parent.mkdir(exist_ok=True)
            self._format(jdk, self._bootstrap)

    def _format(self, jdk: Jdk, target: Path, users: Sequence[str] = ()) -> None:
        """Let the tool format a storage, and keep its first snapshot, which also holds the users."""
        with tempfile.TemporaryDirectory() as scratch:
            trial = Path(scratch)
            properties = trial / "server.properties"
            properties.write_text(_properties(port=9092, controller_port=9093))
            # In a file, main class included: every user can read a command line, and this one holds passwords.
            arguments = [*FAST_COMPILER, "-cp", self._class_path, "kafka.tools.StorageTool", "format"]
            arguments += [f"--cluster-id={_uuid()}", f"--config={properties.name}"]
            arguments += [part for user in users for part in ("--add-scram", user)]
            write_private(trial / "arguments", "\n".join(f'"{part}"' for part in arguments))
            formatted = subprocess.run([jdk.java, "@arguments"], cwd=trial, capture_output=True, text=True, check=False)
            if formatted.returncode:
                reason = " ".join((formatted.stderr or formatted.stdout).strip().splitlines()[-1:])
                raise ProvisionError(f"Kafka's storage could not be formatted with {jdk.java}: {redact(reason)}")
            write_file(target, (trial / "data" / BOOTSTRAP).read_bytes())

    def prepare(self, *, port: int, controller_port: int) -> None:
        """Write the settings for these ports, and a new storage if there is none.

        The storage holds the topics and the cluster id, so a later start on other ports keeps them.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        self.properties.write_text(
            _properties(port=port, controller_port=controller_port, secure=self._security is not None)
        )
        self.log4j.write_text(LOG4J)
        meta = self.data / "meta.properties"
        if not meta.exists():
            self.data.mkdir(exist_ok=True)
            if self._security is None:
                shutil.copyfile(self._bootstrap, self.data / BOOTSTRAP)
            identity = f"version=1\nnode.id={NODE_ID}\ncluster.id={_uuid()}\ndirectory.id={_uuid()}\n"
            write_file(meta, identity.encode())  # last and atomically: this file marks the storage as formatted

    def command(self, *, jdk: Jdk, heap_megabytes: int, tags: list[str]) -> list[str]:
        """Return the command line of the broker, which must run in its directory."""
        return [*self._java(jdk, heap_megabytes), *tags, "kafka.Kafka", self.properties.name]

    def environment(self) -> dict[str, str]:
        """Return the broker's whole environment."""
        return java_environment(self.directory)

    def _java(self, jdk: Jdk, heap_megabytes: int) -> list[str]:
        options = [
            f"-Xmx{heap_megabytes}m",
            "-Xms64m",
            "-XX:+UseSerialGC",  # two cores: G1's threads would take them from the learner
            *FAST_COMPILER,
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self.log4j.name}",
        ]
        return [jdk.java, *options, "-cp", self._class_path]


def scram_users(security: SecurityFolder) -> list[str]:
    """Return every role's user in the format of the tool."""
    users = []
    for role in ROLES:
        kept = tomllib.loads((security.kafka / f"{role}.toml").read_text())
        password = Secret(kept["sasl_password"])
        users.append(f"{MECHANISM}=[name={kept['sasl_username']},password={reveal(password)}]")
    return users


def _properties(*, port: int, controller_port: int, secure: bool = False) -> str:
    properties = PROPERTIES.format(
        node_id=NODE_ID,
        port=port,
        controller_port=controller_port,
        message_bytes_max=MESSAGE_BYTES_MAX,
        fetch_bytes_max=4 * MESSAGE_BYTES_MAX,
        protocols=SECURE_PROTOCOLS if secure else OPEN_PROTOCOLS,
    )
    if not secure:
        return properties
    return properties + SECURE_PROPERTIES.format(mechanism=MECHANISM, store=f"{BROKER}.p12", superusers=superusers())


def _uuid() -> str:
    """Return a random id in Kafka's format. It never begins with a dash, which would look like an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
