"""The evaluator: it measures policy versions on dev queries while the run learns, and keeps the best one's name."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from kafka import KafkaConsumer, TopicPartition

from infra.app.app import App
from infra.app.run_settings import RunSettings, read_run_settings
from infra.recipes.recipe import RankDev, Ranked, measures_dev
from infra.runs.dev import RunScores, best_version, given_dev, is_due, why_unmeasurable
from learner.checkpoints import CheckpointError, write_best
from search_env.engine.ranker import BEHIND
from storage.evaluation.measures import mean, measure_run
from storage.monitor.best import BestVersion
from streams.clients import connect_consumer, connect_producer
from streams.clock import now_ms
from streams.codec import decode
from streams.delivery import Outbox, poll, with_retries
from streams.epochs import Fence
from streams.errors import EventError, TransientError
from streams.events import DevScore, DevSet, PolicyRef, PolicyVersion
from streams.posts import Post
from streams.ranges import read_events
from streams.records import Received
from streams.stopping import Stop
from streams.topics import topic_name, version_name

log = logging.getLogger(__name__)

MEASURES = ("nDCG@10", "RR@10", "R@100", "Judged@10")


def run_evaluator(app: App, post: Post) -> None:
    """Measure every version that is due, in the order of their announcements, until `stop` is set.

    A version with a score in the log is not measured again, so a restarted evaluator continues where it was. A version
    without its checkpoint is left out, with a line in the log. While the search engine is down, the evaluator waits,
    however long: the run may have nothing else left to wait for.
    """
    run, stop = post.run, post.stop
    kept = read_run_settings(app.home.run(run))
    announced = TopicPartition(topic_name(run, "policy-versions"), 0)
    with contextlib.ExitStack() as closing:
        producer = connect_producer(post.kafka, client_id=post.client)
        closing.callback(producer.close)
        consumer = connect_consumer(post.kafka, {announced: None}, client_id=post.client, records_max=500)
        closing.callback(consumer.close)
        outbox = Outbox(producer, run, stage="evaluator", settings=post.delivery)
        evaluator = Evaluator(app.with_settings(kept.settings), kept, consumer, closing)
        evaluator.recall(read_events(post.kafka, run, DevScore))
        due: list[PolicyRef] = []
        while not stop():
            due += [policy for policy in evaluator.due(poll(consumer, post.delivery)) if policy not in due]
            while due and not stop():
                try:
                    score = evaluator.measured(due[0], stop)
                except TransientError as error:
                    log.error("policy %s is not measured yet, the engine is away: %s", version_name(due[0]), error)
                    break
                if stop() and score is None:
                    break
                due.pop(0)
                if score is not None:
                    outbox.send(score)
                    outbox.flush()
                    evaluator.count(score)


class Evaluator:
    """The dev queries of one run, opened at the first version that is due, and the best version so far."""

    def __init__(self, app: App, kept: RunSettings, consumer: KafkaConsumer, closing: contextlib.ExitStack) -> None:
        """app: with the run's own settings. consumer: kept alive while the engine is down. closing: closes the rest."""
        self._app, self._kept, self._consumer, self._closing = app, kept, consumer, closing
        self._run_dir = app.home.run(kept.run)
        self._best: BestVersion = best_version(kept.settings)
        self._rank: RankDev | None = None
        self._fence = Fence(kept.run)
        self._ours = RunScores(
            app.connections.kafka, run=kept.run, index=kept.index_version, measure=kept.settings.dev.measure
        )

    def recall(self, known: Sequence[DevScore]) -> None:
        """Count the scores in the log; others than this run's count for nothing."""
        for score in known:
            if self._ours.has(score):
                self._best.add(score)
        if self._best.best is not None:  # Once, and not version by version: a reader never sees an older best.
            write_best(self._run_dir.checkpoints, self._best.best.policy)

    def due(self, records: Sequence[Received]) -> list[PolicyRef]:
        """Return the announced versions that are to be measured; records that are no announcement are not ours."""
        found = []
        for record in records:
            with contextlib.suppress(EventError):
                event = decode(record.value)
                if not isinstance(event, PolicyVersion) or not self._fence.admits(event) or event.status != "published":
                    continue
                if is_due(event.policy, self._kept) and event.policy not in found:
                    found.append(event.policy)
        return [policy for policy in found if not self._best.has(policy)]

    def measured(self, policy: PolicyRef, stop: Stop) -> DevScore | None:
        """Return the score of a version; None if it has no checkpoint any more, or after a stop.

        Raises TransientError if the engine is away for longer than one record is retried.
        """
        try:
            return with_retries(
                lambda: self._score(policy, self._ranked(policy)),
                lambda error, attempts: self._never(error),
                self._consumer,
                stop,
                self._kept.settings.delivery,
            )
        except CheckpointError as error:
            log.warning("policy %s is not measured: %s", version_name(policy), error)
        return None

    def count(self, score: DevScore) -> None:
        """Count a score, and keep the version's name if it is the best so far."""
        if self._best.add(score):
            write_best(self._run_dir.checkpoints, score.policy)
            log.info("policy %s is the best so far: %s %.4f", version_name(score.policy), score.measure, score.value)

    def _ranked(self, policy: PolicyRef) -> Sequence[Ranked]:
        if unmeasurable := why_unmeasurable(self._run_dir, policy):
            raise CheckpointError(unmeasurable)
        if self._rank is None:
            recipe, dev = measures_dev(self._kept.settings.train.recipe), self._kept.settings.dev
            opening = recipe.open_dev(
                self._app,
                self._kept,
                queries_max=dev.queries_max,
                given=given_dev(self._run_dir),
                report=lambda what, done, total: None,
            )
            self._rank = self._closing.enter_context(opening)
        return self._rank(version_name(policy))

    def _score(self, policy: PolicyRef, found: Sequence[Ranked]) -> DevScore:
        measure = self._kept.settings.dev.measure
        sets = [
            DevSet(
                name=each.name,
                queries=len(each.qrels),
                measures={
                    name: mean(values)
                    for name, values in measure_run(
                        each.run, each.qrels, list(dict.fromkeys([*MEASURES, measure]))
                    ).items()
                },
            )
            for each in found
        ]
        # With a ranker, a version is as good as what the shop shows: behind the ranker.
        counted = [each for each in sets if each.name.endswith(BEHIND)] or sets
        return DevScore(
            run=self._kept.run,
            policy=policy,
            index=self._kept.index_version,
            measure=measure,
            value=sum(each.measures[measure] for each in counted) / len(counted),
            sets=tuple(sets),
            made_at_ms=now_ms(),
        )

    @staticmethod
    def _never(error: TransientError) -> DevScore:
        raise error
