"""The launch of a local service: find its JDK, fetch its artefacts, choose its ports, and start its process."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.artefacts import Progress, cache_directory, provision_artefacts, read_lock
from services.elasticsearch import ROLE as ELASTICSEARCH
from services.elasticsearch import LocalElasticsearch, open_directory
from services.errors import ServiceError
from services.jdks import find_jdks, jdk_for_elasticsearch, jdk_for_kafka
from services.kafka import ROLE as KAFKA
from services.kafka import LocalKafka
from services.processes import ServiceProcess, describe, free_ports, port_is_free, service_account, tags
from services.security import SecurityFolder
from services.settings import LocalSettings

PROCESSORS_MAX = 2  # for Elasticsearch's thread pools; the rest of the machine is for the learner
# With less free space, Elasticsearch stops writing (its flood stage is half of this), and Kafka dies when it rolls a
# segment.
FREE_BYTES_MIN = 512 << 20
LOG_TAIL_BYTES = 65536


def service_directory(role: str, home: Path) -> Path:
    """Return the folder of a service's data, logs and settings.

    The folder is in the home directory, unless Elasticsearch runs as nobody (if we are root) and cannot enter it.
    """
    services = home / "services"
    return (open_directory(services, service_account()) if role == ELASTICSEARCH else services) / role


def log_file(role: str, home: Path) -> Path:
    """Return the path of the service's log."""
    return service_directory(role, home) / "logs" / f"{role}.log"


class Launcher:
    """Provisions all services first and then starts them, so missing parts are found before anything runs."""

    def __init__(
        self,
        home: Path,
        settings: LocalSettings,
        session: str,
        progress: Progress,
        security: SecurityFolder | None = None,
    ) -> None:
        """session: a name for this start, part of each process's tags. security: not None if security is on."""
        self._security = security
        self._home = home
        self._session = session
        self._settings = settings
        self._progress = progress
        self._cache = cache_directory(settings.cache)
        self._lock = read_lock()
        self._account = service_account()

    def provision(self, roles: Sequence[str]) -> None:
        """Find the JDKs, and fetch and unpack the missing artefacts.

        Raises ProvisionError or ServiceError, with the remedy, if there is no JDK, no network or no space, or if a port
        is in use.
        """
        settings = self._settings
        wanted = {KAFKA: settings.kafka_port, ELASTICSEARCH: settings.elasticsearch_port}
        for role in roles:
            require_port(role, wanted[role])
            require_room(service_directory(role, self._home))
        jdks = find_jdks(settings.java_home)
        if ELASTICSEARCH in roles:
            self._elasticsearch_jdk = jdk_for_elasticsearch(jdks, self._account)
        if KAFKA in roles:
            self._kafka_jdk = jdk_for_kafka(jdks)
        artefacts = {KAFKA: self._lock.kafka, ELASTICSEARCH: self._lock.elasticsearch}
        provision_artefacts(self._cache, tuple(a for role in roles for a in artefacts[role]), self._progress)
        if self._security is not None and not self._security.exists:
            self._progress("making certificates and passwords", 0, 0)
            self._security.make(self._kafka_jdk if KAFKA in roles else self._elasticsearch_jdk)
        if ELASTICSEARCH in roles:
            self._elasticsearch().provision(jdk=self._elasticsearch_jdk, progress=self._progress)
        if KAFKA in roles:
            self._kafka().provision(jdk=self._kafka_jdk, progress=self._progress)

    def start(self, role: str, last_port: int) -> ServiceProcess:
        """Start a provisioned service and return its process, which does not answer yet.

        last_port: the service's last port, or 0 if it never ran.
        """
        self._progress(f"starting {role}", 0, 0)
        return self._start_kafka(last_port) if role == KAFKA else self._start_elasticsearch(last_port)

    def _kafka(self) -> LocalKafka:
        return LocalKafka(
            service_directory(KAFKA, self._home), cache=self._cache, jars=self._lock.kafka, security=self._security
        )

    def _elasticsearch(self) -> LocalElasticsearch:
        return LocalElasticsearch(
            service_directory(ELASTICSEARCH, self._home),
            cache=self._cache,
            distribution=self._lock.elasticsearch[0],
            account=self._account,
            security=self._security,
        )

    def _start_kafka(self, last_port: int) -> ServiceProcess:
        settings = self._settings
        kafka = self._kafka()
        port, controller_port = choose_ports(settings.kafka_port, last_port)
        heap = settings.kafka_heap_megabytes
        kafka.prepare(port=port, controller_port=controller_port)
        command = kafka.command(jdk=self._kafka_jdk, heap_megabytes=heap, tags=tags(self._home, KAFKA, self._session))
        return spawn(KAFKA, command, kafka.directory, port, self._session, environment=kafka.environment())

    def _start_elasticsearch(self, last_port: int) -> ServiceProcess:
        settings, server, account = self._settings, self._elasticsearch(), self._account
        if not server.directory.is_relative_to(self._home):
            told = f"Elasticsearch keeps its data in {server.directory}, as the user nobody cannot enter {self._home}"
            self._progress(told, 0, 0)
        port, transport_port = choose_ports(settings.elasticsearch_port, last_port)
        server.prepare()
        processors = min(PROCESSORS_MAX, os.cpu_count() or 1)
        node = server.node_settings(port=port, transport_port=transport_port, processors=processors)
        command = server.command(
            jdk=self._elasticsearch_jdk,
            heap_megabytes=settings.elasticsearch_heap_megabytes,
            quick=settings.quick_start,
            tags=tags(self._home, ELASTICSEARCH, self._session),
        )
        return spawn(
            ELASTICSEARCH,
            command,
            server.directory,
            port,
            self._session,
            identity={"user": account.uid, "group": account.gid, "extra_groups": []} if account else {},
            environment=server.environment(),
            standard_input=server.server_arguments(node),
        )


