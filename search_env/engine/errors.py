"""The errors of searches, and an error of Elasticsearch in one line."""

from __future__ import annotations

import re
from typing import Any

from elastic_transport import ConnectionError as EngineConnectionError
from elastic_transport import ConnectionTimeout
from elasticsearch import ApiError, helpers

from streams.errors import SearchloopError, TransientError

_ADDRESS = re.compile(r"HTTPS?Connection(?:Pool)?\(host='([^']*)', port=(\d+)\): ")


class RetrievalError(SearchloopError, RuntimeError):
    """A search failed, and it will fail again until its cause is removed."""


class SearchRefusedError(RetrievalError):
    """The search engine refuses this one search for good, such as one of too many clauses; others may succeed."""


class EngineUnavailable(RetrievalError, TransientError):
    """The search engine is down, overloaded or cut off; the same search may succeed later."""


def explain(error: Exception) -> str:
    """Return an Elasticsearch error as one line: its kind, its reason, and the number of further errors."""
    if isinstance(error, helpers.BulkIndexError):
        first: dict[str, Any] = next(iter(error.errors[0].values())) if error.errors else {}
        reason = first.get("error", {})
        text = reason.get("reason", reason) if isinstance(reason, dict) else reason
        return f"document '{first.get('_id', '?')}': {text} ({len(error.errors)} documents failed in one batch)"
    if isinstance(error, ApiError):
        body = error.body if isinstance(error.body, dict) else {}
        reason = body.get("error", {})
        text = reason.get("reason", "") if isinstance(reason, dict) else str(reason)
        return f"status {error.meta.status}, {error.message}{': ' + text if text else ''}"[:500]
    # The transport's own text is "Connection error" or repeats itself for each retry; its cause holds the reason.
    happened = error.__cause__ if isinstance(error, (EngineConnectionError, ConnectionTimeout)) else error
    text = _ADDRESS.sub(r"\1:\2: ", str(happened or error))
    return f"{type(error).__name__}: {text}"[:500]
