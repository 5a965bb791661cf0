"""Check this machine against the needs of the services, and advise on each problem."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import requests
from jgo.maven import MavenContext

from services.artefacts import (
    Artefact,
    artefact_path,
    cache_directory,
    maven_repositories,
    missing_artefacts,
    read_lock,
    sha256_of,
)
from services.elasticsearch import ROLE as ELASTICSEARCH
from services.errors import ProvisionError
from services.jdks import Jdk, find_jdks, jdk_for_elasticsearch, jdk_for_kafka
from services.kafka import ROLE as KAFKA
from services.launch import FREE_BYTES_MIN, service_directory
from services.local import LocalServices
from services.processes import port_is_free, service_account
from streams.devices import describe_device

OK, WARN, FAIL = "ok", "warn", "fail"
PYTHON_MIN = (3, 11)
FREE_BYTES_COMFORT = 2 << 30  # downloads, the unpacked server, data of the two services and one run
# A Java process needs about this much memory besides its heap for code, threads and buffers (measured).
OUTSIDE_HEAP_BYTES = 250 << 20
REPOSITORY_SECONDS = 10.0


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check. level: "ok", "warn" (works with limits) or "fail" (the services cannot start)."""

    name: str
    level: str
    found: str
    advice: str = ""


def doctor_findings(services: LocalServices) -> list[CheckResult]:
    """Return the findings that matter before or after `searchloop up`; start and change nothing."""
    return [
        _python(),
        *_java(services),
        CheckResult(name="models", level=OK, found=describe_device()),
        *_account(services),
        *_cache(services),
        *_room(services),
        _memory(services),
        _loopback(),
        *_ports(services),
        *_services(services),
    ]


def _python() -> CheckResult:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= PYTHON_MIN:
        return CheckResult(name="python", level=OK, found=found)
    return CheckResult(name="python", level=FAIL, found=found, advice="Use Python 3.11 or newer")


def _java(services: LocalServices) -> Iterator[CheckResult]:
    java_home = services.settings.local.java_home
    jdks = find_jdks(java_home)
    if not jdks:
        where = (
            f"none at services.java_home = {java_home}" if java_home else "none in JAVA_HOME, PATH or the usual folders"
        )
        yield CheckResult(
            name="java", level=FAIL, found=where, advice="Install a JDK 21 or newer, for example Temurin 25"
        )
        return
    used: dict[str, list[str]] = {jdk.home: [] for jdk in jdks}
    lacking = []
    for role, choose in ((KAFKA, _for_kafka), (ELASTICSEARCH, _for_elasticsearch)):
        try:
            used[choose(jdks).home].append(role)
        except ProvisionError as error:
            lacking.append(CheckResult(name=f"java for {role}", level=FAIL, found="none fits", advice=str(error)))
    for jdk in jdks:
        roles = " and ".join(used[jdk.home])
        lack = jdk.lacks_for_elasticsearch(service_account())
        note = f"used for {roles}" if roles else f"not used{f': {lack}' if lack else ''}"
        yield CheckResult(name="java", level=OK, found=f"{jdk.version} at {jdk.home}, {note}")
    yield from lacking


def _for_kafka(jdks: list[Jdk]) -> Jdk:
    return jdk_for_kafka(jdks)


def _for_elasticsearch(jdks: list[Jdk]) -> Jdk:
    return jdk_for_elasticsearch(jdks, service_account())


def _account(services: LocalServices) -> Iterator[CheckResult]:
    """Report the account of Elasticsearch, which refuses root, and its data folder if that is outside the home."""
    if service_account() is None:
        return
    try:
        directory = service_directory(ELASTICSEARCH, services.home)
    except ProvisionError as error:
        yield CheckResult(name="account", level=FAIL, found="root", advice=str(error))
        return
    found = f"root; Elasticsearch runs as nobody, data in {directory}"
    if directory.is_relative_to(services.home):
        yield CheckResult(name="account", level=OK, found=found)
    else:
        advice = f"the user nobody cannot enter {services.home}; to keep the data there, name a --home outside root's"
        yield CheckResult(name="account", level=WARN, found=found, advice=advice)


def _cache(services: LocalServices) -> Iterator[CheckResult]:
    cache, lock = cache_directory(services.settings.local.cache), read_lock()
    artefacts = (*lock.kafka, *lock.elasticsearch)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = "Name another cache with SEARCHLOOP_CACHE"
        yield CheckResult(name="cache", level=FAIL, found=f"{cache} cannot be written", advice=advice)
        return
    missing = missing_artefacts(cache, artefacts)
    present = [artefact for artefact in artefacts if artefact not in missing]
    damaged = [a for a in present if sha256_of(artefact_path(cache, a)) != a.sha256]
    if damaged:
        advice = f"Remove {', '.join(str(artefact_path(cache, a)) for a in damaged)}; `searchloop up` fetches it again"
        names = ", ".join(artefact.coordinate for artefact in damaged)
        yield CheckResult(name="cache", level=FAIL, found=f"damaged in {cache}: {names}", advice=advice)
    elif not missing:
        yield CheckResult(name="cache", level=OK, found=f"{cache}: {len(artefacts)} artefacts, sha256 as pinned")
    if missing:
        size = sum(artefact.bytes for artefact in missing) >> 20
        found = f"{cache}: {len(missing)} of {len(artefacts)} artefacts are not fetched yet ({size} MiB)"
        yield CheckResult(name="cache", level=WARN, found=found, advice="`searchloop up` fetches them")
        yield _repository(missing[0])


