"""The types of fields in an index of somebody else, asked with no more than the right to read."""

from __future__ import annotations

from collections.abc import Sequence

from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch

from search_env.engine.errors import EngineUnavailable, explain

CONFLICT = "conflict"


def field_types(client: Elasticsearch, index: str, names: Sequence[str] = ("*",)) -> dict[str, str]:
    """Return the type of each field that exists under these names or patterns; "conflict" if indexes disagree.

    Raises EngineUnavailable if the index is gone, the key may not read it, or the engine does not answer.
    """
    try:
        answer = client.field_caps(index=index, fields=list(names), filters="-metadata")
    except ApiError as error:
        said = "it is gone (404)" if error.meta.status == 404 else explain(error)
        raise EngineUnavailable(f"index '{index}' cannot be read: {said}") from error
    except TransportError as error:
        raise EngineUnavailable(
            f"Elasticsearch did not answer: {explain(error)}. Look with: searchloop status"
        ) from error
    found: dict[str, str] = {}
    for name, types in answer["fields"].items():
        known = sorted(set(types) - {"unmapped"})
        missing = "unmapped" in types
        found[name] = known[0] if len(known) == 1 and not missing else CONFLICT if known else "unmapped"
    return found
