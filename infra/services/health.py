"""Ask a Kafka or an Elasticsearch whether it would serve us now, and if not, why not."""

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
from streams.clients import KafkaSettings, connection_options
from streams.doors import explain_silence, refused_login
from streams.errors import SettingsError
from streams.tls import causes

OK = "ok"
RED = "red"
SILENT = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a service said. health: "ok", "red" (an index cannot be searched), or '' with the reason.

    lasting: waiting will not mend it: a wrong address, password, certificate or protocol.
    """

    health: str
    reason: str = ""
    lasting: bool = False


def kafka_health(settings: KafkaSettings, timeout_seconds: float) -> str:
    """Return "ok" if the cluster lists a live broker, '' if it does not answer or does not let us in."""
    return ask_kafka(settings, timeout_seconds).health


def elasticsearch_health(settings: ElasticsearchSettings, timeout_seconds: float) -> str:
    """Return "ok" if every index can be searched, "red" if one cannot, '' if it is silent or does not let us in."""
    return ask_elasticsearch(settings, timeout_seconds).health


def ask_kafka(settings: KafkaSettings, timeout_seconds: float) -> Answer:
    """Return what the cluster says within the time."""
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # no answer is an answer here, not a warning
    try:
        # The client waits out its back-off where nobody listens; a look at the port costs nothing, and tells more.
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
    """Return what the cluster says within the time; a key that may not ask for its health is let in all the same."""
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
            return Answer(health=SILENT, reason=f"{settings.url} answers, and is no Elasticsearch", lasting=True)
    return Answer(health=RED if status == "red" else OK)
