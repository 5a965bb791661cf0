"""Candidates of open groups that servers show to people: files that an environment writes, and servers read.

A group that waits for people's clicks has one file in the live run's folder. It goes when the group closes. A file
whose time is over counts for nothing, so an environment that never comes back leaves nothing to be shown for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from search_env.catalogue.analysis import plain_words
from search_env.serving.choosing import RAW
from streams.whole_file import write_file

FOLDER = "candidates"
Words = tuple[str, ...]


class OpenGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group that waits for people: the query that they must ask, and the words of each choice, by the choice's name.

    index: the index version that must be searched. run: the training run. since_ms, until_ms: when the group opened,
    and when it ends at the latest.
    """

    group_id: str
    run: str
    query: str
    index: str
    choices: dict[str, Words]
    since_ms: int
    until_ms: int


class OpenGroups:
    """The choices of open groups by query. It never changes: a server puts another in its place."""

    def __init__(self, groups: Iterable[OpenGroup], *, index: str) -> None:
        """index: the index version that the server searches; groups of others are left out."""
        self._by_query: dict[str, list[OpenGroup]] = {}
        for group in groups:
            if group.index == index:
                self._by_query.setdefault(plain_words(group.query), []).append(group)

    def __len__(self) -> int:
        return sum(map(len, self._by_query.values()))

    def of(self, query: str, *, at_ms: int) -> Mapping[str, Words]:
        """Return the words of every choice that a query has now, by the choice's name."""
        groups = self._by_query.get(plain_words(query), ())
        return {name: words for each in groups if at_ms < each.until_ms for name, words in each.choices.items()}


def with_candidates(offered: Mapping[str, float], candidates: Iterable[str], *, share: float) -> dict[str, float]:
    """Return the probabilities of a search's choices after open groups took their share.

    offered: the probabilities without them. share: of the searches that are drawn evenly among raw results and all
    candidates. So each of these has at least share / (candidates + 1), and the others keep their proportions.
    """
    named = sorted(candidates)
    if not named or share <= 0:
        return dict(offered)
    even = dict.fromkeys([RAW, *named], share / (len(named) + 1))
    rest = {name: (1 - share) * probability for name, probability in offered.items()}
    return {name: rest.get(name, 0.0) + even.get(name, 0.0) for name in sorted({*rest, *even})}


def offer(folder: Path, group: OpenGroup) -> OpenGroup:
    """Write an open group's file, and return the group; one that is open already stays as it is.

    folder: of the live run.
    """
    path = folder / FOLDER / f"{group.group_id}.json"
    kept = _read(path)
    if kept is not None and msgspec.structs.replace(kept, since_ms=0, until_ms=0) == msgspec.structs.replace(
        group, since_ms=0, until_ms=0
    ):
        return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, msgspec.json.encode(group))
    return group


def withdraw(folder: Path, group_id: str) -> None:
    """Delete a closed group's file."""
    (folder / FOLDER / f"{group_id}.json").unlink(missing_ok=True)


def withdraw_past(folder: Path, run: str, *, at_ms: int) -> None:
    """Delete the files of a training run's groups whose time is over."""
    for group in read_open_groups(folder):
        if group.run == run and group.until_ms <= at_ms:
            withdraw(folder, group.group_id)


def open_group_files(folder: Path) -> dict[Path, int]:
    """Return the files of open groups, with the time of each one's change in ns. folder: of the live run."""
    found = {}
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue  # Its group has just closed.
    return found


def read_open_groups(folder: Path) -> list[OpenGroup]:
    """Return the open groups of a live run, in the order of ids. A file that is gone or damaged is left out."""
    return [group for path in open_group_files(folder) if (group := _read(path)) is not None]


def _read(path: Path) -> OpenGroup | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=OpenGroup)
    except (OSError, msgspec.MsgspecError):
        return None
