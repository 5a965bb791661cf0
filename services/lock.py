"""Rewrite artefacts.lock.json: run `python -m services.lock` after you change a version below.

The module resolves Kafka's dependencies with jgo, fetches every file into the user's local Maven repository, and pins
its sha256. Run it on a network that you trust, and read the diff before you commit it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from jgo.maven import MavenContext

from services.artefacts import LOCK_FILE, Artefact, ArtefactLock, maven_repositories, sha256_of

KAFKA = "org.apache.kafka:kafka_2.13:4.3.1"
# Kafka logs through slf4j 1.7 and includes log4j 2, but not the bridge between them; the bridge has log4j's version.
LOGGING_BRIDGE = "org.apache.logging.log4j:log4j-slf4j-impl"
ELASTICSEARCH = ("org.elasticsearch.distribution.integ-test-zip", "elasticsearch", "9.5.3")


def main() -> None:
    """Resolve, fetch and hash the artefacts, and write the lock file."""
    context = MavenContext(remote_repos=maven_repositories(), timeout=60)
    inputs, transitive = context.resolver.resolve([context.create_dependency(KAFKA)])
    dependencies = [*inputs, *transitive]
    log4j = next(d.version for d in dependencies if d.artifactId == "log4j-core")
    dependencies.append(context.create_dependency(f"{LOGGING_BRIDGE}:{log4j}"))
    group, name, version = ELASTICSEARCH
    distribution = context.project(group, name).at_version(version).artifact(classifier="", packaging="zip")
    lock = ArtefactLock(
        kafka=tuple(pin(d.groupId, d.artifactId, d.version, Path(d.artifact.resolve())) for d in dependencies),
        elasticsearch=(pin(group, name, version, Path(distribution.resolve())),),
    )
    LOCK_FILE.write_bytes(msgspec.json.format(msgspec.json.encode(lock), indent=1) + b"\n")
    total = sum(artefact.bytes for artefact in (*lock.kafka, *lock.elasticsearch))
    print(f"{LOCK_FILE}: {len(lock.kafka)} jars for Kafka, 1 zip for Elasticsearch, {total / 1e6:.0f} MB")


def pin(group: str, name: str, version: str, path: Path) -> Artefact:
    """Return the pin of a resolved file."""
    packaging = path.suffix.removeprefix(".")
    size = path.stat().st_size
    return Artefact(group=group, name=name, version=version, packaging=packaging, sha256=sha256_of(path), bytes=size)


if __name__ == "__main__":
    main()
