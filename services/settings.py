"""Settings of the Kafka and Elasticsearch that the loop uses: our own child processes, or the user's clusters."""

from __future__ import annotations

from typing import Annotated

import msgspec

from search_env.engine.client import ElasticsearchSettings
from streams.descriptions import describe
from streams.kafka_settings import KafkaSettings

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
HeapMegabytes = Annotated[int, msgspec.Meta(ge=128, le=65536)]


class LocalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the local Kafka and Elasticsearch; the defaults fit two cores and 4 GiB beside a small policy."""

    cache: Annotated[str, describe("Folder for downloads. Empty: `SEARCHLOOP_CACHE`, or the XDG cache folder.")] = ""
    java_home: Annotated[
        str,
        describe(
            "Folder of the JDK. Kafka needs 17, and Elasticsearch needs 21 with javac and jdk.jdi. Empty: "
            "searchloop looks for one."
        ),
    ] = ""
    kafka_port: Annotated[
        Port,
        describe(
            "Port of the local Kafka. 0: a free port at the first start, which is used again later while it is free."
        ),
    ] = 0
    elasticsearch_port: Annotated[
        Port,
        describe(
            "Port of the local Elasticsearch. 0: a free port at the first start, which is used again later "
            "while it is free."
        ),
    ] = 0
    kafka_heap_megabytes: Annotated[
        HeapMegabytes,
        describe("Java heap of the local Kafka, in MiB. The default is enough for 5,000 groups in flight."),
    ] = 512
    elasticsearch_heap_megabytes: Annotated[
        HeapMegabytes,
        describe(
            "Java heap of the local Elasticsearch, in MiB. The default is enough for 20,000 products; a larger "
            "catalogue needs a heap of its index size."
        ),
    ] = 512
    # A start takes 8 s of processor time instead of 10, and indexing 20,000 products takes 7 s instead of 10. A search
    # stays at 12 ms; without quick_start it reaches 6 ms after 3,000 searches.
    quick_start: Annotated[
        bool,
        describe(
            "True uses only the fast compiler for Elasticsearch's code. Starts are faster, and later searches "
            "take twice as long. For tests."
        ),
    ] = False
    secure: Annotated[
        bool,
        describe(
            "True uses TLS and a user for each role, like `searchloop up --secure`. A home that was once "
            "started this way keeps it."
        ),
    ] = False
    start_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=3600),
        describe("Time limit for a service's first answer. A start takes about 10 s on two idle cores."),
    ] = 180.0
    stop_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=600), describe("Time that a service has to end by itself before it is killed.")
    ] = 20.0


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both services. A service with an address is external; one without an address is local: we start and stop it."""

    kafka: KafkaSettings = KafkaSettings()
    elasticsearch: ElasticsearchSettings = ElasticsearchSettings()
    local: LocalSettings = LocalSettings()
