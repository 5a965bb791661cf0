"""Ranked click sessions as CSV: `session_id,query,rank0,doc_id,clicked`, one row for every product that was shown.

rank0 counts from 0. The rows of a session are adjacent; the file may be larger than memory. A rank that does not count
from 0, or a click that is neither 0 nor 1, shows that the columns mean something else: the file is refused, with the
line. Any other bad row is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import msgspec

from search_env.traffic.limits import SEARCH_BYTES_MAX, SEARCH_ROWS_MAX, UNREADABLE, clean_name, refused, require_kind
from streams.errors import InputError
from streams.inputs.counts import Counted
from streams.inputs.csv_rows import csv_rows
from streams.inputs.files import InputFile
from streams.inputs.text import QUERY_CHARACTERS_MAX, Cuts
from streams.inputs.values import ID_BYTES_MAX, RANK_MAX, join_ids, read_id, read_rank
from streams.traffic_events import Action, Feedback, Shown

COLUMNS = ["session_id", "query", "rank0", "doc_id", "clicked"]
WITHOUT = ("without_session", "without_query", "without_document", "repeated", "beyond", UNREADABLE)
FIELD_BYTES = 72  # {"kind":"click","document_id":,"rank":1000001,"at_ms":0}, and a comma.
ROW_BYTES_MAX = 2 * (2 * ID_BYTES_MAX + FIELD_BYTES)


class SessionSummary:
    """The content of the file, counted while it is read: rows_read = rows + the sum of left_out.

    rows: rows that were used. unknown: those of them whose product is not in the catalogue; they are kept, because they
    were shown and clicked all the same. texts_cut: sessions whose query was cut. left_out: by reason, see `WITHOUT`: no
    usable id, no visible query, a rank that the session already has, more than 5,000 rows in one session or more than a
    record holds, or a line that is not a row.
    """

    def __init__(self) -> None:
        self.sessions = 0
        self.rows = 0
        self.clicks = 0
        self.unknown = 0
        self.rows_read = 0
        self.texts_cut = 0
        self.left_out = Counted()

    def as_dict(self) -> dict[str, object]:
        """Return the counts by name."""
        return {name: value for name, value in vars(self).items() if name != "left_out"} | {
            "left_out": {reason: self.left_out.counts[reason] for reason in WITHOUT}
        }


class _Row(NamedTuple):
    session: str
    query: str
    rank: int
    document_id: str
    clicked: bool
    line: int


class SessionFile:
    """A file of sessions that is read twice: first as a check that it can be used, then for its content."""

    def __init__(self, path: Path, *, application: str, known: Collection[str] | None) -> None:
        self._path = path
        self._application = application
        self._known = known
        self._summary = SessionSummary()

    def read_through(self) -> SessionSummary:
        """Read the whole file and return its counts. Raises InputError as `read_sessions` does."""
        for _ in self._read(self._summary):
            pass
        return self._summary

    def read_again(self, named: Callable[[str], str] = str) -> Iterator[Feedback]:
        """Yield each session as feedback. Raises InputError at the end if the file has changed in the meantime.

        named: gives the pseudonym of a session; it stands in the id of the feedback.
        """
        again = SessionSummary()
        yield from self._read(again, named)
        if again.as_dict() != self._summary.as_dict():
            raise InputError(f"{self._path}: the file changed while it was read. Import it again when it is complete")

    def _read(self, summary: SessionSummary, named: Callable[[str], str] = str) -> Iterator[Feedback]:
        return read_sessions(self._path, summary, application=self._application, known=self._known, named=named)


def read_sessions(
    path: Path,
    summary: SessionSummary,
    *,
    application: str,
    known: Collection[str] | None = None,
    named: Callable[[str], str] = str,
) -> Iterator[Feedback]:
    """Yield each session as feedback, and count the rows in `summary`.

    known: the catalogue's document ids, to count the rows that name another document; None counts none.
    named: gives what a session is called in the feedback's id.
    Raises InputError, with the line, for a file without these columns, a number out of its range, or a session whose
    rows are not adjacent; at the end, for a file with mostly unreadable rows or without usable rows.
    """
    file = InputFile(path, "sessions")
    application = clean_name(application)
    seen: set[tuple[str, str]] = set()
    cuts = Cuts()
    for key, members in groupby(_rows(file, summary), key=lambda row: (row.session, row.query)):
        session, query = key
        text = cuts.clean(query, characters_max=QUERY_CHARACTERS_MAX, what="query", where=f"session {session!r}")
        rows = _usable(members, summary.left_out, has_query=bool(text))
        if not rows:
            continue
        if key in seen:
            raise file.error(
                f"the rows of session {session!r}, {query[:60]!r} are not adjacent; sort the file", rows[0].line
            )
        seen.add(key)
        summary.sessions += 1
        summary.rows += len(rows)
        summary.clicks += sum(row.clicked for row in rows)
        summary.texts_cut = cuts.counts.total()
        if known is not None:
            summary.unknown += sum(row.document_id not in known for row in rows)
        yield Feedback(
            feedback_id=join_ids(application, named(session), query),
            query_id=text,
            query=text,
            application=application,
            shown=tuple(Shown(document_id=row.document_id, rank=row.rank) for row in rows),
            actions=tuple(
                Action(kind="click", document_id=row.document_id, rank=row.rank) for row in rows if row.clicked
            ),
            session=session,
        )
    require_kind(
        file, rows=summary.rows_read, unreadable=summary.left_out.counts[UNREADABLE], left_out=summary.left_out
    )
    if not summary.sessions:
        raise refused(file, f"none of its {summary.rows_read:,} rows can be used", summary.left_out)


def _usable(members: Iterable[_Row], left_out: Counted, *, has_query: bool) -> list[_Row]:
    """Return a session's rows, each rank once, and count the others."""
    rows: dict[int, _Row] = {}
    for row in members:
        if not has_query:
            left_out.add("without_query", row.line)
        elif row.rank in rows:
            left_out.add("repeated", row.line)
        elif len(rows) == SEARCH_ROWS_MAX:
            left_out.add("beyond", row.line)
        else:
            rows[row.rank] = row
    return list(_that_fit(rows.values(), left_out))


