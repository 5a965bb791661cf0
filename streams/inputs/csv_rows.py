"""CSV with a known header: an open quote spoils only its own line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from streams.inputs.files import Bad, InputFile

LINES_MAX = 20  # A quoted field may span this many lines; without a limit, an open quote would swallow the whole file.


def csv_rows(file: InputFile, columns: Sequence[str], bad: Bad) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of every row after the header; a row has as many fields as there are columns.

    bad: is called for a malformed row; reading continues with the next row.
    Raises the file's error for a different header, and the errors of `InputFile.lines`.
    """
    lines = file.lines(bad)
    first = next(lines, None)
    expected = f"expected the columns {','.join(columns)}"
    if first is None:
        raise file.error(f"{expected}, got an empty file. Check how the file was made.")
    if _fields([first]) != list(columns):
        raise file.error(f"{expected}, got {first[1][:200]!r}. Is this a {file.what} file?", first[0])
    waiting: list[tuple[int, str]] = []
    while True:
        number, line = waiting.pop(0) if waiting else next(lines, (0, ""))
        if not number:
            return
        if '"' not in line:
            fields = line.split(",")
            if len(fields) == len(columns):
                yield number, fields
            else:
                bad(number, f"expected {len(columns)} columns ({','.join(columns)}), got {len(fields)}")
            continue
        taken, inside = [(number, line)], _ends_inside(line, inside=False)
        while inside and len(taken) < LINES_MAX:
            following = waiting.pop(0) if waiting else next(lines, None)
            if following is None:
                break
            taken.append(following)
            inside = _ends_inside(following[1], inside=True)
        found = None if inside else _fields(taken)
        if found is not None and len(found) == len(columns):
            yield number, found
            continue
        bad(number, f"expected {len(columns)} columns ({','.join(columns)}), got a misplaced quote")
        waiting = taken[1:] + waiting


def _ends_inside(line: str, *, inside: bool) -> bool:
    """Return whether a line ends within a quoted field. inside: whether it begins within one.

    A quote opens a field only at the field's beginning: in `5" tv` the quote is part of the text.
    """
    at = line.find('"')
    while at >= 0:
        if not inside:
            inside = at == 0 or line[at - 1] == ","
        elif line.startswith('""', at):
            at += 1
        else:
            inside = False
        at = line.find('"', at + 1)
    return inside


def _fields(lines: Sequence[tuple[int, str]]) -> list[str] | None:
    """Return the fields of one record, None if it is not CSV.

    In a record of several lines, nothing may follow a closing quote.
    """
    text = "\n".join(line for _, line in lines)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=len(lines) > 1))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
