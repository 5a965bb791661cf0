"""`searchloop ui`: the pages of a home, in a browser."""

from __future__ import annotations

import asyncio

import click

from infra.app.app import App


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; 0 takes a free one. Default: ui.port.")
@click.pass_obj
def ui(app: App, port: int | None) -> None:
    """Show every run of the home in a browser: whether it learns, cheats, stalls or lies, and the results behind it.

    \b
    The printed address opens the pages; its token keeps others on this machine out (ui.token sets your own).
    The pages only read. A run that is going is followed through its archive and Kafka, so its newest records appear
    within a second or two; a run that has ended is read from its DuckDB file. Nothing is asked of any other host.
    Ctrl-C ends the pages, and no run notices.

    \b
    Example:
      searchloop ui
      searchloop ui --port 0
    """
    from infra.ui.server import show_pages

    if port is not None:
        app = app.with_changes("--port", {"ui": {"port": port}})
    asyncio.run(show_pages(app, told=lambda address: click.echo(address)))
