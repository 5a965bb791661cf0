"""User Behavior Insights (UBI 1.3): query and event NDJSON of one or several applications, as feedback.

Applications differ in what they log under the same names, so each is read by itself: one counts positions from 0 and
another from 1, one writes times as ISO text and another as milliseconds, one logs no impressions. A position with more
clicks than impressions has lost impressions, and says nothing about a click rate: it is left out.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from streams.errors import SettingsError
from streams.events import Action, Feedback, Shown

ORDINAL_MAX = 10**6
IMPRESSION = "impression"
CLICKS = frozenset({"click", "item_click"})
MS_MAX = 10**15  # 31,000 years.
SECONDS_MAX = 10**11  # A number of seconds stays below this for 3,000 years, one of milliseconds has passed it.


class ApplicationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one application's log held.

    searches, shown, actions: as they became feedback. first_ordinal: what its positions begin with (0 or 1). orphans:
    actions whose search is not in the query file, or whose document that search did not show; they are kept among the
    actions. without_query: events of searches of which no text is known. other: events that name no result (filters,
    sorting …). positions_rejected: ranks with more clicks than impressions; rejected: what was left out with them.
    unreadable: events without a usable time or position, and impressions without a document. repeated: rows of the
    query file that name a search that came before.
    """

    application: str
    searches: int
    shown: int
    actions: int
    first_ordinal: int
    orphans: int
    without_query: int
    other: int
    positions_rejected: tuple[int, ...]
    rejected: int
    unreadable: int
    repeated: int


class _Event(NamedTuple):
    query_id: str
    kind: str
    document_id: str
    ordinal: int | None
    at_ms: int
    client: str
    session: str


def read_ubi(
    queries: Path, events: Path, *, application: str | None = None
) -> tuple[list[Feedback], list[ApplicationSummary]]:
    """Return every search as feedback, in the order of time, and what was found in each application's log.

    application: of this one alone. Raises SettingsError if a file is missing or no NDJSON, naming the line.
    """
    searches: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    repeated: Counter[str] = Counter()
    for row in _rows(queries):
        name, query_id = str(row.get("application", "")), str(row.get("query_id"))
        repeated[name] += query_id in searches[name]
        searches[name].setdefault(query_id, row)
    logged: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(events):
        logged[str(row.get("application", ""))].append(row)
    names = sorted({*searches, *logged})
    if application is not None and application not in names:
        raise SettingsError(f"--application: expected one of {', '.join(names)}, got {application!r}")
    feedback: list[Feedback] = []
    summaries = []
    for name in names if application is None else [application]:
        found, summary = _application(name, searches[name], logged[name], repeated[name])
        feedback += found
        summaries.append(summary)
    return sorted(feedback, key=lambda each: (each.at_ms, each.feedback_id)), summaries


def _application(
    name: str, searches: dict[str, dict[str, Any]], logged: list[dict[str, Any]], repeated: int
) -> tuple[list[Feedback], ApplicationSummary]:
    texts = {query_id: text for query_id, row in searches.items() if (text := _text(row))}
    counts: Counter[str] = Counter()
    events: list[_Event] = []
    for row in logged:
        query_id = str(row.get("query_id"))
        if query_id not in texts and (text := _text(row)):
            texts[query_id] = text
        event = _event(row, query_id)
        if event is None:
            counts["unreadable"] += 1
        elif not event.document_id:
            counts["unreadable" if event.kind == IMPRESSION else "other"] += 1
        elif event.kind == IMPRESSION and event.ordinal is None:
            counts["unreadable"] += 1
        else:
            events.append(event)
    shown_ordinals = [e.ordinal for e in events if e.kind == IMPRESSION and e.ordinal is not None]
    acted_ordinals = [e.ordinal for e in events if e.kind in CLICKS and e.ordinal is not None]
    base = 0 if min(shown_ordinals or acted_ordinals, default=1) == 0 else 1
    rejected = _impossible(events, base)
    by_query: dict[str, list[_Event]] = defaultdict(list)
    for event in events:
        if event.query_id not in texts:
            counts["without_query"] += 1
        elif event.ordinal is not None and event.ordinal + 1 - base in rejected:
            counts["rejected"] += 1
        else:
            by_query[event.query_id].append(event)
    feedback = [
        _feedback(name, query_id, texts[query_id], searches.get(query_id, {}), by_query.get(query_id, []), base)
        for query_id in {**searches, **by_query}
        if query_id in texts
    ]
    for each in feedback:
        seen = {shown.document_id for shown in each.shown}
        known = each.query_id in searches
        counts["orphans"] += sum(not known or action.document_id not in seen for action in each.actions)
    return feedback, ApplicationSummary(
        application=name,
        searches=len(feedback),
        shown=sum(len(each.shown) for each in feedback),
        actions=sum(len(each.actions) for each in feedback),
        first_ordinal=base,
        orphans=counts["orphans"],
        without_query=counts["without_query"],
        other=counts["other"],
        positions_rejected=tuple(sorted(rejected)),
        rejected=counts["rejected"],
        unreadable=counts["unreadable"],
        repeated=repeated,
    )


