"""One worker of a run, wired from the run's own settings: what `searchloop run ROLE` starts (the sink: `infra.sinks`).

The settings that shape the run are those that it was started with, kept in its folder; where Kafka and Elasticsearch
are comes from the caller.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from infra.context import App
from infra.home import SETTINGS_FILE, read_settings_file
from infra.settings import Settings
from streams.delivery import Stop


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was started with; index is the alias, index_version what it pointed to then."""

    run: str
    recipe: str
    index: str
    index_version: str
    seed: int
    updates: int
    settings: Settings


def write_run_settings(run_dir: Path, settings: RunSettings) -> None:
    """Keep the run's settings in its folder, without the secrets and addresses of the services."""
    public = msgspec.structs.replace(
        settings.settings,
        kafka=type(settings.settings.kafka)(
            partitions=settings.settings.kafka.partitions, replication=settings.settings.kafka.replication
        ),
        elasticsearch=type(settings.settings.elasticsearch)(),
    )
    content = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(settings, settings=public)))
    run_dir.mkdir(parents=True, exist_ok=True)
    aside = run_dir / f".{SETTINGS_FILE}"
    aside.write_bytes(content)
    aside.rename(run_dir / SETTINGS_FILE)


def read_run_settings(run_dir: Path) -> RunSettings:
    """Return what the run was started with.

    Raises SettingsError if there is no such run, naming those that there are.
    """
    return read_settings_file(run_dir, RunSettings)


def run_worker(app: App, *, role: str, run: str, worker: int, stop: Stop) -> None:
    """Run a generator, learner or environment until it is told to stop.

    worker: tells workers of one role apart; a restarted one of the same number takes its partitions back at once.
    """
    run_dir = app.home.run(run)
    kept = read_run_settings(run_dir)
    kafka = msgspec.structs.replace(
        app.connections.kafka, partitions=kept.settings.kafka.partitions, replication=kept.settings.kafka.replication
    )
    settings = kept.settings
    member = f"{role}-{worker}"
    if role == "generator":
        from learner.workers import run_generator

        run_generator(
            run=run,
            checkpoints=run_dir / "checkpoints",
            seed=kept.seed,
            kafka=kafka,
            delivery=settings.delivery,
            generation=settings.generation,
            prompts=settings.prompts,
            batch=settings.batch,
            member=member,
            stop=stop,
        )
    elif role == "learner":
        from learner.workers import run_learner

        run_learner(
            run=run,
            run_dir=run_dir,
            kafka=kafka,
            delivery=settings.delivery,
            batch=settings.batch,
            learner=settings.learner,
            generation=settings.generation,
            updates_max=kept.updates,
            member=member,
            stop=stop,
        )
    else:
        from infra.environments import open_environment
        from search_env.workers import run_environment

        with open_environment(app, kept) as environment:
            run_environment(
                run=run, environment=environment, kafka=kafka, delivery=settings.delivery, member=member, stop=stop
            )
