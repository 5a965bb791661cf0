"""NDJSON: one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from streams.inputs.files import Bad, InputFile


def json_objects(file: InputFile, bad: Bad | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of every line.

    bad: is called for a line that is not an object; reading continues with the next line. None raises instead.
    Raises the errors of `InputFile.lines`.
    """
    decoder = msgspec.json.Decoder()
    for number, line in file.lines(bad):
        try:
            record = decoder.decode(line)
        except (ValueError, RecursionError) as error:  # UnicodeError and msgspec's own errors are ValueErrors.
            said = f"expected one JSON object, got malformed JSON: {error}"
            if bad is None:
                raise file.error(said, number) from error
            bad(number, said)
            continue
        if isinstance(record, dict):
            yield number, record
            continue
        mend = "Unpack it: jq -c '.[]' IN > OUT" if isinstance(record, list) else "Fix the line."
        said = f"expected one JSON object, got {json_kind(record)}. {mend}"
        if bad is None:
            raise file.error(said, number)
        bad(number, said)


def json_kind(value: Any) -> str:
    """Return JSON's name for the kind of a value, with its article, for a message."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")
