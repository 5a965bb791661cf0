"""Saved questions: one SQL file each, with a head of comments that says what it shows and how to draw it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from storage.errors import StorageError

HEAD = re.compile(r"-- (?P<field>[a-z]+): (?P<value>.*)")
PARAMETER = re.compile(r"\$([a-z_]+)")

Draw = Literal["line", "lines", "multiples", "stack", "scatter", "table"]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question to the ledger of one run, and the way in which its answer is drawn.

    name: of its file. page: where it stands. order: its place there. draw: "line" draws each column of `y` over `x`,
    with a band from the columns of `band` (lower end, upper end); "lines" one line for each value of the column
    `series`; "multiples" one small chart for each; "stack" the lines added up. unit: "share" is a value from 0 to 1.
    says: how to read it, in a sentence. link: where a click on a point leads, with columns in braces. empty: what an
    answer without rows means. smooth: the drawn line is a mean over so many points; the raw line stays behind it.
    """

    name: str
    page: str
    order: int
    title: str
    draw: Draw
    says: str
    sql: str
    x: str = ""
    y: tuple[str, ...] = ()
    series: str = ""
    band: tuple[str, ...] = ()
    unit: str = ""
    link: str = ""
    empty: str = ""
    smooth: int = 1

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the values that must be given with the question."""
        return frozenset(PARAMETER.findall(self.sql))


@cache
def saved_questions() -> Mapping[str, Question]:
    """Return all questions by name, in the order of their pages."""
    folder = resources.files("storage.questions").joinpath("sql")
    found = [
        read_question(each.name.removesuffix(".sql"), each.read_text())
        for each in folder.iterdir()
        if each.name.endswith(".sql")
    ]
    return {each.name: each for each in sorted(found, key=lambda each: (each.page, each.order, each.name))}


def read_question(name: str, text: str) -> Question:
    """Return a question from its file's text. Raises StorageError with the line or field that is wrong."""
    fields: dict[str, object] = {"name": name}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("--"):
            break
        match = HEAD.fullmatch(line)
        if match is None:
            raise StorageError(f"{name}.sql, line {number + 1}: expected `-- field: value`, got {line!r}")
        fields[match["field"]] = match["value"].strip()
    fields["sql"] = "\n".join(line for line in lines if HEAD.fullmatch(line) is None).strip().rstrip(";")
    for field in ("y", "band"):
        if field in fields:
            fields[field] = tuple(part.strip() for part in str(fields[field]).split(","))
    try:
        return msgspec.convert(fields, Question, strict=False)
    except msgspec.ValidationError as error:
        raise StorageError(f"{name}.sql: {error}") from error
