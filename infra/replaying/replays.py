"""Runs made from another run's log: its records copied, its generations rescored, its requests sent as load.

A replayed run (`infra.replaying.replayed_run`) has its own topics, checkpoints and ledger, so every verb works on it.
The recorded run is only read.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from infra.app.app import App
from infra.app.layers import assignments_layer, combine
from infra.app.progress import Report
from infra.app.run_settings import RunSettings, read_run_settings
from infra.app.settings import Settings
from infra.replaying.following import follow_updates
from infra.replaying.replayed_run import copy_at_once, new_run, new_topics, outbox_to, publish_only_version, run_workers
from infra.runs.new_log import undone_if_it_fails
from infra.runs.supervisor import Supervisor
from learner.batches import BatchSettings
from learner.checkpoints import load_current
from storage.log import open_log
from storage.recorded import Limits, Recorded, Window
from streams.codec import decode, encode_event
from streams.errors import DeliveryError, EventError, SettingsError
from streams.events import Generation, Request
from streams.inputs.text import QUERY_CHARACTERS_MAX, clean_text
from streams.lag import stage_lags
from streams.records import Received
from streams.replay import ReplayCount, in_recorded_order, replay
from streams.stopping import Stop
from streams.topics import BY_KIND, version_name

# A frozen policy makes no updates, so no group is ever consumed. These limits let the generator run without a learner.
UNBOUNDED = {"groups": 4096, "staleness_max": 64}


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The selected part of a recorded run; gaps: see `Recorded`."""

    run: str
    begin: Limits = Limits()
    end: Limits = Limits()
    partition: int | None = None
    gaps: bool = False


class Counterfactual(msgspec.Struct, frozen=True, kw_only=True):
    """The result of rescoring recorded generations; rewards are means over all scored candidates."""

    run: str
    policy: str
    groups: int
    updates: int
    reward_recorded: float | None
    reward: float | None
    seconds: float


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a load replay. Latency: from a request's record to its reward's record, by the broker's clock."""

    run: str
    policy: str
    requests: int
    rewards: int
    seconds: float
    latency_p50_seconds: float | None
    latency_p95_seconds: float | None


def copy_window(
    app: App, selection: Selection, *, kinds: Sequence[str], into: str, speed: float, stop: Stop, report: Report
) -> ReplayCount:
    """Copy a window of some topics to the topics of the run `into`, byte for byte, with key, headers and times.

    kinds: empty means every topic that has records in the window. speed: an infinite speed copies topic after topic;
    any other speed keeps the recorded order and pauses across all topics.
    Raises DeliveryError if the window does not exist or `into` holds records, StorageError if a segment is missing or
    damaged. The topics that were made for the copy are then deleted.
    """
    source = _recorded(app, selection)
    chosen = kinds or list(BY_KIND)
    windows = [window for kind in chosen for window in _windows(source, selection, kind, may_be_empty=not kinds)]
    kafka, made = new_topics(app, source, selection.run, into, chosen)
    with undone_if_it_fails(kafka, made):
        if speed == math.inf:
            return copy_at_once(kafka, source, windows, into=into, stop=stop, what="records copied", report=report)
        total = sum(window.end - window.first for window in windows)
        with outbox_to(app, kafka, into) as outbox:
            return replay(
                in_recorded_order([source.read(window) for window in windows]),
                outbox,
                into=into,
                speed=speed,
                keep_times=True,
                stop=stop,
                report=lambda count: report("records copied", count, total),
            )


