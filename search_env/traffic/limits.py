"""Limits on traffic from other systems, which apply to every kind of log that becomes feedback."""

from __future__ import annotations

from streams.codec import RECORD_BYTES_MAX
from streams.errors import InputError
from streams.inputs.counts import Counted
from streams.inputs.files import InputFile
from streams.inputs.text import clean_text

# A search's rows form one record of at most 8 MiB; an id may have 512 bytes, and JSON may double them. A UBI row is
# shown or an action, so 5,000 have room. A session's row may be both: then the bytes tell how many have room.
SEARCH_ROWS_MAX = 5_000
SEARCH_BYTES_MAX = RECORD_BYTES_MAX - 64 * 1024  # Query, ids of search and session, and application are below 16 KiB.
NAME_CHARACTERS_MAX = 100  # UBI's own limit for applications and actions.
VISITOR_CHARACTERS_MAX = 512

UNREADABLE = "unreadable"


def clean_name(value: object, *, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """Return a name for display and grouping, cleaned and cut; "" for a value that is not text."""
    return clean_text(value, characters_max=characters_max) if isinstance(value, str) else ""


def require_kind(file: InputFile, *, rows: int, unreadable: int, left_out: Counted) -> None:
    """Raise the file's error if most of its rows are unreadable: it is of another kind, or badly damaged."""
    if unreadable * 2 > rows:
        raise refused(file, f"expected {file.what} rows, but {unreadable:,} of {rows:,} cannot be read", left_out)


def refused(file: InputFile, said: str, left_out: Counted) -> InputError:
    """Return the error of a whole file: its fault, the rows left out, and the first line of each reason."""
    return file.error(f"{said}{': ' + left_out.told() if left_out.total else ''}. Nothing was imported")
