"""Health checks of Kafka and Elasticsearch, with the reason if a service cannot serve us."""

from __future__ import annotations

import logging
from contextlib import closing

import msgspec
from elastic_transport import TransportError
from elasticsearch import ApiError
from kafka import KafkaAdminClient
from kafka.errors import KafkaError, SaslAuthenticationFailedError

from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.rights import explain_refusal
from streams.clients import connection_options
from streams.doors import explain_silence, refused_login
from streams.errors import SettingsError
from streams.kafka_settings import KafkaSettings
from streams.tls import causes

OK = "ok"
RED = "red"
SILENT = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a service. health: "ok", "red" (an index cannot be searched), or '' with the reason.

    lasting: True if waiting does not help, because an address, password, certificate or protocol is wrong.
    """

    health: str
    reason: str = ""
    lasting: bool = False


def kafka_health(settings: KafkaSettings, timeout_seconds: float) -> str:
    """Return "ok" if the cluster lists a live broker, '' if it does not answer or refuses us."""
    return ask_kafka(settings, timeout_seconds).health


def elasticsearch_health(settings: ElasticsearchSettings, timeout_seconds: float) -> str:
    """Return "ok" if every index can be searched, "red" if one cannot, '' if the engine is silent or refuses us."""
    return ask_elasticsearch(settings, timeout_seconds).health


def ask_kafka(settings: KafkaSettings, timeout_seconds: float) -> Answer:
    """Return the cluster's answer within the timeout."""
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # silence is a valid result here, not a warning
    try:
        # If nobody listens, the client waits for its back-off. A check of the port is fast and gives a better reason.
        options = connection_options(settings, "searchloop-status")
        if (problem := explain_silence(settings, timeout_seconds)) is not None:
            return Answer(health=SILENT, reason=problem.text, lasting=problem.lasting)
        admin = KafkaAdminClient(
            **options,
            bootstrap_timeout_ms=int(timeout_seconds * 1000),
            request_timeout_ms=int(timeout_seconds * 1000),
        )
        try:
            if admin.describe_cluster()["brokers"]:
                return Answer(health=OK)
            return Answer(health=SILENT, reason=f"Kafka at {settings.bootstrap} has no broker")
        finally:
            admin.close()
    except SaslAuthenticationFailedError:
        return Answer(health=SILENT, reason=refused_login(settings), lasting=True)
    except SettingsError as error:
        return Answer(health=SILENT, reason=str(error), lasting=True)
    except (KafkaError, OSError, ValueError) as error:
        return Answer(health=SILENT, reason=f"Kafka at {settings.bootstrap} does not answer ({type(error).__name__})")
    finally:
        logger.setLevel(level)


def ask_elasticsearch(settings: ElasticsearchSettings, timeout_seconds: float) -> Answer:
    """Return the cluster's answer within the timeout; a key that may not read the health counts as accepted."""
    try:
        client = connect(settings)
    except SettingsError as error:
        return Answer(health=SILENT, reason=str(error), lasting=True)
    with closing(client.options(request_timeout=timeout_seconds, max_retries=0)) as patient:
        try:
            status = str(patient.cluster.health()["status"])
        except (ApiError, TransportError) as error:
            if isinstance(error, ApiError) and error.meta.status == 403:
                return Answer(health=OK)
            reason = explain_refusal(error, settings)
            if not reason and any(isinstance(each, ConnectionRefusedError) for each in causes(error)):
                refused = "connection refused: nobody listens there. Run: searchloop up, or set elasticsearch.url"
                return Answer(health=SILENT, reason=f"Elasticsearch at {settings.url}: {refused}")
            unready = isinstance(error, ApiError) and error.meta.status >= 500
            return Answer(
                health=SILENT,
                reason=reason or f"Elasticsearch at {settings.url} does not answer: {error}"[:300],
                lasting=bool(reason) and not unready,
            )
        except (KeyError, TypeError):
            return Answer(health=SILENT, reason=f"{settings.url} answers, but is not Elasticsearch", lasting=True)
    return Answer(health=RED if status == "red" else OK)
