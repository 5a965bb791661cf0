"""Ranked click sessions as CSV: `session_id,query,rank0,doc_id,clicked`, one row for every product that was shown.

rank0 counts from 0. The rows of a session stand together; the file may be larger than memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path

import msgspec

from streams.errors import SettingsError
from streams.events import Action, Feedback, Shown

COLUMNS = ["session_id", "query", "rank0", "doc_id", "clicked"]


class SessionSummary:
    """What the file held, counted while it is read.

    unknown: rows whose product is not in the catalogue; they are kept, for they were shown and clicked all the same.
    """

    def __init__(self) -> None:
        self.sessions = 0
        self.rows = 0
        self.clicks = 0
        self.unknown = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return dict(vars(self))


class _Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    session: str
    query: str
    rank: int
    document_id: str
    clicked: bool


def read_sessions(
    path: Path, summary: SessionSummary, *, application: str, known: Collection[str] | None = None
) -> Iterator[Feedback]:
    """Yield each session as feedback, and count in `summary` what was read.

    known: the catalogue's document ids, to count the rows that name another; None counts none.
    Raises SettingsError, naming the line, for a file without these columns, a bad number, or a session whose rows do
    not stand together.
    """
    seen: set[tuple[str, str]] = set()
    for key, members in groupby(_rows(path), key=lambda row: (row.session, row.query)):
        if key in seen:
            raise SettingsError(
                f"{path}: the rows of session {key[0]!r}, {key[1]!r} do not stand together; sort the file"
            )
        seen.add(key)
        rows = list(members)
        summary.sessions += 1
        summary.rows += len(rows)
        summary.clicks += sum(row.clicked for row in rows)
        if known is not None:
            summary.unknown += sum(row.document_id not in known for row in rows)
        session, query = key
        yield Feedback(
            feedback_id=f"{application}:{session}:{query}",
            query_id=query,
            query=query,
            application=application,
            shown=tuple(Shown(document_id=row.document_id, rank=row.rank) for row in rows),
            actions=tuple(
                Action(kind="click", document_id=row.document_id, rank=row.rank) for row in rows if row.clicked
            ),
            session=session,
        )


def _rows(path: Path) -> Iterator[_Row]:
    number = 1
    try:
        with path.open("rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as raw:
            lines = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
            header = next(lines, [])
            if header != COLUMNS:
                raise SettingsError(
                    f"{path}:1: expected the columns {','.join(COLUMNS)}, got {','.join(header)[:200]!r}"
                )
            for fields in lines:
                number = lines.line_num
                session, query, rank, document, clicked = fields
                if clicked not in ("0", "1"):
                    raise ValueError(f"expected clicked to be 0 or 1, got {clicked!r}")
                yield _Row(
                    session=session, query=query, rank=int(rank) + 1, document_id=document, clicked=clicked == "1"
                )
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"{path}: expected CSV, plain or gzip, got: {error}") from error
    except (ValueError, csv.Error) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"{path}:{number}: expected {','.join(COLUMNS)}, got: {error}") from error
