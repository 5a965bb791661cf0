"""The settings of the connection to Kafka."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from streams.descriptions import describe
from streams.secrets import GuardedSettings, SecretText


class KafkaSettings(GuardedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The address of Kafka and the credentials for it (infra/SECURITY.md)."""

    bootstrap: Annotated[
        str,
        describe(
            'Addresses of your brokers, as "host:port[,host:port]". Empty: the local Kafka that `searchloop up` '
            "starts.",
            common=True,
        ),
    ] = ""
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        describe(
            "Protection of the connection to Kafka: SSL encrypts it, and SASL logs in with a name and a "
            "password. Certificates are always verified.",
            common=True,
        ),
    ] = "PLAINTEXT"
    sasl_mechanism: Annotated[
        Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        describe("Way to log in, if security_protocol contains SASL. Empty: none."),
    ] = ""
    sasl_username: Annotated[str, describe("User name for the login with SASL.")] = ""
    sasl_password: Annotated[SecretText, describe("Password for the login with SASL.")] = ""
    sasl_password_file: Annotated[str, describe("Path of a file that holds sasl_password, which then stays empty.")] = (
        ""
    )
    credentials: Annotated[
        str,
        describe(
            "Folder with a file ROLE.toml (sasl_username, sasl_password) for each role. Empty: one user for all roles."
        ),
    ] = ""
    ssl_cafile: Annotated[
        str, describe("Path of the certificates of trusted authorities, as PEM. Empty: the authorities of the system.")
    ] = ""
    ssl_certfile: Annotated[str, describe("Path of a client certificate, as PEM. Empty: no client certificate.")] = ""
    ssl_keyfile: Annotated[str, describe("Path of the key of the client certificate, as PEM.")] = ""
    ssl_key_password: Annotated[
        SecretText, describe("Password of the key in ssl_keyfile. Empty: the key is not encrypted.")
    ] = ""
    ssl_key_password_file: Annotated[
        str, describe("Path of a file that holds ssl_key_password, which then stays empty.")
    ] = ""
    allow_insecure: Annotated[
        bool, describe("True sends a password beyond this machine without TLS. Never use it with PLAIN over a network.")
    ] = False
    connect_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=600),
        describe(
            "Longest wait for a broker that does not listen. Errors that waiting cannot repair, such as a wrong "
            "password, end it at once."
        ),
    ] = 10.0
    partitions: Annotated[
        int,
        msgspec.Meta(ge=1, le=256),
        describe(
            "Partitions of the topics for requests, generations and rewards. At most this many workers of a "
            "role share the work."
        ),
    ] = 4
    replication: Annotated[
        int,
        msgspec.Meta(ge=1, le=7),
        describe("Copies of every partition, on as many brokers. 1 loses records if its broker loses its disk."),
    ] = 1
    live_retention_hours: Annotated[
        int,
        msgspec.Meta(ge=1, le=876_000),
        describe(
            "Hours for which Kafka keeps what people saw and did, in topics that are made from now on. At least "
            "join.window_ms + join.lateness_ms."
        ),
    ] = 168
    session_timeout_seconds: Annotated[
        float,
        msgspec.Meta(ge=6, le=300),
        describe(
            "Silence after which another worker takes a worker's partitions. A restarted worker of the same "
            "name takes its own back at once."
        ),
    ] = 10.0
    poll_interval_seconds_max: Annotated[
        float,
        msgspec.Meta(ge=2, le=86_400),
        describe(
            "Longest time between two polls of a worker before it loses its partitions. Long work polls "
            "meanwhile, so this limit only ends a worker that hangs."
        ),
    ] = 300.0

    def __post_init__(self) -> None:
        """Hide the secrets. Raises ValueError for credentials in a place where no client looks for them."""
        super().__post_init__()
        if "@" in self.bootstrap:
            raise ValueError(
                "bootstrap: expected host:port[,host:port] only; user name and password belong in sasl_username and "
                "sasl_password"
            )

    def __repr__(self) -> str:
        return f"KafkaSettings(bootstrap={self.bootstrap!r}, security_protocol={self.security_protocol!r}, …)"
