"""The Elasticsearch client, built from settings that work for the local server and for any other cluster."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from elastic_transport import JsonSerializer
from elasticsearch import AsyncElasticsearch, Elasticsearch

from streams.descriptions import describe
from streams.errors import SettingsError
from streams.secrets import GuardedSettings, SecretText, reveal, split_credentials
from streams.tls import client_context, guard_plain


class ElasticsearchSettings(GuardedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The address of Elasticsearch and the credentials for it (infra/SECURITY.md)."""

    url: Annotated[
        str,
        describe(
            'Address of your Elasticsearch, as "https://host:port". Credentials in it become username and '
            "password. Empty: the local one that `searchloop up` starts.",
            common=True,
        ),
    ] = ""
    api_key: Annotated[
        SecretText,
        describe(
            "API key in base64, as Elasticsearch returned it. Rights to read are enough for all work that "
            "creates no index.",
            common=True,
        ),
    ] = ""
    api_key_file: Annotated[str, describe("Path of a file that holds api_key, which then stays empty.")] = ""
    username: Annotated[str, describe("User name, if you use no API key.")] = ""
    password: Annotated[SecretText, describe("Password of the user in username.")] = ""
    password_file: Annotated[str, describe("Path of a file that holds password, which then stays empty.")] = ""
    credentials: Annotated[
        str,
        describe(
            "Folder with a file ROLE.toml (api_key) for each role that uses Elasticsearch: operator and "
            "environment. Empty: one key for both."
        ),
    ] = ""
    ca_certs: Annotated[
        str,
        describe(
            "Path of the certificates of trusted authorities, as PEM. Certificates are always verified. Empty: "
            "the authorities of the system."
        ),
    ] = ""
    allow_insecure: Annotated[bool, describe("True sends a key or a password beyond this machine by plain http.")] = (
        False
    )
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=600), describe("Time limit of one request.")] = 30.0
    # The client's own default is three retries without a pause, which would burden an engine that asked for one.
    retries_max: Annotated[
        int,
        msgspec.Meta(ge=0, le=20),
        describe(
            "Number of times that a request is sent again after a refusal (429, 502, 503, 504) or a broken connection."
        ),
    ] = 4
    backoff_first_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=60),
        describe("Upper limit of the random pause before the first retry. It doubles with each further retry."),
    ] = 0.2
    backoff_seconds_max: Annotated[
        float, msgspec.Meta(gt=0, le=600), describe("Upper limit of every pause between retries.")
    ] = 5.0
    connections: Annotated[
        int, msgspec.Meta(ge=1, le=64), describe("Largest number of connections of a process to Elasticsearch.")
    ] = 4

    def __post_init__(self) -> None:
        """Hide the secrets, including those in the URL. Raises ValueError if two kinds of credentials are set."""
        try:
            url, username, password = split_credentials(self.url)
        except ValueError as error:
            raise ValueError(f"url: {error}") from None
        if username:
            if self.username or self.password or self.password_file:
                raise ValueError("url: expected credentials in the URL or in username and password, got both")
            msgspec.structs.force_setattr(self, "url", url)
            msgspec.structs.force_setattr(self, "username", username)
            msgspec.structs.force_setattr(self, "password", password)
        super().__post_init__()
        if self.api_key and (self.username or self.password):
            raise ValueError("api_key: expected an API key, or a user name and password, got both")
        if not self.api_key.isascii():
            raise ValueError("api_key: expected base64, as Elasticsearch returned it, got other characters")

    def __repr__(self) -> str:
        return f"ElasticsearchSettings(url={self.url!r}, ca_certs={self.ca_certs!r}, …)"


class FastJson(JsonSerializer):  # type: ignore[misc]
    """JSON by msgspec, which decodes an answer of 64 rankings about five times faster than the standard library."""

    mimetype = "application/vnd.elasticsearch+json"

    def json_dumps(self, data: Any) -> bytes:
        """Return JSON bytes."""
        return msgspec.json.encode(data)

    def json_loads(self, data: bytes) -> Any:
        """Return the decoded value. The transport turns a ValueError into its SerializationError."""
        return msgspec.json.decode(data)


def connect(settings: ElasticsearchSettings) -> Elasticsearch:
    """Return a client, without sending a request.

    Raises SettingsError if the URL is invalid, a file cannot be read, or a secret would travel unencrypted.
    """
    return Elasticsearch(settings.url, **_options(settings))


def connect_async(settings: ElasticsearchSettings, *, connections: int, timeout_seconds: float) -> AsyncElasticsearch:
    """Return a client for an event loop, which never sends a request again: a person waits for the answer.

    Raises as `connect` does.
    """
    never = {"max_retries": 0, "retry_on_timeout": False, "retry_on_status": ()}
    limits = {"connections_per_node": connections, "request_timeout": timeout_seconds}
    return AsyncElasticsearch(settings.url, **_options(settings) | never | limits)


def _options(settings: ElasticsearchSettings) -> dict[str, Any]:
    host = engine_host(settings)
    options: dict[str, Any] = {}
    if settings.api_key:
        options["api_key"] = reveal(settings.api_key)
    if settings.username:
        options["basic_auth"] = (settings.username, reveal(settings.password))
    if settings.url.startswith("https"):
        options["ssl_context"] = client_context(cafile=settings.ca_certs, table="elasticsearch", ca_setting="ca_certs")
    elif options:
        guard_plain(
            "elasticsearch",
            what="an API key" if settings.api_key else "a password",
            hosts=[host],
            instead="Set elasticsearch.url to https://…",
            allowed=settings.allow_insecure,
        )
    return options | {
        "serializers": {FastJson.mimetype: FastJson()},
        "connections_per_node": settings.connections,
        "http_compress": False,  # Rankings are small; compressing them costs more than a near network saves.
        "request_timeout": settings.timeout_seconds,
        "max_retries": settings.retries_max,
        "retry_on_timeout": True,
        "retry_on_status": (429, 502, 503, 504),
        "retry_backoff_base": settings.backoff_first_seconds,
        "retry_backoff_cap": settings.backoff_seconds_max,
    }


def engine_host(settings: ElasticsearchSettings) -> str:
    """Return the host of the URL.

    Raises SettingsError if the URL is empty or invalid.
    """
    if not settings.url:
        raise SettingsError("elasticsearch.url: expected http(s)://host:port, got nothing. Run: searchloop up")
    try:
        parts = urlsplit(settings.url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port:
            return parts.hostname
    except ValueError:
        pass
    raise SettingsError(f"elasticsearch.url: expected http(s)://host:port, got {settings.url!r}")
