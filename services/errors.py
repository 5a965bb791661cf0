"""Errors of the services that the loop runs on."""

from __future__ import annotations

from streams.errors import SearchloopError


class ServiceError(SearchloopError, RuntimeError):
    """Kafka or Elasticsearch cannot be started, reached or stopped; the message names the remedy."""


class ProvisionError(ServiceError):
    """An artefact or a JDK is missing, or an artefact differs from its pin."""
