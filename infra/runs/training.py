"""A streaming run from its first request to its last update: topics, workers, requests, progress, and a summary."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import msgspec
from kafka import TopicPartition

from infra.app.app import App
from infra.app.interrupts import interrupts
from infra.app.progress import Report
from infra.recipes.recipe import Prepared
from infra.runs.barren import BarrenCount, barren_run
from infra.runs.dev import RunScores, best_version, why_unmeasurable
from infra.runs.rights import give_rights
from infra.runs.serving import Serving, policy_server
from infra.runs.sharing import share_run
from infra.runs.standing import what_it_waits_for
from infra.runs.stopping import stop_in_order
from infra.runs.supervisor import Supervisor, worker_arguments
from infra.runs.topics import make_topics
from learner.checkpoints import current_name, load_current
from search_env.engine.ranker import BEHIND
from storage.monitor.best import BestVersion
from streams.clients import connect_consumer, connect_producer
from streams.codec import decode
from streams.delivery import Outbox, poll
from streams.epochs import Epochs, Fence
from streams.errors import DeliveryError, EventError, SettingsError
from streams.events import DevScore, PolicyRef, PolicyVersion, Update
from streams.lease import Lease
from streams.locks import only_one
from streams.ranges import read_events
from streams.records import Received
from streams.requests import RequestFeed, RequestSequence
from streams.stalls import StallWatch
from streams.stopping import Stop
from streams.topics import topic_name, version_name
from streams.tracing import traced

ROLES = ["sink", "environment", "generator", "learner"]
ELSEWHERE = ("environment", "generator")  # Roles that `train` can leave to other machines: they write no file of a run.
log = logging.getLogger(__name__)
LOCK_FILE = "train.lock"
BATCHES_AHEAD = 4  # Batches of requests beyond the staleness limit, so that no generator waits.


class TrainingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of a run.

    Rewards and validity are means over the first and last quarter of the updates, at least one update each.
    best: the version that served the dev queries best. dev_best, dev_first: its score, and that of the first policy.
    With a ranker, both are behind it; dev_first_unranked and dev_best_unranked are those of the search alone.
    None where nothing was measured. ended_early: dev no longer gained, so the run made fewer updates than asked for.
    """

    run: str
    policy: str
    updates: int
    groups_trained: int
    groups_flat: int
    groups_failed: int
    groups_expired: int
    reward_first: float
    reward_last: float
    valid_first: float
    valid_last: float
    restarts: int
    seconds: float
    best: str | None = None
    dev_first: float | None = None
    dev_best: float | None = None
    dev_first_unranked: float | None = None
    dev_best_unranked: float | None = None
    ended_early: bool = False


def stream(
    app: App, prepared: Prepared, *, updates: int, seed: int, report: Report, elsewhere: Collection[str] = ()
) -> TrainingSummary:
    """Run workers until the policy has made `updates` steps, and return the summary.

    elsewhere: roles of `ELSEWHERE` that get no worker here, because `searchloop run ROLE` starts theirs.
    A run that has made some steps already goes on from its newest checkpoint. Ctrl-C stops the workers in order:
    nothing is torn, and the same command goes on later. Raises SettingsError if a new run's topics belong to another
    run, BarrenRunError if no request gets a reward, and LeaseError if another machine trains this run: of two, both
    would publish requests.
    """
    began = time.monotonic()
    if app.settings.dev.every:
        app.as_role("evaluator").connections  # noqa: B018 - Raises SettingsError if it has no credentials.
    make_topics(app, prepared.run)
    give_rights(app, prepared.run)
    with _only_train(app, prepared.run) as lease:
        return _stream(app, prepared, updates, seed, report, elsewhere, lease, began)


@contextlib.contextmanager
def _only_train(app: App, run: str) -> Iterator[Lease | None]:
    """Hold the right to publish a run's requests, on this machine and, with a store, on all that share it.

    Raises DeliveryError if somebody else has it, and SettingsError for a run that was shared, without its store.
    """
    path, kafka = app.home.run(run) / LOCK_FILE, app.connections.kafka
    taken = DeliveryError(
        f"another train of run {run!r} works in this home (it holds {path}); stop it first: two would publish each "
        "request twice"
    )
    with only_one(path, taken):
        if app.store is not None:
            with Lease(run, "train", machine=app.installation, kafka=kafka, delivery=app.settings.delivery) as lease:
                yield lease
            return
        epochs = Epochs()
        for event in read_events(kafka, run, PolicyVersion):
            if event.run == run:
                epochs.admits(event)
        if epochs.newest:
            raise SettingsError(
                f"store.url: expected the store that run {run!r} was shared on, got none. Its log has epoch "
                f"{epochs.newest} of {epochs.holder}, and its readers ignore later announcements without an epoch. "
                "Set store.url, or start a new run with --run NAME"
            )
        yield None


