"""Ask a Kafka or an Elasticsearch whether it would serve us now."""

from __future__ import annotations

import logging
import socket
import ssl
import urllib.request
from urllib.parse import urlsplit

import msgspec
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from search_env.engine import ElasticsearchSettings
from streams.clients import KafkaSettings, connection_options

OK = "ok"
RED = "red"
SILENT = ""


def kafka_health(settings: KafkaSettings, timeout_seconds: float) -> str:
    """Return "ok" if the cluster lists a live broker, '' if it does not answer or does not let us in."""
    # The client waits out its back-off where nobody listens; a look at the port costs nothing.
    if not any(_listens(address, timeout_seconds) for address in settings.bootstrap.split(",")):
        return SILENT
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # no answer is an answer here, not a warning
    try:
        admin = KafkaAdminClient(
            **connection_options(settings, "searchloop-status"),
            bootstrap_timeout_ms=int(timeout_seconds * 1000),
            request_timeout_ms=int(timeout_seconds * 1000),
        )
        try:
            return OK if admin.describe_cluster()["brokers"] else SILENT
        finally:
            admin.close()
    except (KafkaError, OSError, ValueError):
        return SILENT
    finally:
        logger.setLevel(level)


def elasticsearch_health(settings: ElasticsearchSettings, timeout_seconds: float) -> str:
    """Return "ok" if every index can be searched, "red" if one cannot, '' if it is silent or does not let us in."""
    request = urllib.request.Request(f"{settings.url.rstrip('/')}/_cluster/health")
    if settings.api_key:
        request.add_header("Authorization", f"ApiKey {settings.api_key}")
    try:
        context = None
        if urlsplit(settings.url).scheme == "https":
            context = ssl.create_default_context(cafile=settings.ca_certs or None)
        with urllib.request.urlopen(request, timeout=timeout_seconds, context=context) as answer:
            status = str(msgspec.json.decode(answer.read())["status"])
    except (OSError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        return SILENT
    return RED if status == "red" else OK


def _listens(address: str, timeout_seconds: float) -> bool:
    host, _, port = address.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_seconds):
            return True
    except (OSError, ValueError):
        return False
