"""A search template in a file, as a search body with marks.

The file is the JSON of a search body. `{{name}}` is a variable, in quotes as any text, or bare where its value is a
number or a list. Only the query and the expansions stay variables; the user gives the others once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from search_env.engine.forms import Body
from search_env.engine.marked_query import EXPANSIONS, QUERY
from search_env.engine.ownership import IndexingError
from streams.inputs.files import InputFile

_NAME = r"\{\{\s*(?P<name>[\w.-]+)\s*\}\}"
_VARIABLE = re.compile(_NAME)
_BARE = re.compile(rf"(?<=[:,\[\s]){_NAME}(?=[\s,\]}}])")
_UNESCAPED = re.compile(r"\{\{\{\s*([\w.-]+)\s*\}\}\}")
_SECTION = re.compile(r"\{\{\s*[#^/>!]")


def read_parameters(path: Path) -> dict[str, Any]:
    """Return the variables in a file: one JSON object. Raises IndexingError for anything else."""
    file = InputFile(path, "template's variables")
    try:
        return msgspec.json.decode(_text(file), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise IndexingError(f"{path}: expected one JSON object of variables and their values, got {error}") from None


def read_template(path: Path, *, query: str, expansions: str, parameters: Mapping[str, Any]) -> Body:
    """Return the body in a file, with the marks for the query and, if they have a variable, for the expansions.

    query, expansions: the names of their variables. parameters: the values of the other ones.
    Raises IndexingError if a variable has no value, if the file has sections, or if it is no JSON.
    """
    file = InputFile(path, "search template")
    text = _UNESCAPED.sub(r"{{\1}}", _text(file))
    if _SECTION.search(text):
        raise IndexingError(
            f"{path}: expected variables such as {QUERY} alone, got a section ({{{{#…}}}}). Store the template on the "
            "cluster and give its name: --template-id NAME; or write out the search that you use"
        )
    marks = {query: QUERY, **({expansions: EXPANSIONS} if expansions else {}), "expansions": EXPANSIONS}
    values = {**parameters, **marks}
    text = _BARE.sub(lambda found: _encoded(values, found, path), text)
    try:
        body = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise IndexingError(
            f"{path}: expected the JSON of a search body with {QUERY} as a value, got {error}"
        ) from None
    filled: Body = _filled(body, values, path)
    return filled


def _text(file: InputFile) -> str:
    return "\n".join(line for _, line in file.lines())


def _filled(value: Any, values: Mapping[str, Any], path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, values, path) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values, path) for each in value]
    if not isinstance(value, str):
        return value
    whole = _VARIABLE.fullmatch(value)
    if whole:
        return _value(values, whole, path)
    return _VARIABLE.sub(lambda found: str(_value(values, found, path)), value)


def _encoded(values: Mapping[str, Any], found: re.Match[str], path: Path) -> str:
    return msgspec.json.encode(_value(values, found, path)).decode()


def _value(values: Mapping[str, Any], found: re.Match[str], path: Path) -> Any:
    name = found["name"]
    try:
        return values[name]
    except KeyError:
        raise IndexingError(
            f"{path}: the variable {found[0]} has no value. Give a file with it: --parameters FILE, such as "
            f'{{"{name}": …}}; or name it with --query-variable, if it holds the query'
        ) from None