def counterfactual(
    app: App,
    selection: Selection,
    *,
    into: str,
    assignments: Sequence[str],
    begin: str,
    report: Report,
    stop: Stop | None = None,
) -> Counterfactual:
    """Rescore recorded generations under other settings and train on them; nothing is generated.

    assignments: `table.key=value` on top of the recorded run's settings. begin: the policy version to start from.
    Batches are cut again, every `batch.groups` groups of the window; an incomplete batch at its end is not used.
    Raises DeliveryError for a window with less than one batch, KeyboardInterrupt if asked to stop.
    """
    began = time.monotonic()
    stop = stop or Stop()
    kept = read_run_settings(app.home.existing_run(selection.run))
    settings = _settings(app, kept, assignments)
    if settings.leser.rewards == "clicks" and settings.train.recipe == "leser":
        raise SettingsError(
            "leser.rewards: expected model for recorded texts, got clicks: nobody will see them on a server. Score "
            "them with --set leser.rewards=model, or make the run's own updates again: searchloop replay reproduce"
        )
    # The versions that wrote the groups belong to the recorded run: this run cannot check the groups against them.
    claims = msgspec.structs.replace(settings.learner.claims, share=0.0)
    settings = msgspec.structs.replace(settings, learner=msgspec.structs.replace(settings.learner, claims=claims))
    source = _recorded(app, selection)
    windows = _windows(source, selection, "generations")
    groups = _training_groups(source, windows)
    batches = len(groups) // settings.batch.groups
    if not batches:
        raise DeliveryError(
            f"expected at least {settings.batch.groups} groups (batch.groups) to learn from in this window of "
            f"{selection.run}.generations, found {len(groups)}; widen it, or --set batch.groups={max(len(groups), 1)}"
        )
    kafka, _ = new_topics(app, source, selection.run, into, ["generations"])
    base = new_run(app, kept, settings, into=into, origin=selection.run, begin=begin, updates=batches)
    copy_at_once(kafka, source, windows, into=into, stop=stop, what="generations copied", report=report)
    with outbox_to(app, kafka, into) as outbox, run_workers(app, into, ["sink", "environment", "learner"]) as workers:
        follow_updates(app, into, outbox, workers, base=base, limit=batches, stop=stop, report=report)
    if stop():
        raise KeyboardInterrupt
    _, manifest = load_current(app.home.run(into).checkpoints)
    recorded = _mean_reward(app.home.run(selection.run), groups)
    return Counterfactual(
        run=into,
        policy=version_name(manifest.policy),
        groups=len(groups),
        updates=manifest.policy.step - base,
        reward_recorded=recorded,
        reward=_mean_reward(app.home.run(into), groups),
        seconds=time.monotonic() - began,
    )


def load(
    app: App,
    selection: Selection,
    *,
    into: str,
    assignments: Sequence[str],
    begin: str,
    like: str,
    learning: bool,
    speed: float,
    stop: Stop,
    report: Report,
) -> Load:
    """Send recorded requests to a new run at a chosen speed, with the policy frozen or learning.

    like: the run whose settings and policy answer. begin: the policy version that answers, or that is trained further.
    The requests get the broker's time, so that latency can be measured. Their queries are cleaned like those of a file.
    Learning needs requests of split "train"; imported requests are "live", are answered, and train nothing.
    Raises DeliveryError if the policy is to learn and no request can train.
    """
    began = time.monotonic()
    kept = read_run_settings(app.home.existing_run(like))
    settings = _settings(app, kept, assignments)
    batch_groups = settings.batch.groups
    if not learning:
        chunk = settings.generation.chunk_groups or batch_groups
        settings = msgspec.structs.replace(
            settings,
            batch=BatchSettings(**UNBOUNDED),
            generation=msgspec.structs.replace(settings.generation, chunk_groups=chunk),
        )
    source = _recorded(app, selection)
    windows = _windows(source, selection, "requests")
    total = sum(window.end - window.first for window in windows)
    # The last batch may be short, because every request must be answered.
    updates = math.ceil(_training_requests(source, windows, report) / batch_groups) if learning else 0
    kafka, _ = new_topics(app, source, selection.run, into, ["requests"])
    with outbox_to(app, kafka, into) as outbox:
        base = new_run(app, kept, settings, into=into, origin=selection.run, begin=begin, updates=updates or 1)
        if not learning:
            publish_only_version(app, into, outbox)
        roles = ["sink", "environment", "generator", *(["learner"] if learning else [])]
        with run_workers(app, into, roles) as workers:

            def sending(count: int) -> None:
                workers.check()
                report("requests sent", count, total)

            sent = replay(
                map(clean_request, in_recorded_order([source.read(window) for window in windows])),
                outbox,
                into=into,
                speed=speed,
                keep_times=False,
                stop=stop,
                report=sending,
            )
            if learning and not stop():
                follow_updates(app, into, outbox, workers, base=base, limit=updates, stop=stop, report=report)
            elif not learning:
                _await_answers(app, into, sent.records, workers, stop, report)
    if stop():
        raise KeyboardInterrupt
    return _load_summary(app, into, sent, time.monotonic() - began)