def _that_fit(rows: Collection[_Row], left_out: Counted) -> Iterator[_Row]:
    """Yield the rows that have room in one record, and count the others."""
    if len(rows) * ROW_BYTES_MAX <= SEARCH_BYTES_MAX:  # Nearly every session.
        yield from rows
        return
    size = 0
    for row in rows:
        size += (len(msgspec.json.encode(row.document_id)) + FIELD_BYTES) * (2 if row.clicked else 1)
        if size <= SEARCH_BYTES_MAX:
            yield row
        else:
            left_out.add("beyond", row.line)


def _rows(file: InputFile, summary: SessionSummary) -> Iterator[_Row]:
    """Yield the rows that name a session and a document, with ranks from 1."""

    def unreadable(number: int, said: str) -> None:
        summary.rows_read += 1
        summary.left_out.add(UNREADABLE, number, said)

    ranks: dict[str, int | None] = {str(rank): rank for rank in range(1000)}  # Nearly all ranks that occur.
    for number, (session, query, rank0, document, clicked) in csv_rows(file, COLUMNS, unreadable):
        summary.rows_read += 1
        rank = ranks[rank0] if rank0 in ranks else read_rank(rank0)
        if rank is None:
            raise file.error(
                f"expected rank0 to be a whole number from 0 to {RANK_MAX} (rank0 counts from 0), got {rank0[:40]!r}. "
                "Fix the line",
                number,
            )
        if clicked not in ("0", "1"):
            raise file.error(f"expected clicked to be 0 or 1, got {clicked[:40]!r}. Fix the line", number)
        if read_id(session) is None:
            summary.left_out.add("without_session", number)
        elif read_id(document) is None:
            summary.left_out.add("without_document", number)
        else:
            yield _Row(session, query, rank + 1, document, clicked == "1", number)
