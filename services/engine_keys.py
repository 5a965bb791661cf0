"""API keys of the embedded Elasticsearch: one for reading only, and one for making indexes."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from elastic_transport import TransportError
from elasticsearch import ApiError

from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.rights import INDEX_PRIVILEGES, READ_PRIVILEGES
from services.errors import ServiceError
from services.security import SecurityFolder
from streams.acls import OPERATOR

READER: dict[str, Any] = {"cluster": [], "indices": [{"names": ["*"], "privileges": list(READ_PRIVILEGES)}]}
KEYS: dict[str, dict[str, Any]] = {
    "environment": READER,
    "evaluator": READER,
    OPERATOR: {"cluster": ["monitor"], "indices": [{"names": ["*"], "privileges": list(INDEX_PRIVILEGES)}]},
}


def make_engine_keys(security: SecurityFolder, superuser: ElasticsearchSettings) -> None:
    """Make the missing keys of this home.

    Raises ServiceError if Elasticsearch refuses.
    """
    absent = [role for role in KEYS if not (security.elasticsearch / f"{role}.toml").exists()]
    if not absent:
        return
    with closing(connect(superuser)) as client:
        for role in absent:
            try:
                made = client.security.create_api_key(
                    name=f"searchloop-{role}", role_descriptors={f"searchloop-{role}": KEYS[role]}
                )
            except (ApiError, TransportError) as error:
                raise ServiceError(f"Elasticsearch gives no API key for the role {role!r}: {error}") from error
            security.keep_engine_key(role, made["encoded"])