def _stream(
    app: App,
    prepared: Prepared,
    updates: int,
    seed: int,
    report: Report,
    elsewhere: Collection[str],
    lease: Lease | None,
    began: float,
) -> TrainingSummary:
    settings, run = app.settings, prepared.run
    run_dir = app.home.run(run)
    evaluators = ["evaluator"] if settings.dev.every else []
    roles = [*ROLES[:1], *evaluators, *ROLES[1:]]
    started = [role for role in roles if role not in elsewhere]
    share_run(app, run, report)
    best = best_version(settings)
    ours = RunScores(app.connections.kafka, run=run, index=prepared.index, measure=settings.dev.measure)
    for score in read_events(app.connections.kafka, run, DevScore) if settings.dev.every else ():
        if ours.has(score):
            best.add(score)
    producer = connect_producer(settings.kafka, client_id=f"{run}-requests")
    outbox = Outbox(producer, run, stage="requests", settings=settings.delivery)
    sequence = RequestSequence(prepared.asked, run=run, seed=seed)
    feed = RequestFeed(sequence, settings.kafka, outbox, run)
    announced = TopicPartition(topic_name(run, "updates"), 0)
    versions = TopicPartition(topic_name(run, "policy-versions"), 0)
    scores = TopicPartition(topic_name(run, "dev-scores"), 0)
    consumer = connect_consumer(
        settings.kafka, {announced: None, versions: None, scores: None}, client_id=f"{run}-train", records_max=500
    )
    _, manifest = load_current(run_dir.checkpoints)
    policy = manifest.policy
    step, consumed = manifest.policy.step, sum(manifest.requests_consumed.values())
    ahead = (settings.batch.staleness_max + 1 + BATCHES_AHEAD) * settings.batch.groups
    barren = BarrenCount(published=feed.published, asked=len(prepared.asked), ahead=ahead)
    made: dict[str, Update] = {}
    fence = Fence(run)
    shown = prepared.asked[: settings.vllm.checked_prompts]
    server: AbstractContextManager[Serving] = contextlib.nullcontext(Serving())
    if "generator" in started:
        server = policy_server(app, run, settings, report, shown)
    stop = Stop()
    stalls = StallWatch(settings.delivery.stall_seconds, log, where=f"run {run}")
    try:
        with (
            traced(settings.tracing, run=run, stage="requests"),
            server as serving,
            interrupts(stop),
            Supervisor(
                worker_arguments(app.home.root), started, run_dir, app.worker_environment() | serving.environment
            ) as workers,
        ):

            def goes_on() -> bool:
                """Return whether there is an update to make, or the last version's score to wait for."""
                if step < updates:
                    return not best.over
                return bool(settings.dev.every) and not best.has(policy)

            while goes_on() and not stop():
                workers.check()
                serving.check(report)
                if lease is not None:
                    lease.keep()  # Just before it writes: this machine may have stood still meanwhile.
                feed.publish_until(consumed + ahead)
                events = [
                    event
                    for event in _announced(poll(consumer, settings.delivery), fence)
                    if not isinstance(event, DevScore) or (settings.dev.every and ours.has(event))
                ]
                # Requests without a reward are used up, too. If no update says so, a policy version does.
                consumed = max(consumed, feed.used_up(_consumed(events)))
                # A grant is no progress: a run whose requests all end without a reward gets one after the other.
                if any(isinstance(event, Update | DevScore) for event in events):
                    stalls.progress()
                if any(isinstance(event, Update) and event.run == run for event in events):
                    barren.updated(consumed)
                if step < updates and barren.over(consumed):
                    raise barren_run(app.home, settings.kafka, run, count=barren.limit)
                for event in events:
                    if isinstance(event, DevScore):
                        if best.add(event):
                            report(f"best version so far: dev {event.measure} {event.value:.3f}", step, updates)
                        continue
                    if not isinstance(event, Update):
                        continue
                    # After a crash a step may be announced again, on the same lineage or on the one that goes on.
                    made.setdefault(version_name(event.policy), event)
                    # The log also holds updates of abandoned lineages, and may hold foreign ones. Only the newest
                    # checkpoint tells the policy's step.
                    if version_name(event.policy) == current_name(run_dir.checkpoints):
                        policy, step = event.policy, event.policy.step
                        report(_headline(event), min(step, updates), updates)
                if stalls.due and step >= updates:
                    if unmeasurable := why_unmeasurable(run_dir, policy):
                        log.warning("run %s ends without the dev score of its last version: %s", run, unmeasurable)
                        break
                    stalls.waiting_for(f"the evaluator: the dev score of policy {version_name(policy)}")
                elif stalls.due:
                    stalls.waiting_for(what_it_waits_for(app, run))
            stop_in_order(app, workers, run=run, roles=roles, elsewhere=elsewhere)
            restarts = workers.restarts
    finally:
        consumer.close()
        producer.close()
    if stop():
        raise KeyboardInterrupt
    return _summary(app, run, made, best, restarts, time.monotonic() - began, ended_early=step < updates)


