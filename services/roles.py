"""The credentials for the services: one user for everything, or one user for each role."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from search_env.engine.client import ElasticsearchSettings
from services.secret_files import warn_if_open
from services.security import MECHANISM, SecurityFolder
from streams.acls import OPERATOR
from streams.errors import SettingsError
from streams.kafka_settings import KafkaSettings

T = TypeVar("T", bound=msgspec.Struct)

ENGINE_ROLES = (OPERATOR, "environment", "evaluator")  # The others never call Elasticsearch.
WORKER_CONNECT_SECONDS = 30.0  # A worker survives a broker's restart on a busy machine; a verb fails sooner.


class KafkaCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The credentials file of one role for Kafka."""

    sasl_username: str
    sasl_password: str


class EngineCredentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The credentials file of one role for Elasticsearch."""

    api_key: str


def with_credentials(
    kafka: KafkaSettings, elasticsearch: ElasticsearchSettings, *, role: str
) -> tuple[KafkaSettings, ElasticsearchSettings]:
    """Return both settings with this role's credentials, if they name a folder of credentials.

    Raises SettingsError, without any of the file's content, if the role's file is missing or has another form.
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
    """Return both settings with the addresses of running services and, for local ones, their security."""
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
    """Return the settings for a role's access to the embedded Kafka of this home."""
    return msgspec.structs.replace(
        kafka,
        security_protocol="SASL_SSL",
        sasl_mechanism=MECHANISM,
        ssl_cafile=str(security.authority),
        credentials=str(security.kafka),
    )


def secure_engine(security: SecurityFolder, elasticsearch: ElasticsearchSettings) -> ElasticsearchSettings:
    """Return the settings for a role's access to the embedded Elasticsearch of this home."""
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
