"""The rights that a key needs in Elasticsearch, and the check that ours has them, before anything is created.

Reading needs `READ_PRIVILEGES` on the index; creating an index needs `INDEX_PRIVILEGES` on its name and versions. A
cluster without security has neither keys nor rights, and gives no answer about them.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from http.client import HTTPException
from urllib.parse import urlsplit

import urllib3
from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch

from search_env.engine.client import ElasticsearchSettings, engine_host
from streams.errors import SearchloopError
from streams.tls import causes, explain_tls, speaks_tls

READ_PRIVILEGES = ("read", "view_index_metadata")
INDEX_PRIVILEGES = ("read", "view_index_metadata", "write", "create_index", "delete_index", "manage")
NOT_LET_IN = (401, 403)
PROBE_SECONDS = 3.0
NO_RIGHT = "Elasticsearch (403): the API key may not do this; infra/SECURITY.md lists the rights that it needs"


class RightsError(SearchloopError, PermissionError):
    """Elasticsearch denies us the requested action."""


def require_rights(client: Elasticsearch, names: Sequence[str], privileges: Sequence[str]) -> None:
    """Return if the key has these privileges on these indexes, which need not exist, or if the cluster has no security.

    Raises RightsError if the key is refused or lacks a privilege; the message names the missing ones.
    """
    try:
        answer = client.options(max_retries=0).perform_request(
            "POST",
            "/_security/user/_has_privileges",
            headers={"accept": "application/json", "content-type": "application/json"},
            body={"index": [{"names": list(names), "privileges": list(privileges)}]},
        )
    except ApiError as error:
        if error.meta.status == 401:
            raise RightsError(login_refused()) from error
        return  # A cluster without security, or another engine, cannot answer. The work itself will show the rights.
    except TransportError:
        return
    body = answer.body if isinstance(answer.body, dict) else {}
    if body.get("has_all_requested", True):
        return
    lacking = sorted(
        {right for rights in body.get("index", {}).values() for right, given in rights.items() if not given}
    )
    raise RightsError(
        f"Elasticsearch (403): the API key may not {', '.join(lacking)} on {' and '.join(names)}. Use a key that may: "
        "elasticsearch.api_key, or elasticsearch.api_key_file (infra/SECURITY.md lists the rights)"
    )


def explain_refusal(error: Exception, settings: ElasticsearchSettings) -> str:
    """Return why Elasticsearch refuses us, in words; '' for an error that may pass with time."""
    if isinstance(error, ApiError):
        if error.meta.status == 401:
            return login_refused()
        return NO_RIGHT if error.meta.status == 403 else ""
    where = f"Elasticsearch at {settings.url}"
    host = engine_host(settings)
    tls = explain_tls(error, host=host, cafile=settings.ca_certs, ca_setting="elasticsearch.ca_certs")
    if tls:
        advice = ". Set elasticsearch.url to http://…, or to its TLS port" if "does not speak TLS" in tls else ""
        return f"{where}: {tls}{advice}"
    happened = list(causes(error))
    if any(isinstance(each, socket.gaierror) for each in happened):
        return f"{where}: the host name {host!r} is not known. Check elasticsearch.url"
    broken = any(
        isinstance(each, HTTPException | ConnectionResetError | urllib3.exceptions.HTTPError) for each in happened
    )
    if settings.url.startswith("http:") and broken and _speaks_tls(settings):
        return f"{where}: it speaks TLS on this port. Set elasticsearch.url to https://…"
    return ""


def login_refused() -> str:
    """Return the message for a key or password that Elasticsearch does not accept."""
    return (
        "Elasticsearch (401) rejects our API key or password: it is missing, wrong, or out of date. Check "
        "elasticsearch.api_key, or elasticsearch.username and elasticsearch.password"
    )


def _speaks_tls(settings: ElasticsearchSettings) -> bool:
    """Return whether the address of an http URL speaks TLS."""
    parts = urlsplit(settings.url)
    try:
        return speaks_tls(socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PROBE_SECONDS))
    except OSError:
        return False
