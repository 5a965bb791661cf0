"""Which Kafka and Elasticsearch the loop talks to: our own child processes, or a user's clusters."""

from __future__ import annotations

from typing import Annotated

import msgspec

from search_env.engine.client import ElasticsearchSettings
from streams.clients import KafkaSettings

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
HeapMegabytes = Annotated[int, msgspec.Meta(ge=128, le=65536)]


class LocalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How our own Kafka and Elasticsearch run; the defaults fit two cores and 4 GiB beside a small policy.

    cache: folder for downloads; empty means `SEARCHLOOP_CACHE` or the XDG cache folder.
    java_home: the JDK to use; empty means to look for one (Kafka needs 17, Elasticsearch 21 with javac and jdk.jdi).
    kafka_port, elasticsearch_port: 0 takes a free port at the first start, and the same again later while it is free.
    kafka_heap_megabytes, elasticsearch_heap_megabytes: MiB. 512 holds 20,000 products and 5,000 groups in flight with
    room to spare; a larger catalogue wants its index size.
    quick_start: compile Elasticsearch's code by the fast compiler alone. A start takes 8 s of processor time instead of
    10, and indexing 20,000 products 7 instead of 10; but a search stays at 12 ms where it would get to 6 after 3,000
    searches. For tests.
    secure: TLS, and a user with rights of its own for each role, as `searchloop up --secure` gives; a home that was
    started so once stays so.
    start_seconds: how long a service may take until it answers. A start takes about 10 s on two idle cores.
    stop_seconds: how long a service may take to end by itself before it is killed.
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
    """Both services. Each is external as soon as it has an address, and local (ours to start and stop) without one."""

    kafka: KafkaSettings = KafkaSettings()
    elasticsearch: ElasticsearchSettings = ElasticsearchSettings()
    local: LocalSettings = LocalSettings()
