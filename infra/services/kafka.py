"""One local Kafka: a KRaft node that is broker and controller at once, with its storage under the home directory."""

from __future__ import annotations

import base64
import subprocess
import uuid
from pathlib import Path

from infra.services.artefacts import Artefact, artefact_path
from infra.services.errors import ServiceError
from infra.services.jdks import Jdk

ROLE = "kafka"
MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # a group of 64 candidates with token ids and log-probabilities is under 1 MB

# One node for one laptop: everything is replicated once, small files, few threads, and a topic that nobody declared is
# an error instead of a new topic with default settings. Retention belongs to each topic (streams.topics).
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=BROKER://127.0.0.1:{port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
log.dirs={data}
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
"""

LOG4J = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {logs}/kafka.log
appender.file.filePattern = {logs}/kafka-%i.log.gz
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
    """Writes the files and gives the command line of one local Kafka; starts and stops nothing by itself."""

    def __init__(self, directory: Path, *, cache: Path, jars: tuple[Artefact, ...]) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.logs = directory / "logs"
        self.properties = directory / "server.properties"
        self.log4j = directory / "log4j2.properties"
        self._class_path = ":".join(str(artefact_path(cache, jar)) for jar in jars)

    def prepare(self, *, jdk: Jdk, port: int, controller_port: int, heap_megabytes: int) -> None:
        """Write the settings for these ports, and format the storage the first time.

        Topics and the cluster id live in the storage, so a later start on other ports keeps them.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        self.properties.write_text(
            PROPERTIES.format(
                port=port,
                controller_port=controller_port,
                data=self.data,
                message_bytes_max=MESSAGE_BYTES_MAX,
                fetch_bytes_max=4 * MESSAGE_BYTES_MAX,
            )
        )
        self.log4j.write_text(LOG4J.format(logs=self.logs))
        if (self.data / "meta.properties").exists():
            return
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = [*self._java(jdk, heap_megabytes), "kafka.tools.StorageTool", "format", "--ignore-formatted"]
        # A leading dash would be read as an option.
        command += [f"--cluster-id={cluster_id}", f"--config={self.properties}"]
        formatted = subprocess.run(command, capture_output=True, text=True, check=False)
        if formatted.returncode:
            reason = (formatted.stderr or formatted.stdout).strip().splitlines()[-1:]
            raise ServiceError(f"Kafka's storage {self.data} could not be formatted: {' '.join(reason)}")

    def command(self, *, jdk: Jdk, heap_megabytes: int, tag: str) -> list[str]:
        """Return the command line of the broker."""
        return [*self._java(jdk, heap_megabytes), tag, "kafka.Kafka", str(self.properties)]

    def log_file(self) -> Path:
        return self.logs / "kafka.log"

    def _java(self, jdk: Jdk, heap_megabytes: int) -> list[str]:
        options = [
            f"-Xmx{heap_megabytes}m",
            "-Xms64m",
            "-XX:+UseSerialGC",  # two cores: G1's threads would take them from the learner
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self.log4j}",
            f"-Dkafka.logs.dir={self.logs}",
        ]
        return [jdk.java, *options, "-cp", self._class_path]
