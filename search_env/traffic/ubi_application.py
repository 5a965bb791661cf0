"""The log of one UBI application: it reads query rows and event rows one by one, and gives their searches."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from sys import intern
from typing import Any, NamedTuple

import msgspec

from search_env.traffic.limits import SEARCH_ROWS_MAX, UNREADABLE, VISITOR_CHARACTERS_MAX, clean_name
from streams.inputs.counts import Counted
from streams.inputs.text import QUERY_CHARACTERS_MAX, Cuts
from streams.inputs.values import join_ids, read_id, read_rank, read_time_ms
from streams.traffic_events import Action, Feedback, LoggedChoice, Shown

IMPRESSION = "impression"
CLICKS = frozenset({"click", "item_click"})
HITS = ("query_response_hit_ids", "query_response_object_ids")
Row = dict[str, Any]


class ApplicationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of one application's log. Every row is counted once:

    query_rows = searches - searches_of_events + repeated + queries_without_id + queries_without_text +
    queries_unreadable; event_rows = shown - shown_by_queries + shown_again + actions + without_query + other + rejected
    + unreadable + beyond.

    searches, shown, actions: as in the feedback. shown_by_queries: the part of `shown` that comes from query rows.
    searches_of_events: searches known only from their events.
    first_ordinal: the first of its positions (0 or 1).
    repeated: rows of the query file that name an earlier search, or that equal an earlier row without an id.
    queries_without_id, queries_without_text: rows that name no search, and searches without a known text.
    queries_without_time: searches whose own time is missing or unreadable; they are kept, with the time of their first
    event. texts_cut: searches whose text was cut at 512 characters.
    orphans: actions whose search is not in the query file, or whose document that search did not show.
    shown_again: impressions of a document that its search has already shown. without_query: events of no search, or of
    a search without a known text. other: events that name no result (filters, sorting …). positions_rejected: ranks
    with more clicks than impressions; rejected: events left out with them. unreadable: events without a usable time,
    action, position or document id, and impressions without a document or position. beyond: events of a search that
    already has 5,000.
    """

    application: str
    query_rows: int
    event_rows: int
    searches: int
    searches_of_events: int
    shown: int
    shown_by_queries: int
    actions: int
    first_ordinal: int
    orphans: int
    repeated: int
    queries_without_id: int
    queries_without_text: int
    queries_unreadable: int
    queries_without_time: int
    texts_cut: int
    shown_again: int
    without_query: int
    other: int
    positions_rejected: tuple[int, ...]
    rejected: int
    unreadable: int
    beyond: int


class _Search(NamedTuple):
    """A search as its query row describes it. text: cleaned; "" if it has none.

    choice, hits: what a server of ours chose and showed, as `export-ubi` writes it; None and empty in other logs.
    """

    text: str
    client: str
    at_ms: int | None
    line: int
    choice: LoggedChoice | None = None
    hits: tuple[str, ...] = ()


class _Event(NamedTuple):
    query_id: str
    kind: str
    document_id: str
    ordinal: int | None
    at_ms: int
    client: str
    session: str
    line: int


