"""`searchloop serve`: search results for people over HTTP, and the events of what people do with them."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from infra.app.app import App
from infra.app.progress import progress
from services.private_variables import piped

if TYPE_CHECKING:
    from infra.serving.server import Inherited


@click.command()
@click.option("--index", default="catalogue", show_default=True, help="Index that is searched; it may be attached.")
@click.option("--run", "run_name", default="live", show_default=True, help="Run of the live traffic.")
@click.option(
    "--learned", help="Run whose policy helps. Default: the newest run on the index; without one, results are raw."
)
@click.option(
    "--policy", default="best", show_default=True, help="Policy version: best, latest, a version's name, or none."
)
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; 0 takes a free one. Default: serve.port.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Number of processes.")
@click.option("--worker", type=click.IntRange(1), default=1, hidden=True, help="Number of this process.")
@click.option("--inherited", default="", hidden=True, help="Sockets that the parent process gives to this one.")
@click.pass_obj
def serve(
    app: App,
    index: str,
    run_name: str,
    learned: str | None,
    policy: str,
    port: int | None,
    workers: int,
    worker: int,
    inherited: str,
) -> None:
    """Serve search results over HTTP, raw or helped, and take the events of what people do with them.

    \b
    /search answers with results; /expand with the words alone; /summaries with summaries; /events takes UBI events;
    /snippet.js is the script for a shop's pages; /openapi.json describes all of them. Queries with a ready answer
    (`searchloop expand --keep`) need no model; others get the policy's answer within serve.tail_budget_ms, or raw
    results. Events wait on disk while Kafka is away. `searchloop listen` joins and stores them.
    People get raw results until `searchloop promote` has admitted a version. A new policy version or new answers are
    taken over while serving. With serve.pages=true, the pages of `searchloop ui` lie under /ui/. SIGTERM ends the
    server after its last answer.

    \b
    Example:
      searchloop serve --index shop --port 8600
      curl "http://127.0.0.1:8600/search?query=red+mug"
      curl -X POST http://127.0.0.1:8600/events -d '{"action_name": "click", "query_id": "…",
        "event_attributes": {"object": {"object_id": "p1"}}}'
    """
    from infra.recipes.leser.expanding import find_run
    from infra.serving.server import serve as serve_index
    from streams.errors import SettingsError

    if port is not None:
        app = app.with_changes("--port", {"serve": {"port": port}})

    def told(host: str, at: int) -> None:
        click.echo(
            f"http://{host}:{at}  (index {index}, policy {policy if learned else 'none'}, events to run {run_name})"
        )
        if app.settings.serve.pages:
            click.echo(f"pages: http://{host}:{at}/ui/  (open them once with ?token= and the token in ui.token)")

    if workers > 1:
        _serve_in_many(app, workers, lambda host, at: click.echo(f"http://{host}:{at}  ({workers} server processes)"))
        return
    with progress() as report, app.running_services(report) as running:
        if learned is None and policy != "none":
            try:
                learned = find_run(running.home, index=index, run=None).run
            except SettingsError as error:
                click.echo(f"results are raw: {error}", err=True)
        if learned and policy == "best" and not (running.home.run(learned).checkpoints / "BEST").exists():
            policy = "latest"

        asyncio.run(
            serve_index(
                running,
                index=index,
                run=run_name,
                learned=learned or "",
                policy=policy,
                worker=worker,
                inherited=_inherited(inherited),
                told=told if not inherited else lambda *_: None,
            )
        )


def _serve_in_many(app: App, workers: int, told: Callable[[str, int], None]) -> None:
    """Run this command once more for each worker, behind one port, until a signal."""
    from infra.app.doors import open_door
    from infra.serving.metrics import SHARED
    from infra.serving.server import require_pages, require_token
    from infra.serving.workers import Workers

    arguments = sys.argv[1:]
    at = arguments.index("--workers") if "--workers" in arguments else -1
    if at >= 0:
        del arguments[at : at + 2]
    arguments = [each for each in arguments if not each.startswith("--workers=")]
    settings = app.settings.serve
    require_token(settings)
    require_pages(app.settings, workers=workers)
    with (
        open_door(settings.host, settings.port, table="serve") as door,
        tempfile.TemporaryDirectory(prefix="searchloop-metrics-") as shared,
    ):
        environment, line = piped(os.environ | app.private | {SHARED: shared})
        host, port = door.getsockname()[:2]

        def command(number: int, *descriptors: int) -> list[str]:
            given = ",".join(map(str, descriptors))
            return [sys.executable, "-m", "infra.cli", *arguments, "--worker", str(number), "--inherited", given]

        kept = Workers(
            door,
            command,
            environment=environment,
            secrets=line,
            drain_seconds=settings.drain_seconds,
            say=lambda said: click.echo(said, err=True),
        )
        asyncio.run(kept.keep(workers, ready=lambda: told(host, port)))


def _inherited(descriptors: str) -> Inherited | None:
    from infra.serving.server import Inherited

    if not descriptors:
        return None
    door, parent = map(int, descriptors.split(","))
    return Inherited(door=socket.socket(fileno=door), parent=socket.socket(fileno=parent))