def _recorded(app: App, selection: Selection) -> Recorded:
    return Recorded(app.home.existing_run(selection.run), selection.run, app.connections.kafka, gaps=selection.gaps)


def _windows(source: Recorded, selection: Selection, kind: str, *, may_be_empty: bool = False) -> list[Window]:
    return source.windows(
        kind, selection.begin, selection.end, partition=selection.partition, may_be_empty=may_be_empty
    )


def _settings(app: App, kept: RunSettings, assignments: Sequence[str]) -> Settings:
    """Return the recorded run's settings with the assignments, at this app's services."""
    return combine(
        Settings, [("the recorded run", msgspec.to_builtins(kept.settings)), ("--set", assignments_layer(assignments))]
    )


def _await_answers(app: App, run: str, sent: int, workers: Supervisor, stop: Stop, report: Report) -> None:
    """Wait until the generator and the environment have committed all requests that were sent."""
    while not stop() and (behind := sum(stage.records for stage in stage_lags(app.connections.kafka, run))):
        workers.check()
        report("groups rewarded", max(sent - behind, 0), sent)
        stop.wait(0.5)


def _training_requests(source: Recorded, windows: Sequence[Window], report: Report) -> int:
    """Return the number of requests in these windows that may train; report it if other requests are among them.

    Raises DeliveryError if no request may train.
    """
    splits: Counter[str] = Counter()
    for window in windows:
        for record in source.read(window):
            with contextlib.suppress(EventError):
                event = decode(record.value)
                if isinstance(event, Request):
                    splits[event.split] += 1
    found = ", ".join(f"{count} of split {split!r}" for split, count in sorted(splits.items())) or "none"
    if not splits["train"]:
        raise DeliveryError(
            f"--learning: expected requests of split 'train', found {found}. "
            "Imported traffic is 'live', which is answered and never trains: leave out --learning to send it to a "
            "frozen policy, or choose a window of a run's own requests"
        )
    if splits["train"] < splits.total():
        report(f"requests: {found}; only those of split 'train' train the policy", 0, 0)
    return splits["train"]


def _training_groups(source: Recorded, windows: Sequence[Window]) -> list[str]:
    """Return the ids of the groups in these windows that may train, each once, in their order."""
    found: dict[str, None] = {}
    for window in windows:
        for record in source.read(window):
            event = _generation(record)
            if event is not None and event.request.split == "train":
                found[event.group_id] = None
    return list(found)


def clean_request(record: Received) -> Received:
    """Return a recorded request with its query cleaned and cut as in a file; an older import may have left it raw."""
    try:
        event = decode(record.value)
    except EventError:
        return record  # The worker that reads it makes it a dead letter.
    if not isinstance(event, Request):
        return record
    query = clean_text(event.query, characters_max=QUERY_CHARACTERS_MAX)
    if query == event.query:
        return record
    return msgspec.structs.replace(record, value=encode_event(msgspec.structs.replace(event, query=query)))


def _generation(record: Received) -> Generation | None:
    try:
        event = decode(record.value)
    except EventError:
        return None
    return event if isinstance(event, Generation) else None


def _mean_reward(folder: Path, groups: Sequence[str]) -> float | None:
    with open_log(folder) as log:
        (row,) = log.rows(
            "SELECT avg(reward) AS mean FROM first_outcomes WHERE list_contains($1, group_id)", (list(groups),)
        )
    return None if row["mean"] is None else float(row["mean"])


def _load_summary(app: App, into: str, sent: ReplayCount, seconds: float) -> Load:
    _, manifest = load_current(app.home.run(into).checkpoints)
    with open_log(app.home.run(into)) as log:
        (row,) = log.rows(
            """
            SELECT count(*) AS rewards, quantile_cont(r.record_time_ms - q.record_time_ms, [.5, .95]) AS waited
            FROM first_rewards r JOIN first_generations g USING (run, group_id)
            JOIN requests q ON q.topic = g.source_topic AND q.partition = g.source_partition
                AND q.record_offset = g.source_offset
            """
        )
    p50, p95 = (value / 1000 for value in row["waited"]) if row["waited"] else (None, None)
    return Load(
        run=into,
        policy=version_name(manifest.policy),
        requests=sent.records,
        rewards=row["rewards"],
        seconds=seconds,
        latency_p50_seconds=p50,
        latency_p95_seconds=p95,
    )
