"""The loop on three brokers: the leaders of its topics are killed, and cut off, one after another."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from kafka import TopicPartition

from infra.app.app import App
from services.local import Endpoints
from streams.kafka_settings import KafkaSettings
from streams.topics import BY_KIND, topic_name
from tests.faults.progress import watched
from tests.faults.results import Row
from tests.faults.world import SETTINGS, World, end_in_order, open_run, proved, stream_during
from tests.kafka_cluster import NODES, KafkaCluster, kafka_cluster
from tests.loop.conftest import SMALL

HIT = ("requests", "generations", "rewards", "updates")  # Whose leader is struck, in turn.
Harm = Callable[[int], None]


def kill_leaders(world: World, *, dose: int) -> list[Row]:
    """Kill a leader so often with SIGKILL, and start it again when the loop has gone on without it; return a row."""
    held = "two of three replicas acknowledge, and the loop goes on before the broker is back"

    def strikes(cluster: KafkaCluster) -> list[tuple[Harm, Harm]]:
        return [(cluster.kill, cluster.start)]

    return [_on_three_brokers(world, "leaders-killed", "leader killed (3 brokers)", strikes, dose=dose, held=held)]


def cut_off_leaders(world: World, *, dose: int) -> list[Row]:
    """Cut a leader off so often, in turn from its followers alone and from everybody; return a row.

    Without network namespaces the leader is frozen instead, and the row says so.
    """

    def strikes(cluster: KafkaCluster) -> list[tuple[Harm, Harm]]:
        if not cluster.can_cut:
            return [(cluster.freeze, cluster.thaw)]
        return [(cluster.cut, cluster.mend), (cluster.unplug, cluster.mend)]

    name, held = "network partition", "in turn from its followers alone and from everybody"
    return [_on_three_brokers(world, "leaders-cut-off", name, strikes, dose=dose, held=held)]


def _on_three_brokers(
    world: World,
    run: str,
    fault: str,
    strikes: Callable[[KafkaCluster], list[tuple[Harm, Harm]]],
    *,
    dose: int,
    held: str,
) -> Row:
    began, times = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="searchloop-three-") as home, kafka_cluster(Path(home)) as cluster:
        endpoints = Endpoints(kafka=cluster.settings.bootstrap, elasticsearch=world.app.connections.elasticsearch.url)
        settings = msgspec.structs.replace(SMALL, kafka=KafkaSettings(partitions=1, replication=len(NODES)))
        # The cluster is new, so the run is: what a stopped driver left of it lies in topics that are gone.
        shutil.rmtree(world.app.home.run(run), ignore_errors=True)
        app, prepared = open_run(App(world.app.home, settings=settings, endpoints=endpoints), run, SETTINGS)
        names = [topic_name(run, kind) for kind in BY_KIND]

        def work(ended: threading.Event) -> None:
            with watched(app, run) as progress:
                for number in range(dose):
                    progress.wait("learner", progress.of("learner"), ended)
                    harm, undo = strikes(cluster)[number % len(strikes(cluster))]
                    leader = cluster.leader(TopicPartition(topic_name(run, HIT[number % len(HIT)]), 0))
                    before = progress.of("learner")
                    harm(leader)
                    struck = time.monotonic()
                    # One update may have been on its way; the second needs every stage.
                    progress.wait("learner", before + 1, ended)
                    times.append(time.monotonic() - struck)
                    undo(leader)
                    cluster.wait_in_sync(names)

        stream_during(app, prepared, work)
        end_in_order(app, prepared)
        how = held if cluster.can_cut else f"{held}; FROZEN instead of cut off: this machine allows no namespaces"
        return proved(app, run, fault=fault, dose=len(times), recovery=times, held=how, began=began)
