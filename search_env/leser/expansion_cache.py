"""A cache of expansions: those of head queries are written once, and looked up from then on.

Each pair of policy version and index version has a file of its own, since either changes the expansions. Sampled texts
are never kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from search_env.catalogue.corpora import Query, write_whole

FOLDER = "expansions"


class Expanded(msgspec.Struct, frozen=True, kw_only=True):
    """A policy version's expansions of one query; without expansions the raw query is searched."""

    query_id: str
    query: str
    expansions: tuple[str, ...]
    valid: bool
    text: str
    policy: str


class ExpansionCache:
    """The expansions by one policy version on one index version, by the query's exact text."""

    def __init__(self, run_dir: Path, *, policy: str, index_version: str) -> None:
        self._path = run_dir / FOLDER / f"{policy}.{index_version}.jsonl"

    def known(self, queries: Iterable[Query]) -> dict[str, Expanded]:
        """Return the cached expansions of these queries, by query id. A damaged file is an empty cache."""
        kept = {each.query: each for each in self._read()}
        return {
            query.id: msgspec.structs.replace(kept[query.text], query_id=query.id)
            for query in queries
            if query.text in kept
        }

    def keep(self, found: Iterable[Expanded]) -> int:
        """Add expansions, in place of older ones of the same text; return the number of cached queries."""
        kept = {each.query: each for each in [*self._read(), *found]}
        write_whole(self._path, b"".join(msgspec.json.encode(kept[query]) + b"\n" for query in sorted(kept)))
        return len(kept)

    def _read(self) -> list[Expanded]:
        try:
            return msgspec.json.Decoder(Expanded).decode_lines(self._path.read_bytes())
        except (OSError, msgspec.DecodeError):
            return []


def head_queries(queries: Sequence[Query], count: int) -> list[Query]:
    """Return the `count` most frequent query texts, the most frequent first; ties stay in the order of the file."""
    first: dict[str, Query] = {}
    for query in queries:
        first.setdefault(query.text, query)
    return [first[text] for text, _ in Counter(query.text for query in queries).most_common(count)]
