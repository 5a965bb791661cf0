"""The credit that actions on an interleaved list give to each ranking: an action counts for the document's team.

The teams come from `search_env/serving/team_draft.py` (Radlinski, Kurup and Joachims, CIKM 2008).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def credits(shown: Sequence[str], teams: Sequence[str], acted_on: Iterable[str]) -> dict[str, int]:
    """Return for each team the number of its documents that the person acted on; a document counts once."""
    chosen = set(acted_on)
    found = dict.fromkeys(teams, 0)
    for document, team in zip(shown, teams, strict=True):
        found[team] += document in chosen
    return found


def preference(credit: Mapping[str, int], one: str, other: str) -> int:
    """Return 1 if the first team has more credit than the second, -1 if it has less, 0 for a tie."""
    first, second = credit.get(one, 0), credit.get(other, 0)
    return (first > second) - (first < second)