def why_it_ended(role: str, home: Path) -> str:
    """Return one line about a service that ended during its start, from its last output."""
    logs = log_file(role, home).parent
    lines: list[str] = []
    for path in (logs / f"{role}.log", logs / "console.log"):
        if path.exists():
            with path.open("rb") as handle:
                handle.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
                lines += handle.read().decode(errors="replace").splitlines()
    # A Java log gives the reason in the innermost cause, which comes last, or otherwise in the first exception.
    causes = [line.strip() for line in lines if line.startswith("Caused by: ")][-1:]
    thrown = [line.strip() for line in lines if re.match(r"(Exception in thread .*|[\w.$]+(Exception|Error)): ", line)]
    signs = [line.strip() for line in lines if re.search(r"\b(ERROR|FATAL|Error|Exception|Could not)\b", line)]
    reason = (causes or thrown or signs or ["it wrote no reason"])[0][:300]
    return f"{role} ended while it started: {reason}. Its logs are in {logs}"


def spawn(
    role: str,
    command: list[str],
    directory: Path,
    port: int,
    session: str,
    *,
    identity: Mapping[str, object] | None = None,
    environment: dict[str, str],
    standard_input: bytes = b"",
) -> ServiceProcess:
    """Start a process in a new session, so that Ctrl-C in the terminal reaches only us.

    The previous process's output is kept beside the new one, in `console.before.log`; it may explain that process's
    end.
    """
    console_log = directory / "logs" / "console.log"
    if console_log.exists():
        console_log.replace(console_log.with_name("console.before.log"))
    with console_log.open("wb") as console:
        child = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **(identity or {}),  # type: ignore[call-overload]
        )
    process = describe(child.pid, role, port, session)
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended before it read; its waiter reports why
        child.stdin.write(standard_input)
        child.stdin.close()
    return process


def choose_ports(wanted: int, last: int) -> tuple[int, int]:
    """Return the service's port and a free port for its internal traffic.

    The service's port is the one in the settings, otherwise the last one if it is free, otherwise any free port.
    """
    free, inner = free_ports(2)
    return wanted or (last if last and port_is_free(last) else free), inner


def require_port(role: str, port: int) -> None:
    if port and not port_is_free(port):
        raise ServiceError(
            f"port {port} for {role} is in use by another process. Stop it, or set services.{role}_port to "
            "another port, or to 0 for a free one"
        )


def require_room(directory: Path) -> None:
    existing = next(folder for folder in [directory, *directory.parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < FREE_BYTES_MIN:
        raise ServiceError(
            f"the disk of {directory} is full: {FREE_BYTES_MIN >> 20} MiB are needed, {free >> 20} MiB are free. "
            "Make room, or name another --home"
        )
