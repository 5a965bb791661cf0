"""The state of runs: facts from their topics, consumer groups and files, for the verdict of `stalls`.

No worker is asked, so a worker that hangs cannot hide. One admin client reads all runs together: offsets, newest times
and commits cost a few requests, whatever the number of runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaError

from infra.app.app import App
from infra.app.home import Home, RunFolder, read_settings_file
from infra.runs.living import known_workers, supervised_roles
from learner.batches import BatchSettings
from storage.monitor.stalls import RunFacts, RunState, StageFacts, WorkerFacts, run_state
from streams.clients import EARLIEST, connection_options
from streams.clock import now_ms
from streams.delivery import DeliverySettings
from streams.errors import DeliveryError, SettingsError
from streams.kafka_errors import asked
from streams.kafka_python import forget_coordinators
from streams.kafka_settings import KafkaSettings
from streams.lag import LATEST
from streams.topics import TOPICS, topic_name

MAX_TIMESTAMP = -3  # Asks ListOffsets for the record with the newest time (KIP-734).
ANSWER_SECONDS = 5.0
LEDGER_FILES = "searchloop.duckdb*"
MOVES = {
    "generator": ("requests", "generations"),
    "environment": ("generations", "rewards"),
    "learner": ("rewards", "updates"),
}
Places = Sequence[TopicPartition]


class StandingTables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of a run's settings that the verdict needs."""

    batch: BatchSettings = BatchSettings()
    delivery: DeliverySettings = DeliverySettings()


