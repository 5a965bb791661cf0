"""What the catalogue knows of results: titles from the engine while it answers, and grades of judged queries."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from infra.app.app import App
from search_env.engine.client import connect_async
from services.errors import ServiceError
from streams.errors import SearchloopError

log = logging.getLogger(__name__)

SECONDS = 2.0
TITLE_CHARACTERS_MAX = 200


async def titles(app: App, index: str, documents: Iterable[str]) -> dict[str, str]:
    """Return titles by document id; none if the engine is away or the index is gone. index: of our own making."""
    ids = sorted(set(documents))
    if not ids or not index:
        return {}
    try:
        settings = app.at(app.local_services().endpoints()).connections.elasticsearch
        client = connect_async(settings, connections=1, timeout_seconds=SECONDS)
    except (ServiceError, SearchloopError):
        return {}
    try:
        answer = await client.mget(index=index, ids=ids, source_includes=["title"])
    except Exception as error:  # The page shows ids instead, whatever the engine says.
        log.info("no titles of index %s: %s", index, type(error).__name__)
        return {}
    finally:
        await client.close()
    found = {each["_id"]: each.get("_source", {}).get("title") for each in answer["docs"] if each.get("found")}
    return {name: str(title)[:TITLE_CHARACTERS_MAX] for name, title in found.items() if title}


def grades(intents: Path, split: str, query_id: str) -> dict[str, int]:
    """Return the grades of a query's documents in an index's own judgments; {} for a query that is not among them.

    intents: the index's folder of queries. The file is read line by line: it may hold millions.
    """
    path = intents / f"qrels.{Path(split).name}.tsv"
    found = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.startswith(f"{query_id}\t"):
                    fields = line.rstrip("\n").split("\t")
                    found[fields[-2]] = int(fields[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return found
