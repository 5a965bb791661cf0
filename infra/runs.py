"""A run from nothing to its summary: prepare, keep the settings, stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.context import App
from infra.preparation import prepare
from infra.progress import Report
from infra.training import TrainingSummary, stream
from infra.workers import RunSettings, write_run_settings
from search_env.corpora import Query


def train_run(
    app: App,
    *,
    recipe: str,
    index: str,
    queries_file: Path | None,
    held_out: Sequence[Query],
    updates: int,
    seed: int,
    run: str,
    report: Report,
) -> TrainingSummary:
    """Train one run up to `updates` steps; the same name goes on where it stopped.

    held_out: queries that must not train anything: whatever has their text is left out.
    """
    prepared = prepare(
        app, run=run, index=index, queries_file=queries_file, held_out=held_out, seed=seed, report=report
    )
    write_run_settings(
        app.home.run(run),
        RunSettings(
            run=run,
            recipe=recipe,
            index=index,
            index_version=prepared.index,
            seed=seed,
            updates=updates,
            settings=app.settings,
        ),
    )
    return stream(app, prepared, updates=updates, seed=seed, report=report)