class StandingRun(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `RunSettings` that the verdict needs."""

    updates: int = 0
    settings: StandingTables = StandingTables()


class _Version(msgspec.Struct, frozen=True, kw_only=True):
    step: int = 0


class _Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    policy: _Version = _Version()
    positions: dict[int, int] = {}


class Offsets:
    """Bounds, newest times and commits of some topics, read from the broker once."""

    def __init__(self, admin: KafkaAdminClient, runs: Sequence[str]) -> None:
        """Read them. Raises KafkaError or DeliveryError if the broker does not answer."""
        self._admin = admin
        wanted = {topic_name(run, topic.kind) for run in runs for topic in TOPICS} & set(admin.list_topics())
        described = admin.describe_topics(sorted(wanted)) if wanted else []
        self._places: dict[str, list[TopicPartition]] = {
            item["name"]: [TopicPartition(item["name"], part["partition_index"]) for part in item["partitions"]]
            for item in described
        }
        everywhere = [place for places in self._places.values() for place in places]
        self.first = {place: found.offset for place, found in self._at(dict.fromkeys(everywhere, EARLIEST)).items()}
        self.end = {place: found.offset for place, found in self._at(dict.fromkeys(everywhere, LATEST)).items()}
        newest = self._at(dict.fromkeys(everywhere, MAX_TIMESTAMP))
        self._newest = {place: found.timestamp for place, found in newest.items()}
        self._groups = [f"{run}.{stage}" for run in runs for stage in ("generator", "environment")]
        found = asked("could not read the runs' committed offsets", self._commits, patience_seconds=ANSWER_SECONDS)
        self._committed = {group: {place: each.offset for place, each in of.items()} for group, of in found.items()}

    def _commits(self) -> Mapping[str, Mapping[TopicPartition, Any]]:
        forget_coordinators(self._admin)
        commits: Mapping[str, Mapping[TopicPartition, Any]] = self._admin.list_group_offsets(
            dict.fromkeys(self._groups)
        )
        return commits

    def places(self, run: str, kind: str) -> Places:
        """Return a topic's partitions; empty if it does not exist."""
        return self._places.get(topic_name(run, kind), ())

    def committed(self, group: str) -> Mapping[TopicPartition, int]:
        """Return the committed offsets of a consumer group."""
        return self._committed.get(group, {})

    def newest_ms(self, places: Places) -> int:
        """Return the newest time of a record in these partitions; 0 without records."""
        return max((self._newest.get(place, 0) for place in places), default=0)

    def after(self, places: Places, moment_ms: int) -> dict[TopicPartition, tuple[int, int]]:
        """Return (offset, time in ms) of each partition's first record after a moment."""
        found = self._at(dict.fromkeys(places, moment_ms + 1))
        return {place: (each.offset, each.timestamp) for place, each in found.items() if each.offset >= 0}

    def members(self, run: str) -> int:
        """Return the number of members that the run's consumer groups have now, on any machine."""
        groups = self._admin.describe_groups([f"{run}.generator", f"{run}.environment"])
        return sum(len(group.get("members", ())) for group in groups.values())

    def _at(self, specs: Mapping[TopicPartition, int]) -> dict[TopicPartition, Any]:
        return self._admin.list_partition_offsets(dict(specs)) if specs else {}


def run_states(home: Home, kafka: KafkaSettings, runs: Iterable[str]) -> list[RunState]:
    """Return the state of each of these runs, "unknown" if the broker does not answer."""
    return [state for _, state in facts_and_states(home, kafka, runs)]


def facts_and_states(home: Home, kafka: KafkaSettings, runs: Iterable[str]) -> list[tuple[RunFacts, RunState]]:
    """Return the facts of each of these runs, read together, and its state."""
    kept = {run: _settings(home.run(run)) for run in runs}
    return [
        (facts, run_state(facts, stall_seconds=kept[facts.run].settings.delivery.stall_seconds))
        for facts in read_facts(home, kafka, kept)
    ]


def what_it_waits_for(app: App, run: str) -> str:
    """Return the cause for which a run makes no update, as far as it can be seen."""
    kafka = app.connections.kafka
    (facts,) = read_facts(app.home, kafka, {run: _settings(app.home.run(run))})
    state = run_state(facts, stall_seconds=0.0)
    return state.waiting_for or f"an update ({state.says})"


def read_facts(home: Home, kafka: KafkaSettings, runs: Mapping[str, StandingRun]) -> list[RunFacts]:
    """Return the facts of these runs, read together."""
    if not runs:
        return []
    admin = None
    try:
        admin = KafkaAdminClient(
            **connection_options(kafka, "searchloop-status"),
            bootstrap_timeout_ms=int(ANSWER_SECONDS * 1000),
            request_timeout_ms=int(ANSWER_SECONDS * 1000),
        )
        offsets = Offsets(admin, list(runs))
        return [_facts(home.run(run), kept, offsets) for run, kept in runs.items()]
    except (KafkaError, DeliveryError, OSError, ValueError) as error:
        said = f"Kafka at {kafka.bootstrap!r} does not answer: {error}. Run: searchloop doctor"
        return [_unseen(home.run(run), kept, said) for run, kept in runs.items()]
    finally:
        if admin is not None:
            admin.close()


def known_runs(home: Home) -> list[str]:
    """Return the runs of a home that have settings, sorted by name."""
    return sorted(path.parent.name for path in home.runs.glob("*/settings.json"))


def _facts(run_dir: RunFolder, kept: StandingRun, offsets: Offsets) -> RunFacts:
    run = run_dir.name
    checkpoint = _checkpoint(run_dir)
    workers = tuple(known_workers(run_dir))
    learns = _somebody_learns(run_dir, workers)
    stages = []
    for stage, (taken, made) in MOVES.items():
        if stage == "learner" and not learns:
            continue
        inputs = offsets.places(run, taken)
        if stage == "learner":
            done = {place: checkpoint.positions.get(place.partition, 0) for place in inputs}
        else:
            done = dict(offsets.committed(f"{run}.{stage}"))
        moved_ms = offsets.newest_ms([*offsets.places(run, made), *offsets.places(run, "dead-letters")])
        stages.append(
            _stage(
                stage, offsets, inputs, done, moved_ms, enough=kept.settings.batch.groups if stage == "learner" else 1
            )
        )
    stages.append(_sink(run_dir, offsets))
    return RunFacts(
        run=run,
        now_ms=now_ms(),
        stages=tuple(stages),
        workers=workers,
        members=0 if any(worker.state != "dead" for worker in workers) else offsets.members(run),
        updates_done=checkpoint.policy.step,
        updates_wanted=kept.updates,
    )


def _stage(
    stage: str, offsets: Offsets, inputs: Places, done: Mapping[TopicPartition, int], moved_ms: int, *, enough: int
) -> StageFacts:
    """Return the number of records that wait for a stage, and since when the stage could have taken the next one."""
    behind = {place: offsets.end[place] - done.get(place, offsets.first[place]) for place in inputs}
    waiting = [place for place, count in behind.items() if count > 0]
    younger = offsets.after(waiting, moved_ms)
    since = []
    for place in waiting:
        offset, arrived_ms = younger.get(place, (offsets.end[place], moved_ms))
        # Either a waiting record was there when the stage last moved, or all waiting records came later.
        since.append(moved_ms if offset > done.get(place, offsets.first[place]) else arrived_ms)
    count = sum(behind[place] for place in waiting)
    return StageFacts(stage=stage, waiting=count, since_ms=min(since, default=None), enough=enough)


def _sink(run_dir: RunFolder, offsets: Offsets) -> StageFacts:
    """Return since when a record waits for the sink: the time of the oldest record after the ledger's last change.

    While a sink works, nobody else may open its ledger, so the number of waiting records is unknown.
    """
    stored_ms = max((_touched_ms(path) for path in run_dir.glob(LEDGER_FILES)), default=-1)
    places = [place for topic in TOPICS for place in offsets.places(run_dir.name, topic.kind)]
    found = offsets.after(places, stored_ms)
    return StageFacts(
        stage="sink", waiting=None, since_ms=min((arrived for _, arrived in found.values()), default=None)
    )


def _unseen(run_dir: RunFolder, kept: StandingRun, said: str) -> RunFacts:
    return RunFacts(
        run=run_dir.name,
        now_ms=now_ms(),
        workers=tuple(known_workers(run_dir)),
        updates_done=_checkpoint(run_dir).policy.step,
        updates_wanted=kept.updates,
        unseen=said,
    )


def _somebody_learns(run_dir: RunFolder, workers: Sequence[WorkerFacts]) -> bool:
    """Return whether a learner belongs to the run.

    A run that answers with a frozen policy has workers, but no learner.
    """
    return not supervised_roles(run_dir) or any(worker.role == "learner" for worker in workers)


def _settings(run_dir: RunFolder) -> StandingRun:
    try:
        return read_settings_file(run_dir, StandingRun)
    except SettingsError:
        return StandingRun()  # Settings of another version: the other facts still count.


def _checkpoint(run_dir: RunFolder) -> _Checkpoint:
    root = run_dir.checkpoints
    try:
        name = (root / "CURRENT").read_text().strip()
        return msgspec.json.decode((root / name / "manifest.json").read_bytes(), type=_Checkpoint)
    except (OSError, ValueError):
        return _Checkpoint()


def _touched_ms(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:  # Folded into the ledger since it was listed.
        return 0
