"""The answers that are ready: expansions of queries by policy version, looked up without a model.

`Answers` never changes. A server holds one and puts another in its place, so a request sees one state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from search_env.catalogue.analysis import plain_words
from search_env.leser.expansion_cache import Expanded

Words = tuple[str, ...]


class Answers:
    """The expansions of queries by some policy versions; a query is looked up by its plain words."""

    def __init__(self, by_policy: Mapping[str, Iterable[Expanded]]) -> None:
        """by_policy: what each version has written. An answer in the wrong format is none: the raw query serves."""
        self.policies = tuple(sorted(by_policy))
        found: dict[str, dict[str, Words]] = {}
        for policy in self.policies:
            for each in by_policy[policy]:
                if each.valid:
                    found.setdefault(plain_words(each.query), {})[policy] = each.expansions
        self._found = found

    def __len__(self) -> int:
        return len(self._found)

    def of(self, query: str) -> Mapping[str, Words]:
        """Return the expansions of a query by policy version; empty if no version has answered it."""
        return self._found.get(plain_words(query), {})
