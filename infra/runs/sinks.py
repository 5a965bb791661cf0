"""The sink of a run, wired without the packages that it does not need: it loads no model and no torch."""

from __future__ import annotations

import msgspec

from infra.app.app import App
from infra.app.home import read_settings_file
from infra.runs.posts import post_of
from storage.ledger import LEDGER
from storage.sink import SinkSettings
from storage.workers import run_sink
from streams.delivery import DeliverySettings
from streams.stopping import Stop


class SinkTables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of a run's settings that a sink needs."""

    delivery: DeliverySettings
    sink: SinkSettings


class SinkRun(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `RunSettings` that a sink needs."""

    settings: SinkTables


def run_sink_worker(app: App, *, run: str, worker: int, stop: Stop) -> None:
    """Write a run's topics into its DuckDB file until `stop` is set."""
    run_dir = app.home.run(run)
    settings = read_settings_file(run_dir, SinkRun).settings
    run_sink(
        post_of(app, run=run, member=f"sink-{worker}", delivery=settings.delivery, stop=stop),
        database=run_dir / LEDGER,
        sink=settings.sink,
    )