def _repository(artefact: Artefact) -> CheckResult:
    """Check whether one of the user's Maven repositories has the first missing artefact."""
    context = MavenContext(remote_repos=maven_repositories())
    if (Path(context.repo_cache) / artefact.repository_path).is_file():
        return CheckResult(name="repository", level=OK, found=f"in the local Maven repository {context.repo_cache}")
    problem = ""
    for name, url in context.remote_repos.items():
        try:
            answer = requests.head(f"{url}/{artefact.repository_path.as_posix()}", timeout=REPOSITORY_SECONDS)
        except requests.RequestException as error:
            problem = f"{name} does not answer ({type(error).__name__})"
            continue
        if answer.status_code < 400:
            return CheckResult(name="repository", level=OK, found=f"{name} answers")
        problem = f"{name} answers {answer.status_code} for {artefact.coordinate}"
    advice = "Check the network, or name your mirror in ~/.m2/settings.xml"
    return CheckResult(name="repository", level=FAIL, found=problem, advice=advice)


def _room(services: LocalServices) -> Iterator[CheckResult]:
    places = {"home": services.home, "cache": cache_directory(services.settings.local.cache)}
    for name, place in places.items():
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        level = FAIL if free < FREE_BYTES_MIN else WARN if free < FREE_BYTES_COMFORT else OK
        advice = "" if level == OK else f"Make room: {FREE_BYTES_COMFORT >> 30} GiB are recommended"
        yield CheckResult(
            name=f"disk of {name}", level=level, found=f"{free / 2**30:.1f} GiB free at {place}", advice=advice
        )


def _memory(services: LocalServices) -> CheckResult:
    local = services.settings.local
    running = any(row.pid for row in services.status())
    need = (
        0
        if running
        else (local.kafka_heap_megabytes + local.elasticsearch_heap_megabytes << 20) + 2 * OUTSIDE_HEAP_BYTES
    )
    free = psutil.virtual_memory().available
    found = f"{free / 2**30:.1f} GiB available; the services need up to {need / 2**30:.1f}"
    if running:
        found = f"{free / 2**30:.1f} GiB available; the services are running"
    if free >= need:
        return CheckResult(name="memory", level=OK, found=found)
    advice = "Close programs, or lower services.kafka_heap_megabytes and services.elasticsearch_heap_megabytes"
    return CheckResult(name="memory", level=WARN, found=found, advice=advice)


def _loopback() -> CheckResult:
    """Open a port on 127.0.0.1 and connect to it, as clients do."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            accepted = threading.Thread(target=lambda: server.accept()[0].close(), daemon=True)
            accepted.start()
            with socket.create_connection(server.getsockname(), timeout=5):
                accepted.join(5)
    except OSError as error:
        advice = "Bring the loopback interface up, and let 127.0.0.1 through the firewall"
        return CheckResult(name="loopback", level=FAIL, found=f"127.0.0.1 cannot be used: {error}", advice=advice)
    return CheckResult(name="loopback", level=OK, found="127.0.0.1 accepts connections")


def _ports(services: LocalServices) -> Iterator[CheckResult]:
    local = services.settings.local
    ours = {row.port for row in services.status() if row.pid}
    for role, port in ((KAFKA, local.kafka_port), (ELASTICSEARCH, local.elasticsearch_port)):
        if port and port not in ours and not port_is_free(port):
            advice = f"Stop the process on that port, or set services.{role}_port to another port, or to 0 for any"
            yield CheckResult(name="port", level=FAIL, found=f"{port} for {role} is in use", advice=advice)


def _services(services: LocalServices) -> Iterator[CheckResult]:
    for row in services.status():
        local = row.role in services.local_roles()
        whose = f"pid {row.pid}, port {row.port}" if row.pid else "not running" if local else "a cluster of your own"
        if row.health in ("ok", "starting"):
            yield CheckResult(name=row.role, level=OK, found=f"{row.health}, {whose}")
        elif row.health == "down" and local:
            yield CheckResult(name=row.role, level=OK, found=whose, advice="`searchloop up` starts it")
        elif local:
            yield CheckResult(
                name=row.role, level=WARN, found=f"{row.health}, {whose}", advice="`searchloop up` mends it"
            )
        else:
            advice = "Check its address, credentials and certificates in the settings kafka.* and elasticsearch.*"
            reason = services.external_answer(row.role).reason
            yield CheckResult(name=row.role, level=FAIL, found=f"{row.health}, {whose}: {reason}", advice=advice)
