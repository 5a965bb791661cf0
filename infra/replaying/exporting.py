"""Export of a run's impressions and actions from its ledger, as UBI files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from infra.app.home import RunFolder
from search_env.catalogue.corpora import write_whole
from search_env.traffic.ubi_export import event_row, query_row
from storage.log import Log, open_log
from streams.errors import SettingsError
from streams.traffic_events import Impression, UserAction

E = TypeVar("E", Impression, UserAction)


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """The number of rows that were written."""

    queries: int
    events: int


def export_ubi(folder: RunFolder, *, queries: Path, events: Path) -> Exported:
    """Write the first record of each impression and of each action, in the order of their times.

    Raises SettingsError if a file exists, or if the run holds no impression.
    """
    for option, path in (("--queries", queries), ("--events", events)):
        if path.exists():
            raise SettingsError(f"{option}: expected a new file, but {path} exists. Choose another name")
    with open_log(folder) as log:
        seen: dict[str, Impression] = {}
        for impression in _first(log, Impression, "impression_id"):
            seen[impression.impression_id] = impression
        done = list(_first(log, UserAction, "action_id"))
    if not seen:
        raise SettingsError(
            f"run {folder.name!r} holds no impression. Expected live or imported traffic: searchloop listen"
        )
    shown = sorted(seen.values(), key=lambda each: (each.at_ms, each.impression_id))
    acted = sorted(done, key=lambda each: (each.at_ms, each.action_id))
    encoder = msgspec.json.Encoder()
    write_whole(queries, encoder.encode_lines([query_row(each) for each in shown]))
    write_whole(events, encoder.encode_lines([event_row(each, seen.get(each.impression_id)) for each in acted]))
    return Exported(queries=len(shown), events=len(acted))


def _first(log: Log, kind: type[E], name: str) -> Iterator[E]:
    """Yield the first record of each id."""
    known: set[str] = set()
    for _, event in log.events(kind):
        found = getattr(event, name)
        if found not in known:
            known.add(found)
            yield event