class ApplicationLog:
    """Reads the rows of one application, and makes feedback of them after the last row."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.queries_left_out = Counted()
        self.events_left_out = Counted()
        self._searches: dict[str, _Search] = {}
        self._texts: dict[str, str] = {}  # By query id, of events.
        self._events: list[_Event] = []
        self._unnamed: set[bytes] = set()
        self._cuts = Cuts()
        self._query_rows = self._event_rows = self._shown_by_queries = 0

    def add_query(self, number: int, row: Row) -> None:
        """Read a row of the query file. Of rows that name the same search, the first with a text counts."""
        self._query_rows += 1
        query_id = read_id(row.get("query_id"))
        if query_id is None:
            # Copies of one row count as one fault, for example the action lines of the bulk format.
            digest = hashlib.sha256(msgspec.json.encode(row, order="deterministic")).digest()[:16]
            self.queries_left_out.add("repeated" if digest in self._unnamed else "queries_without_id", number)
            self._unnamed.add(digest)
            return
        known = self._searches.get(query_id)
        if known is not None:
            self.queries_left_out.add("repeated", number)
            if known.text:
                return
        choice = _choice(row)
        self._searches[query_id] = _Search(
            self._text(row, number),
            _visitor(row.get("client_id")),
            read_time_ms(row.get("timestamp")),
            number,
            choice,
            _hits(row) if choice else (),
        )

    def add_unreadable_query(self, number: int, said: str) -> None:
        """Count a line of the query file that is not a row."""
        self._query_rows += 1
        self.queries_left_out.add(UNREADABLE, number, said)

    def add_event(self, number: int, row: Row) -> None:
        """Read a row of the event file."""
        self._event_rows += 1
        query_id = read_id(row.get("query_id"))
        if query_id is not None and not self._text_of(query_id) and (text := self._text(row, number)):
            self._texts[query_id] = text
        event = _event(row, query_id or "", number)
        if event is None:
            self.events_left_out.add(UNREADABLE, number)
        elif not event.document_id:
            self.events_left_out.add(UNREADABLE if event.kind == IMPRESSION else "other", number)
        elif event.kind == IMPRESSION and event.ordinal is None:
            self.events_left_out.add(UNREADABLE, number)
        else:
            self._events.append(event)

    def add_unreadable_event(self, number: int, said: str) -> None:
        """Count a line of the event file that is not a row."""
        self._event_rows += 1
        self.events_left_out.add(UNREADABLE, number, said)

    def told(self) -> str:
        """Return the rows left out, in one line."""
        return "; ".join(filter(None, (self.queries_left_out.told(), self.events_left_out.told())))

    def read(self) -> tuple[list[Feedback], ApplicationSummary]:
        """Return the searches of all rows, and the summary."""
        for query_id, search in self._searches.items():
            if not self._text_of(query_id):
                self.queries_left_out.add("queries_without_text", search.line)
        # An event of an unknown search has no information about a document or a position.
        events = self._keep(self._events, "without_query", lambda each: bool(self._text_of(each.query_id)))
        shown = [each.ordinal for each in events if each.kind == IMPRESSION and each.ordinal is not None]
        clicked = [each.ordinal for each in events if each.kind in CLICKS and each.ordinal is not None]
        base = 0 if min(shown or clicked, default=1) == 0 else 1
        # Position 0 is invalid if impressions begin with 1.
        events = self._keep(events, UNREADABLE, lambda each: each.ordinal is None or each.ordinal >= base)
        rejected = _impossible(events, base)
        events = self._keep(
            events, "rejected", lambda each: each.ordinal is None or each.ordinal + 1 - base not in rejected
        )
        by_query: dict[str, list[_Event]] = defaultdict(list)
        for event in events:
            if len(by_query[event.query_id]) < SEARCH_ROWS_MAX:
                by_query[event.query_id].append(event)
            else:
                self.events_left_out.add("beyond", event.line)
        feedback = [
            self._feedback(query_id, by_query.get(query_id, []), base)
            for query_id in {**self._searches, **by_query}
            if self._text_of(query_id)
        ]
        return feedback, self._summary(feedback, base, rejected)

    def _keep(self, events: list[_Event], reason: str, is_kept: Callable[[_Event], bool]) -> list[_Event]:
        """Return the events that are kept, and count the others under a reason."""
        kept = []
        for event in events:
            if is_kept(event):
                kept.append(event)
            else:
                self.events_left_out.add(reason, event.line)
        return kept

    def _text_of(self, query_id: str) -> str:
        """Return a search's text, from its query row or else from its events; "" if neither has it."""
        search = self._searches.get(query_id)
        return (search.text if search else "") or self._texts.get(query_id, "")

    def _text(self, row: Row, number: int) -> str:
        """Return the query's cleaned text from a query or an event; "" if it has none."""
        searched = _object(_object(row.get("event_attributes")).get("object")).get("search_term")
        for text in (row.get("user_query"), searched):
            if isinstance(text, str) and (
                clean := self._cuts.clean(
                    text, characters_max=QUERY_CHARACTERS_MAX, what="query", where=f"line {number}"
                )
            ):
                return clean
        return ""

    def _feedback(self, query_id: str, events: list[_Event], base: int) -> Feedback:
        shown: dict[str, int] = {}
        for event in events:
            if event.kind != IMPRESSION or event.ordinal is None:
                continue
            if event.document_id in shown:
                self.events_left_out.add("shown_again", event.line)
            shown.setdefault(event.document_id, event.ordinal + 1 - base)
        search, first = self._searches.get(query_id), events[0] if events else None
        if search and not shown:
            shown = {document: rank for rank, document in enumerate(search.hits, start=1)}
            self._shown_by_queries += len(shown)
        began = search.at_ms if search else None
        return Feedback(
            feedback_id=join_ids(self.name, query_id),
            query_id=query_id,
            query=self._text_of(query_id),
            application=self.name,
            shown=tuple(Shown(document_id=document, rank=rank) for document, rank in sorted(shown.items(), key=_rank)),
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
            client=(search.client if search else "") or (first.client if first else ""),
            session=first.session if first else "",
            at_ms=began if began is not None else min((event.at_ms for event in events), default=0),
            choice=search.choice if search and search.choice else msgspec.UNSET,
        )

    def _summary(self, feedback: list[Feedback], base: int, rejected: set[int]) -> ApplicationSummary:
        orphans = 0
        for each in feedback:
            seen = {shown.document_id for shown in each.shown}
            known = each.query_id in self._searches
            orphans += sum(not known or action.document_id not in seen for action in each.actions)
        queries, events = self.queries_left_out.counts, self.events_left_out.counts
        return ApplicationSummary(
            application=self.name,
            query_rows=self._query_rows,
            event_rows=self._event_rows,
            searches=len(feedback),
            searches_of_events=sum(each.query_id not in self._searches for each in feedback),
            shown=sum(len(each.shown) for each in feedback),
            shown_by_queries=self._shown_by_queries,
            actions=sum(len(each.actions) for each in feedback),
            first_ordinal=base,
            orphans=orphans,
            repeated=queries["repeated"],
            queries_without_id=queries["queries_without_id"],
            queries_without_text=queries["queries_without_text"],
            queries_unreadable=queries[UNREADABLE],
            queries_without_time=sum(
                search.at_ms is None for query_id, search in self._searches.items() if self._text_of(query_id)
            ),
            texts_cut=self._cuts.counts.total(),
            shown_again=events["shown_again"],
            without_query=events["without_query"],
            other=events["other"],
            positions_rejected=tuple(sorted(rejected)),
            rejected=events["rejected"],
            unreadable=events[UNREADABLE],
            beyond=events["beyond"],
        )


