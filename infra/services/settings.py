"""Settings of the Kafka and Elasticsearch that the loop uses: our own child processes, or the user's clusters."""

from __future__ import annotations

from typing import Annotated

import msgspec

from search_env.engine.client import ElasticsearchSettings
from streams.clients import KafkaSettings

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
HeapMegabytes = Annotated[int, msgspec.Meta(ge=128, le=65536)]


class LocalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the local Kafka and Elasticsearch; the defaults fit two cores and 4 GiB beside a small policy.

    cache: folder for downloads; empty means `SEARCHLOOP_CACHE` or the XDG cache folder.
    java_home: the JDK to use; empty means to search for one (Kafka needs 17; Elasticsearch needs 21 with javac and
    jdk.jdi).
    kafka_port, elasticsearch_port: 0 takes a free port at the first start, and the same port later while it is free.
    kafka_heap_megabytes, elasticsearch_heap_megabytes: heap in MiB. 512 is more than enough for 20,000 products and
    5,000 groups in flight; a larger catalogue needs a heap of its index size.
    quick_start: True uses only the fast compiler for Elasticsearch's code, for tests. A start takes 8 s of processor
    time instead of 10, and indexing 20,000 products takes 7 s instead of 10. A search stays at 12 ms; without
    quick_start it reaches 6 ms after 3,000 searches.
    secure: True uses TLS, and a user with its own rights for each role, like `searchloop up --secure`. A home that was
    started once with security keeps it.
    start_seconds: time limit for a service's first answer. A start takes about 10 s on two idle cores.
    stop_seconds: time limit for a service to end by itself before it is killed.
    """

    cache: str = ""
    java_home: str = ""
    kafka_port: Port = 0
    elasticsearch_port: Port = 0
    kafka_heap_megabytes: HeapMegabytes = 512
    elasticsearch_heap_megabytes: HeapMegabytes = 512
    quick_start: bool = False
    secure: bool = False
    start_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 180.0
    stop_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 20.0


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both services. A service with an address is external; one without an address is local: we start and stop it."""

    kafka: KafkaSettings = KafkaSettings()
    elasticsearch: ElasticsearchSettings = ElasticsearchSettings()
    local: LocalSettings = LocalSettings()
