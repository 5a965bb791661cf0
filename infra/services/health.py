"""Ask a Kafka or an Elasticsearch whether it would serve us now."""

from __future__ import annotations

import logging
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import msgspec
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from infra.services.settings import ElasticsearchSettings
from streams.clients import KafkaSettings, _connection


def kafka_answers(settings: KafkaSettings, timeout_seconds: float) -> str:
    """Return "N broker(s)" if the cluster lists at least one live broker, or ''."""
    quiet = logging.getLogger("kafka")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)  # a refused connection is an answer here, not a warning
    try:
        admin = KafkaAdminClient(
            **_connection(settings, "searchloop-status"),
            bootstrap_timeout_ms=int(timeout_seconds * 1000),
            request_timeout_ms=int(timeout_seconds * 1000),
        )
        try:
            brokers = admin.describe_cluster()["brokers"]
        finally:
            admin.close()
    except (KafkaError, OSError, ValueError):
        return ""
    finally:
        quiet.setLevel(level)
    return f"{len(brokers)} broker{'s' if len(brokers) != 1 else ''}" if brokers else ""


def elasticsearch_answers(settings: ElasticsearchSettings, timeout_seconds: float) -> str:
    """Return the cluster's health, "green" or "yellow", or '' if it is red, silent, or does not let us in."""
    request = urllib.request.Request(f"{settings.url.rstrip('/')}/_cluster/health")
    if settings.api_key:
        request.add_header("Authorization", f"ApiKey {settings.api_key}")
    context = None
    if urlsplit(settings.url).scheme == "https":
        context = ssl.create_default_context(cafile=settings.ca_certs or None)
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds, context=context) as answer:
            status = str(msgspec.json.decode(answer.read())["status"])
    except (OSError, ValueError, KeyError, msgspec.DecodeError):
        return ""
    return status if status in ("green", "yellow") else ""
