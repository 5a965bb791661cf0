"""User Behavior Insights (UBI 1.3): query and event NDJSON of one or several applications, as feedback.

Applications log different things under the same names, so each is read by itself. One counts positions from 0 and
another from 1; one writes times as ISO text and another as milliseconds; one logs no impressions. A position with more
clicks than impressions has lost impressions. It gives no valid click rate, so it is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from search_env.traffic.limits import UNREADABLE, refused, require_kind
from search_env.traffic.ubi_application import ApplicationLog, ApplicationSummary
from streams.errors import SettingsError
from streams.inputs.counts import Counted
from streams.inputs.files import InputFile
from streams.inputs.json_rows import json_objects
from streams.inputs.values import read_id
from streams.traffic_events import Feedback

Row = dict[str, Any]


def read_ubi(
    queries: Path, events: Path, *, application: str | None = None
) -> tuple[list[Feedback], list[ApplicationSummary]]:
    """Return every search as feedback, in the order of time, and a summary of each application's log.

    Searches without a time come last. Rows without an application belong to an application called "", as do lines that
    are not a JSON object. application: read only this one.
    Raises InputError if a file is missing or of another kind, or if the two files contain no search.
    """
    logs: dict[str, ApplicationLog] = {}

    def log_of(row: Row) -> ApplicationLog:
        name = read_id(row.get("application")) or ""
        return logs.setdefault(name, ApplicationLog(name))

    _read(
        InputFile(queries, "UBI queries"),
        add=lambda number, row: log_of(row).add_query(number, row),
        unreadable=lambda number, said: log_of({}).add_unreadable_query(number, said),
        is_kind=lambda row: "action_name" not in row and ("query_id" in row or "user_query" in row),
        expected="query_id and user_query, and no action_name",
    )
    _read(
        InputFile(events, "UBI events"),
        add=lambda number, row: log_of(row).add_event(number, row),
        unreadable=lambda number, said: log_of({}).add_unreadable_event(number, said),
        is_kind=lambda row: isinstance(row.get("action_name"), str),
        expected="action_name",
    )
    if application is not None and application not in logs:
        raise SettingsError(f"--application: expected one of {', '.join(sorted(logs)) or 'none'}, got {application!r}")
    chosen = [logs[name] for name in sorted(logs) if application is None or name == application]
    found = [log.read() for log in chosen]
    feedback = sorted(
        (each for searches, _ in found for each in searches),
        key=lambda each: (not each.at_ms, each.at_ms, each.feedback_id),
    )
    if not feedback:
        said = "; ".join(filter(None, (log.told() for log in chosen))) or "both files are empty"
        raise InputFile(queries, "UBI queries").error(
            f"no search came out of this file and {events} ({said}). Nothing was imported"
        )
    return feedback, [summary for _, summary in found]


def _read(
    file: InputFile,
    *,
    add: Callable[[int, Row], None],
    unreadable: Callable[[int, str], None],
    is_kind: Callable[[Row], bool],
    expected: str,
) -> None:
    """Read a file's rows; an empty file has none.

    Raises InputError if most lines are not a JSON object, or if most rows are of another kind.
    """
    bad = Counted()

    def leave_out(number: int, said: str) -> None:
        bad.add(UNREADABLE, number, said)
        unreadable(number, said)

    rows = of_kind = actions = 0
    for number, row in json_objects(file, leave_out):
        rows += 1
        of_kind += is_kind(row)
        actions += _is_bulk_action(row)
        add(number, row)
    require_kind(file, rows=rows + bad.total, unreadable=bad.total, left_out=bad)
    if (rows and of_kind * 2 < rows - actions) or (rows and not of_kind):
        raise refused(
            file,
            f"expected rows with {expected}, but {rows - actions - of_kind:,} of {rows:,} lack them. Were --queries "
            "and --events swapped, or is this another file",
            bad,
        )


def _is_bulk_action(row: Row) -> bool:
    """Return whether a row is an action line of Elasticsearch's bulk format, which precedes each document."""
    return len(row) == 1 and next(iter(row)) in ("index", "create") and isinstance(next(iter(row.values())), dict)
