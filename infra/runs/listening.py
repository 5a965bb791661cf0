"""Listening to live traffic: a joiner and a sink of one run, until they are told to stop."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from infra.app.app import App
from infra.runs.posts import post_of
from infra.runs.topics import make_topics
from search_env.feedback.attribution import HOUR_MS
from search_env.feedback.outcomes import JoinCounts
from search_env.feedback.worker import run_joiner
from storage.ledger import LEDGER
from storage.workers import DRAIN_SECONDS, run_sink
from streams.errors import SettingsError
from streams.posts import Post
from streams.stopping import Stop


def begin_live(app: App, run: str) -> None:
    """Make the folder and the topics of a live run, or use the ones that are its own.

    Raises SettingsError if Kafka would delete events that a join may still need, and as `make_topics` does.
    """
    needed = app.settings.join.window_ms + app.settings.join.lateness_ms
    if app.settings.kafka.live_retention_hours * HOUR_MS < needed:
        raise SettingsError(
            f"kafka.live_retention_hours: expected at least join.window_ms + join.lateness_ms "
            f"({-(-needed // HOUR_MS)} h), got {app.settings.kafka.live_retention_hours}. Keep events longer, or "
            "shorten the join"
        )
    app.home.run(run).mkdir(parents=True, exist_ok=True)
    make_topics(app, run)


def listen(app: App, run: str, *, until_read: bool, stop: Stop, report: Callable[[JoinCounts], None]) -> JoinCounts:
    """Join a live run's impressions and actions, store everything in its ledger, and return the counts.

    until_read: end when everything is read that the log holds now, and stored; every outcome is final then. Otherwise
    both workers go on until `stop`. If one fails, the other stops, and the failure is raised.
    """
    folder, settings = app.home.run(run), app.settings
    ended, failed = Stop(), list[BaseException]()

    def store() -> None:
        try:
            run_sink(
                post_of(app, run=run, member="sink-1", delivery=settings.delivery, stop=ended),
                database=folder / LEDGER,
                sink=settings.sink,
                drain_seconds=math.inf if until_read else DRAIN_SECONDS,
            )
        except BaseException as error:
            failed.append(error)
            stop.set()

    storing = threading.Thread(target=store, name="searchloop-sink")
    storing.start()
    try:
        return join(app, run, worker=1, stop=stop, until_read=until_read, report=report)
    finally:
        ended.set()
        storing.join()
        if failed:
            raise failed[0]


def join(
    app: App,
    run: str,
    *,
    worker: int,
    stop: Stop,
    until_read: bool = False,
    report: Callable[[JoinCounts], None] = lambda _: None,
) -> JoinCounts:
    """Run the joiner of a run; see `run_joiner`. worker: its number, for the broker."""
    settings = app.settings
    post = Post(run=run, member=f"joiner-{worker}", kafka=app.connections.kafka, delivery=settings.delivery, stop=stop)
    return run_joiner(post, app.home.run(run), settings.join, until_read=until_read, report=report)
