"""As whom the services are asked: one user for everything, or one for each role."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from infra.services.secret_files import warn_if_open
from infra.services.security import MECHANISM, SecurityFolder
from search_env.engine.client import ElasticsearchSettings
from streams.acls import OPERATOR
from streams.clients import KafkaSettings
from streams.errors import SettingsError

T = TypeVar("T", bound=msgspec.Struct)

ENGINE_ROLES = (OPERATOR, "environment")  # The others never ask Elasticsearch.
WORKER_CONNECT_SECONDS = 30.0  # A worker outlives the restart of a broker on a busy machine; a verb tells sooner.


class KafkaCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of one role for Kafka."""

    sasl_username: str
    sasl_password: str


class EngineCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of one role for Elasticsearch."""

    api_key: str


def with_credentials(
    kafka: KafkaSettings, elasticsearch: ElasticsearchSettings, *, role: str
) -> tuple[KafkaSettings, ElasticsearchSettings]:
    """Return both with what this role is let in by, where the settings name a folder of credentials.

    Raises SettingsError, which shows nothing of a file's content, if the role's file is missing or of another form.
    """
    if role != OPERATOR:
        patient = max(kafka.connect_seconds, WORKER_CONNECT_SECONDS)
        kafka = msgspec.structs.replace(kafka, connect_seconds=patient)
    if kafka.credentials:
        mine = _read(Path(kafka.credentials), role, KafkaCredentials, "kafka.credentials")
        kafka = msgspec.structs.replace(
            kafka, sasl_username=mine.sasl_username, sasl_password=mine.sasl_password, sasl_password_file=""
        )
    if elasticsearch.credentials:
        key = ""
        if role in ENGINE_ROLES:
            key = _read(Path(elasticsearch.credentials), role, EngineCredentials, "elasticsearch.credentials").api_key
        elasticsearch = msgspec.structs.replace(
            elasticsearch, api_key=key, api_key_file="", username="", password="", password_file=""
        )
    return kafka, elasticsearch


def secured(
    home: Path, kafka: KafkaSettings, elasticsearch: ElasticsearchSettings, *, bootstrap: str, url: str
) -> tuple[KafkaSettings, ElasticsearchSettings]:
    """Return both at the addresses of services that run; those that are ours, with the doors that they have."""
    security = SecurityFolder(home)
    own_kafka, own_engine = not kafka.bootstrap, not elasticsearch.url
    kafka = msgspec.structs.replace(kafka, bootstrap=bootstrap)
    elasticsearch = msgspec.structs.replace(elasticsearch, url=url)
    if not security.exists:
        return kafka, elasticsearch
    return (
        secure_kafka(security, kafka) if own_kafka else kafka,
        secure_engine(security, elasticsearch) if own_engine else elasticsearch,
    )


def secure_kafka(security: SecurityFolder, kafka: KafkaSettings) -> KafkaSettings:
    """Return what lets a role into the embedded Kafka of this home."""
    return msgspec.structs.replace(
        kafka,
        security_protocol="SASL_SSL",
        sasl_mechanism=MECHANISM,
        ssl_cafile=str(security.authority),
        credentials=str(security.kafka),
    )


def secure_engine(security: SecurityFolder, elasticsearch: ElasticsearchSettings) -> ElasticsearchSettings:
    """Return what lets a role into the embedded Elasticsearch of this home."""
    return msgspec.structs.replace(
        elasticsearch, ca_certs=str(security.authority), credentials=str(security.elasticsearch)
    )


def _read(folder: Path, role: str, kind: type[T], setting: str) -> T:
    path = folder / f"{role}.toml"
    try:
        warn_if_open(path, setting)
        return msgspec.convert(tomllib.loads(path.read_text()), kind)
    except OSError as error:
        raise SettingsError(
            f"{setting}: expected a file for the role {role!r}, got {path}: {error.strerror}"
        ) from error
    except (ValueError, RecursionError):
        names = " and ".join(kind.__struct_fields__)
        raise SettingsError(f"{setting}: expected {names}, each one text, in {path}, got another form") from None