def _impossible(events: list[_Event], base: int) -> set[int]:
    """Return the ranks that were clicked more often than shown; none if impressions were not logged at all."""
    shown = Counter(e.ordinal + 1 - base for e in events if e.kind == IMPRESSION and e.ordinal is not None)
    clicked = Counter(e.ordinal + 1 - base for e in events if e.kind in CLICKS and e.ordinal is not None)
    return {rank for rank, count in clicked.items() if count > shown[rank]} if shown else set()


def _choice(row: Row) -> LoggedChoice | None:
    """Return the choice that a query row logs, as far as it is one; None if it names no policy."""
    attributes = _object(row.get("query_attributes"))
    policy, propensity, offered = (attributes.get(name) for name in ("policy", "action_propensity", "offered"))
    if not isinstance(policy, str) or (name := _visitor(policy)) != policy:
        return None
    try:
        return LoggedChoice(
            policy=name,
            action_propensity=msgspec.convert(propensity, float | None),
            offered=msgspec.convert(offered or {}, dict[str, float]),
        )
    except msgspec.ValidationError:
        return LoggedChoice(policy=name)


def _hits(row: Row) -> tuple[str, ...]:
    """Return the documents that a query row says were shown, best first, each once."""
    hits: list[Any] = next((row[name] for name in HITS if isinstance(row.get(name), list)), [])
    return tuple(dict.fromkeys(name for hit in hits[:SEARCH_ROWS_MAX] if (name := read_id(hit)) is not None))


def _rank(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def _event(row: Row, query_id: str, number: int) -> _Event | None:
    """Return an event's data about a result; None if its time, action, position or document id is unusable.

    document_id: "" if it names no result.
    """
    attributes = _object(row.get("event_attributes"))
    position, result = _object(attributes.get("position")), _object(attributes.get("object"))
    ordinal = read_rank(position.get("ordinal"))
    at_ms, kind = read_time_ms(row.get("timestamp")), clean_name(row.get("action_name"))
    if at_ms is None or not kind or (ordinal is None and position.get("ordinal") is not None):
        return None
    # A filter's input is an object with an id, too, but not a result.
    is_filter = "filter" in _object(result.get("object_detail"))
    named = None if is_filter else result.get("object_id")
    document_id = read_id(named)
    if document_id is None and named not in (None, ""):
        return None
    session = _visitor(row.get("session_id")) or _visitor(attributes.get("session_id"))
    # The same few texts occur in millions of events, so each is kept once.
    return _Event(
        query_id=intern(query_id),
        kind=intern(kind),
        document_id=intern(document_id or ""),
        ordinal=ordinal,
        at_ms=at_ms,
        client=intern(_visitor(row.get("client_id"))),
        session=intern(session),
        line=number,
    )


def _visitor(value: object) -> str:
    """Return a client's or session's id; "" if the log names none. A number is also an id."""
    text = read_id(value) if isinstance(value, int) else value
    return clean_name(text, characters_max=VISITOR_CHARACTERS_MAX)


def _object(value: object) -> Row:
    return value if isinstance(value, dict) else {}
