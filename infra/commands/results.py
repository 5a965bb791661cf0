"""The output of a verb's result: a table of its fields, or one JSON object."""

from __future__ import annotations

import click
import msgspec
from rich.console import Console
from rich.table import Table


def warn(text: str) -> None:
    """Print a warning on standard error about values that a reader changed or left out."""
    click.echo(f"warning: {text}", err=True)


def show_result(result: msgspec.Struct, title: str, *, as_json: bool) -> None:
    """Print the fields of a result, one per row."""
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
        return
    table = Table(title=title, show_header=False)
    for name, value in msgspec.structs.asdict(result).items():
        table.add_row(name.replace("_", " "), f"{value:,.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
