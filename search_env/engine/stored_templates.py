"""A search template that is stored on a cluster, as a search body with marks.

Elasticsearch renders it once with the marks as its variables' values. From then on the rendered body is filled, so a
query is a value and never a part of a template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch

from search_env.engine.errors import explain
from search_env.engine.forms import Body
from search_env.engine.marked_query import EXPANSIONS, QUERY
from search_env.engine.ownership import IndexingError

_IN_QUERY, _IN_EXPANSIONS = "searchloopquerymark", "searchloopexpansionsmark"


def render_template(
    client: Elasticsearch, name: str, *, query: str, expansions: str, parameters: Mapping[str, Any]
) -> tuple[Body, Body]:
    """Return a stored template as two bodies: without expansions, and with them.

    query, expansions: the names of its variables; without a variable for expansions, the bodies are equal.
    parameters: its other variables. Raises IndexingError if it cannot be rendered.
    """
    raw = _rendered(client, name, {**parameters, query: _IN_QUERY})
    if not expansions:
        return raw, raw
    return raw, _rendered(client, name, {**parameters, query: _IN_QUERY, expansions: _IN_EXPANSIONS})


def _rendered(client: Elasticsearch, name: str, parameters: Mapping[str, Any]) -> Body:
    try:
        answer = client.render_search_template(id=name, params=dict(parameters))
    except ApiError as error:
        raise IndexingError(
            f"--template-id {name}: Elasticsearch cannot render it: {explain(error)}. A key without the cluster right "
            "to do so needs the template as a file: --template FILE"
        ) from error
    except TransportError as error:
        raise IndexingError(f"--template-id {name}: Elasticsearch did not answer: {explain(error)}") from error
    body: Body = _marked(answer["template_output"])
    return body


def _marked(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_IN_QUERY, QUERY).replace(_IN_EXPANSIONS, EXPANSIONS)
    if isinstance(value, dict):
        return {key: _marked(each) for key, each in value.items()}
    return [_marked(each) for each in value] if isinstance(value, list) else value
