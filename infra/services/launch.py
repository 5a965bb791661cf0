"""Start one local service: its JDK, its artefacts, its ports, its process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from infra.services.artefacts import Progress, cache_directory, provision_artefacts, read_lock
from infra.services.elasticsearch import ROLE as ELASTICSEARCH
from infra.services.elasticsearch import LocalElasticsearch, open_directory
from infra.services.errors import ServiceError
from infra.services.jdks import jdk_for_elasticsearch, jdk_for_kafka
from infra.services.kafka import ROLE as KAFKA
from infra.services.kafka import LocalKafka
from infra.services.processes import ServiceProcess, describe, free_ports, port_is_free, service_account, tag
from infra.services.settings import LocalSettings

PROCESSORS_MAX = 2  # for Elasticsearch's thread pools; the rest of the machine is for the learner


def launch(role: str, home: Path, settings: LocalSettings, last_port: int, progress: Progress) -> ServiceProcess:
    """Start the service and return its process, which does not answer yet.

    last_port: where it listened the last time, 0 if it never did.
    """
    return {KAFKA: _launch_kafka, ELASTICSEARCH: _launch_elasticsearch}[role](home, settings, last_port, progress)


def log_file(role: str, home: Path) -> Path:
    """Return the log that the service writes."""
    return service_directory(role, home) / "logs" / f"{role}.log"


def service_directory(role: str, home: Path) -> Path:
    """Return where a service keeps its data, logs and settings."""
    services = home / "services"
    return (open_directory(services, service_account()) if role == ELASTICSEARCH else services) / role


def why_it_ended(role: str, home: Path) -> str:
    """Return one line about a service that ended while it started, from what it wrote last."""
    directory = service_directory(role, home) / "logs"
    lines: list[str] = []
    for path in (directory / "console.log", directory / f"{role}.log"):
        if path.exists():
            with path.open("rb") as handle:
                handle.seek(max(0, path.stat().st_size - 65536))
                lines += handle.read().decode(errors="replace").splitlines()
    signs = ("Exception", "ERROR", "FATAL", "Error", "No space left", "Address already in use")
    told = [line.strip() for line in lines if any(sign in line for sign in signs) and not line.startswith("\tat")]
    reason = told[0][:300] if told else "it wrote nothing about it"
    return f"{role} ended while it started: {reason}. Its logs are in {directory}"


def _launch_kafka(home: Path, settings: LocalSettings, last_port: int, progress: Progress) -> ServiceProcess:
    lock, cache = read_lock(), cache_directory(settings.cache)
    jdk = jdk_for_kafka(settings.java_home)
    provision_artefacts(cache, lock.kafka, progress)
    kafka = LocalKafka(service_directory(KAFKA, home), cache=cache, jars=lock.kafka)
    port = _choose_port(KAFKA, settings.kafka_port, last_port)
    heap = settings.kafka_heap_megabytes
    progress("starting Kafka", 0, 0)
    kafka.prepare(jdk=jdk, port=port, controller_port=free_ports(1)[0], heap_megabytes=heap)
    command = kafka.command(jdk=jdk, heap_megabytes=heap, tag=tag(home, KAFKA))
    return _spawn(KAFKA, command, kafka.directory, port)


def _launch_elasticsearch(home: Path, settings: LocalSettings, last_port: int, progress: Progress) -> ServiceProcess:
    lock, cache, account = read_lock(), cache_directory(settings.cache), service_account()
    jdk = jdk_for_elasticsearch(settings.java_home)
    provision_artefacts(cache, lock.elasticsearch, progress)
    directory = service_directory(ELASTICSEARCH, home)
    if not directory.is_relative_to(home):
        progress(f"Elasticsearch keeps its data in {directory}: it runs as nobody, who cannot enter {home}", 0, 0)
    server = LocalElasticsearch(directory, cache=cache, distribution=lock.elasticsearch[0], account=account)
    server.provision(jdk=jdk, progress=progress)
    port = _choose_port(ELASTICSEARCH, settings.elasticsearch_port, last_port)
    progress("starting Elasticsearch", 0, 0)
    processors = min(PROCESSORS_MAX, os.cpu_count() or 1)
    server.prepare()
    settings_of_node = server.node_settings(port=port, transport_port=free_ports(1)[0], processors=processors)
    heap = settings.elasticsearch_heap_megabytes
    command = server.command(jdk=jdk, heap_megabytes=heap, tag=tag(home, ELASTICSEARCH))
    return _spawn(
        ELASTICSEARCH,
        command,
        directory,
        port,
        identity={"user": account.uid, "group": account.gid, "extra_groups": []} if account else {},
        environment=server.environment(),
        standard_input=server.server_arguments(settings_of_node),
    )


def _spawn(
    role: str,
    command: list[str],
    directory: Path,
    port: int,
    *,
    identity: Mapping[str, object] | None = None,
    environment: dict[str, str] | None = None,
    standard_input: bytes = b"",
) -> ServiceProcess:
    """Start a process in a session of its own, so that Ctrl-C in the terminal reaches us alone."""
    with (directory / "logs" / "console.log").open("wb") as console:
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
    process = describe(child.pid, role, port)
    assert child.stdin is not None
    try:
        child.stdin.write(standard_input)
        child.stdin.close()
    except BrokenPipeError:
        pass  # it ended before it read; whoever waits for it reports why
    return process


def _choose_port(role: str, wanted: int, last: int) -> int:
    """Return the port that the settings name, else the last one if it is free, else any free one."""
    if wanted:
        if not port_is_free(wanted):
            raise ServiceError(
                f"port {wanted} for {role} is in use by somebody else. Stop that, or set services.local.{role}_port "
                "to another port, or to 0 for a free one"
            )
        return wanted
    return last if last and port_is_free(last) else free_ports(1)[0]