def _announced(records: Sequence[Received], fence: Fence) -> Iterator[Update | PolicyVersion | DevScore]:
    """Yield updates and versions that count, and dev scores. The workers make dead letters of other records."""
    for record in records:
        with contextlib.suppress(EventError):
            event = decode(record.value)
            if isinstance(event, Update | PolicyVersion | DevScore) and fence.admits(event, record.headers):
                yield event


def _consumed(events: Sequence[Update | PolicyVersion | DevScore]) -> list[dict[int, int]]:
    return [event.requests_consumed for event in events if not isinstance(event, DevScore)]


def _lineage(made: Mapping[str, Update], head: PolicyRef) -> list[Update]:
    """Return the announced updates that led to a version, oldest first."""
    chain: list[Update] = []
    seen: set[str] = set()
    name = version_name(head)
    while name in made and name not in seen:
        seen.add(name)
        chain.append(made[name])
        name = version_name(made[name].parent)
    return chain[::-1]


def _summary(
    app: App,
    run: str,
    made: Mapping[str, Update],
    dev: BestVersion,
    restarts: int,
    seconds: float,
    *,
    ended_early: bool,
) -> TrainingSummary:
    _, manifest = load_current(app.home.run(run).checkpoints)
    updates = _lineage(made, manifest.policy)
    quarter = max(len(updates) // 4, 1)

    def mean(name: str, part: list[Update]) -> float:
        values = [update.metrics[name] for update in part if name in update.metrics]
        return sum(values) / len(values) if values else math.nan

    return TrainingSummary(
        run=run,
        policy=version_name(manifest.policy),
        updates=manifest.policy.step,
        groups_trained=sum(len(update.trained) for update in updates),
        groups_flat=sum(len(update.flat) for update in updates),
        groups_failed=sum(len(update.failed) for update in updates),
        groups_expired=sum(len(update.expired) for update in updates),
        reward_first=mean("reward_mean", updates[:quarter]),
        reward_last=mean("reward_mean", updates[-quarter:]),
        valid_first=mean("validity", updates[:quarter]),
        valid_last=mean("validity", updates[-quarter:]),
        restarts=restarts,
        seconds=seconds,
        best=version_name(dev.best.policy) if dev.best else None,
        dev_first=dev.first.value if dev.first else None,
        dev_best=dev.best.value if dev.best else None,
        dev_first_unranked=_unranked(dev.first),
        dev_best_unranked=_unranked(dev.best),
        ended_early=ended_early,
    )


def _unranked(score: DevScore | None) -> float | None:
    """Return the score of the search alone; None without a score, or if no ranker stands behind the search."""
    if score is None or not any(each.name.endswith(BEHIND) for each in score.sets):
        return None
    alone = [each.measures[score.measure] for each in score.sets if not each.name.endswith(BEHIND)]
    return sum(alone) / len(alone) if alone else None


def _headline(update: Update) -> str:
    metrics = update.metrics
    if "reward_mean" not in metrics:
        return "updates"
    return f"updates: reward {metrics['reward_mean']:.3f}, valid {metrics['validity']:.0%}"