def _impossible(events: list[_Event], base: int) -> set[int]:
    """Return the ranks that were clicked more often than shown; none where impressions were not logged at all."""
    shown = Counter(e.ordinal + 1 - base for e in events if e.kind == IMPRESSION and e.ordinal is not None)
    clicked = Counter(e.ordinal + 1 - base for e in events if e.kind in CLICKS and e.ordinal is not None)
    return {rank for rank, count in clicked.items() if count > shown[rank]} if shown else set()


def _feedback(
    application: str, query_id: str, query: str, search: dict[str, Any], events: list[_Event], base: int
) -> Feedback:
    shown: dict[str, int] = {}
    for event in events:
        if event.kind == IMPRESSION and event.ordinal is not None:
            shown.setdefault(event.document_id, event.ordinal + 1 - base)
    began = _time_ms(search.get("timestamp"))
    first = events[0] if events else None
    return Feedback(
        feedback_id=f"{application}:{query_id}",
        query_id=query_id,
        query=query,
        application=application,
        shown=tuple(Shown(document_id=document, rank=rank) for document, rank in sorted(shown.items(), key=_by_rank)),
        actions=tuple(
            Action(
                kind=event.kind,
                document_id=event.document_id,
                rank=None if event.ordinal is None else event.ordinal + 1 - base,
                at_ms=event.at_ms,
            )
            for event in sorted(events, key=lambda event: event.at_ms)
            if event.kind != IMPRESSION
        ),
        client=str(search.get("client_id") or (first.client if first else "")),
        session=first.session if first else "",
        at_ms=began if began is not None else min((event.at_ms for event in events), default=0),
    )


def _by_rank(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def _event(row: dict[str, Any], query_id: str) -> _Event | None:
    """Return what an event says of a result, None if it has no usable time or position; no document: ""."""
    attributes = _object(row.get("event_attributes"))
    position, result = _object(attributes.get("position")), _object(attributes.get("object"))
    ordinal = position.get("ordinal")
    at_ms = _time_ms(row.get("timestamp"))
    if at_ms is None or not (ordinal is None or (type(ordinal) is int and 0 <= ordinal <= ORDINAL_MAX)):
        return None
    # What was typed into a filter is an object with an id too, but no result.
    is_filter = "filter" in _object(result.get("object_detail"))
    document = None if is_filter else result.get("object_id")
    return _Event(
        query_id=query_id,
        kind=str(row.get("action_name") or ""),
        document_id="" if document is None else str(document),
        ordinal=ordinal,
        at_ms=at_ms,
        client=str(row.get("client_id") or ""),
        session=str(row.get("session_id") or attributes.get("session_id") or ""),
    )


def _text(row: dict[str, Any]) -> str:
    """Return the query's text from a query or an event, "" if it says none."""
    searched = _object(_object(row.get("event_attributes")).get("object")).get("search_term")
    text = row.get("user_query") or searched
    return text.strip() if isinstance(text, str) else ""


def _time_ms(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        if not -MS_MAX <= value <= MS_MAX:  # Nor is NaN a time.
            return None
        return int(value if value > SECONDS_MAX else value * 1000)
    if not isinstance(value, str):
        return None
    try:
        return round(datetime.fromisoformat(value).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        with path.open("rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = msgspec.json.decode(line)
                    if not isinstance(row, dict):
                        raise SettingsError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
                    yield row
    except (ValueError, RecursionError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"{path}:{number}: expected one JSON object a line, got: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"{path}: expected NDJSON, plain or gzip, got: {error}") from error
