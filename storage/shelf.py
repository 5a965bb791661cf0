"""What the reader of a report may know beside the log: titles and grades of the documents in its examples."""

from __future__ import annotations

import msgspec


class Shelf(msgspec.Struct, frozen=True, kw_only=True):
    """titles: by document. grades: by query, then by document; only judged ones. note: why something is missing.

    program: how commands on the page begin. folder: how they name the run's folder. baseline: the recipe's row without
    any policy.
    """

    titles: dict[str, str] = {}
    grades: dict[str, dict[str, int]] = {}
    note: str = ""
    program: str = "searchloop"
    folder: str = "RUN_FOLDER"
    baseline: str = "none"
