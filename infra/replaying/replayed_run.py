"""A run made from another run's log: its topics, its folder, its workers.

Its topics have no retention limit, because copied records keep their times, and Kafka would delete them by these times.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from kafka import TopicPartition

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings, read_run_settings, write_run_settings
from infra.app.settings import Settings
from infra.recipes.recipe import load_recipe
from infra.runs.bases import carry_base
from infra.runs.rights import give_rights
from infra.runs.serving import policy_server
from infra.runs.stopping import stop_in_order
from infra.runs.supervisor import Supervisor, worker_arguments
from infra.runs.topics import make_new_topics, require_no_run
from learner.checkpoints import copy_checkpoint, load_current
from learner.versions import find_version
from services.artefacts import silent
from storage.recorded import Recorded, Window
from streams.clients import connect_producer
from streams.clock import now_ms
from streams.delivery import Outbox
from streams.errors import SettingsError
from streams.events import PolicyVersion
from streams.kafka_settings import KafkaSettings
from streams.provisioning import Provisioned
from streams.raw_log import RawLog
from streams.replay import ReplayCount, copy
from streams.stopping import Stop
from streams.topics import kind_of, topic_name


class NewTopics(NamedTuple):
    """The settings with the number of partitions of a run's new topics, and the names of the new topics."""

    kafka: KafkaSettings
    made: Provisioned


def new_topics(app: App, source: Recorded, run: str, into: str, kinds: Sequence[str]) -> NewTopics:
    """Make the topics of `into`, with the recorded number of partitions.

    Raises SettingsError if `into` is the recorded run or an existing run, or if another installation owns its topics;
    raises DeliveryError if a topic does not fit.
    """
    if into == run:
        raise SettingsError(
            f"--into: expected the name of another run, got {into!r}; a replay never writes to its source"
        )
    require_no_run(app.home, into, option="--into")
    count = max(source.partitions(kind) for kind in kinds)
    kafka = msgspec.structs.replace(app.connections.kafka, partitions=count)
    return NewTopics(kafka, make_new_topics(kafka, into, option="--into"))


@contextmanager
def outbox_to(app: App, kafka: KafkaSettings, into: str) -> Iterator[Outbox]:
    """Yield an outbox that sends events to a run's topics."""
    producer = connect_producer(kafka, client_id=f"{into}-replay")
    try:
        yield Outbox(producer, into, stage="replay", settings=app.settings.delivery)
    finally:
        producer.close()


def copy_at_once(
    kafka: KafkaSettings,
    source: Recorded,
    windows: Sequence[Window],
    *,
    into: str,
    stop: Stop,
    what: str,
    report: Report,
) -> ReplayCount:
    """Copy windows topic by topic, byte for byte with key, headers and times, as fast as they can be read."""
    total = sum(window.end - window.first for window in windows)
    with RawLog(kafka, client_id=f"{into}-replay") as log:
        return copy(
            [
                (
                    TopicPartition(topic_name(into, kind_of(window.topic)), window.partition),
                    source.read_raw(window, log),
                )
                for window in windows
            ],
            log.writer(),
            stop=stop,
            report=lambda count: report(what, count, total),
        )


def new_run(
    app: App, kept: RunSettings, settings: Settings, *, into: str, origin: str, begin: str, updates: int
) -> int:
    """Write the folder of the replayed run: settings, the recipe's files, the first policy. Return its step."""
    folder, recorded = app.home.run(into), app.home.run(kept.run)
    source, manifest = find_version(recorded.checkpoints, begin)
    carry_base(source, recorded, folder)
    copy_checkpoint(source, manifest, folder.checkpoints)
    for name in load_recipe(kept.settings.train.recipe).carried:  # The files for serving, prompts included.
        if (recorded / name).exists():
            shutil.copy2(recorded / name, folder / name)
    base = manifest.policy.step
    write_run_settings(
        folder, msgspec.structs.replace(kept, run=into, updates=base + updates, settings=settings, origin=origin)
    )
    return base


def publish_only_version(app: App, into: str, outbox: Outbox) -> None:
    """Announce the one version of a frozen run, as its learner would."""
    folder, manifest = load_current(app.home.run(into).checkpoints)
    outbox.send(
        PolicyVersion(
            run=into, policy=manifest.policy, parent=None, path=f"checkpoints/{folder.name}", made_at_ms=now_ms()
        )
    )
    outbox.flush()


@contextmanager
def run_workers(app: App, run: str, roles: list[str]) -> Iterator[Supervisor]:
    """Yield the supervisor of running workers; at the end they stop in the order of the stream, the sink last."""
    give_rights(app, run)
    settings = read_run_settings(app.home.run(run)).settings
    if "generator" not in roles:  # Without a generator no policy server is needed.
        settings = msgspec.structs.replace(
            settings, generation=msgspec.structs.replace(settings.generation, backend="transformers")
        )
    with (
        policy_server(app, run, settings, silent) as serving,
        Supervisor(
            worker_arguments(app.home.root), roles, app.home.run(run), app.worker_environment() | serving.environment
        ) as workers,
    ):
        yield workers
        stop_in_order(app, workers, run=run, roles=roles)
