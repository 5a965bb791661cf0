"""Arrow columns from Python values: flat columns, and nested columns from flat arrays and offsets.

Row by row, pyarrow's own conversion of lists of structs takes five times as long as decoding their JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa

from streams.events import Hit
from streams.records import Received
from streams.topics import kind_of

Columns = dict[str, pa.Array]
Built = tuple[str, Columns]
"""The name of a table, and its rows."""

HEADERS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))
NUMBERS = pa.map_(pa.string(), pa.float64())
TEXTS = pa.map_(pa.string(), pa.string())
POSITIONS = pa.map_(pa.int64(), pa.int64())


def places(records: Sequence[Received], counts: Sequence[int] | None = None) -> Columns:
    """Return the first columns of every table. counts: the number of rows per record (default: one)."""
    columns = {
        "topic": strings(record.position.topic for record in records),
        "partition": pa.array([record.position.partition for record in records], pa.int32()),
        "record_offset": integers(record.position.offset for record in records),
        "record_time_ms": integers(record.timestamp_ms for record in records),
    }
    return columns if counts is None else repeat(columns, counts)


def run_of(topic: str) -> str:
    """Return the run that a topic belongs to: topics are named `<run>.<kind>`; "" for any other name."""
    return topic.removesuffix(kind_of(topic)).removesuffix(".")


def runs_of(records: Sequence[Received]) -> pa.Array:
    """Return the runs whose topics hold the records; a replayed event names the run in which it was recorded."""
    names = {record.position.topic: run_of(record.position.topic) for record in records}
    return strings(names[record.position.topic] for record in records)


def repeat(columns: Columns, counts: Sequence[int]) -> Columns:
    rows = pa.array(list(chain.from_iterable([row] * count for row, count in enumerate(counts))), pa.int32())
    return {name: column.take(rows) for name, column in columns.items()}


def strings(values: Iterable[str | None]) -> pa.Array:
    return pa.array(list(values), pa.string())


def integers(values: Iterable[int | None]) -> pa.Array:
    return pa.array(list(values), pa.int64())


def floats(values: Iterable[float | None]) -> pa.Array:
    return pa.array(list(values), pa.float64())


def booleans(values: Iterable[bool]) -> pa.Array:
    return pa.array(list(values), pa.bool_())


def bounds(lists: Sequence[Sized]) -> pa.Array:
    return pa.array([0, *accumulate(map(len, lists))], pa.int32())


def string_lists(lists: Sequence[tuple[str, ...]]) -> pa.Array:
    return pa.ListArray.from_arrays(bounds(lists), strings(chain.from_iterable(lists)))


def hits(lists: Sequence[tuple[Hit, ...]]) -> pa.Array:
    flat = list(chain.from_iterable(lists))
    fields = {
        "document_id": strings([hit.document_id for hit in flat]),
        "rank": integers([hit.rank for hit in flat]),
        "score": floats([hit.score for hit in flat]),
    }
    return pa.ListArray.from_arrays(bounds(lists), pa.StructArray.from_arrays(list(fields.values()), list(fields)))


def structs(lists: Sequence[Sequence[Any]], fields: Mapping[str, pa.DataType]) -> pa.Array:
    """Return lists of structs; each value has the fields as attributes, a dictionary for a map."""
    flat = list(chain.from_iterable(lists))
    columns = [
        maps([getattr(value, name) for value in flat], kind)
        if isinstance(kind, pa.MapType)
        else pa.array([getattr(value, name) for value in flat], kind)
        for name, kind in fields.items()
    ]
    return pa.ListArray.from_arrays(bounds(lists), pa.StructArray.from_arrays(columns, list(fields)))


def headers(lists: Sequence[tuple[tuple[str, bytes], ...]]) -> pa.Array:
    flat = list(chain.from_iterable(lists))
    names, values = strings([name for name, _ in flat]), pa.array([value for _, value in flat], pa.binary())
    return pa.ListArray.from_arrays(bounds(lists), pa.StructArray.from_arrays([names, values], ["name", "value"]))


def maps(entries: Sequence[Mapping[Any, Any] | None], kind: pa.MapType) -> pa.Array:
    """Return one map a row; None gives NULL, which differs from the empty map."""
    said = [entry or {} for entry in entries]
    keys = pa.array(list(chain.from_iterable(said)), kind.key_type)
    values = pa.array([value for entry in said for value in entry.values()], kind.item_type)
    missing = [entry is None for entry in entries]
    starts = bounds(said) if not any(missing) else _starts(said, missing)
    return pa.MapArray.from_arrays(starts, keys, values)


def _starts(said: Sequence[Sized], missing: Sequence[bool]) -> pa.Array:
    """Return the start of each row, and the end; NULL if the row itself is NULL."""
    rows = bounds(said).to_pylist()
    return pa.array([*(None if none else at for at, none in zip(rows, missing, strict=False)), rows[-1]], pa.int32())
