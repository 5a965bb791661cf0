"""Promotion: start a version's ramp, look at what people do, and take the steps that follow.

The state is one file in the live run's folder, which servers read. The decision is sent to Kafka and acknowledged
before the file is replaced. If the process dies between the two, the next look makes the same decision again, which
has the same id: the first record counts.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from typing import Literal

import msgspec

from infra.app.app import App
from infra.app.progress import Report
from infra.promotion.evidence import figures_of, gate, seen_at_stage
from infra.promotion.state import RAMP_FILE, read_ramp
from infra.runs.listening import begin_live
from search_env.serving.ramp import Ramp, Status, Step, next_step, taken
from storage.log import open_log
from storage.offpolicy.traffic import Traffic, read_traffic
from streams.clients import connect_producer
from streams.clock import now_ms
from streams.codec import encode_event
from streams.delivery import Outbox
from streams.errors import SettingsError
from streams.serving_events import Decision, DecisionKind
from streams.stopping import Stop
from streams.topics import BY_EVENT, topic_name
from streams.whole_file import write_file

By = Literal["rule", "person"]
Person = Literal["hold", "go on", "roll back"]


def start(app: App, run: str, version: str, *, by: By = "person") -> Decision:
    """Start the ramp of a version if the log speaks for it, and return the decision: "start", or "refuse".

    Raises SettingsError while another version is on its ramp.
    """
    settings = app.settings.ramp
    ramp = read_ramp(app.home.run(run))
    if ramp is not None and ramp.status in ("ramping", "held") and ramp.version != version:
        raise SettingsError(
            f"version {ramp.version} is {ramp.status} at {ramp.share:.0%}. Finish it first: searchloop promote "
            "--go-on, or --roll-back"
        )
    before = ramp.version if ramp is not None and ramp.status == "serves" and ramp.version != version else ""
    opened, reason, figures = gate(_traffic(app, run), version, before, settings)
    if not opened:
        return _decide(app, run, _decision("refuse", version, 0.0, reason, figures, by), None)
    made = Ramp(version=version, before=before, share=settings.stages[0], since_ms=now_ms())
    return _decide(app, run, _decision("start", version, made.share, reason, figures, by), made)


def look(app: App, run: str) -> tuple[Ramp, Step]:
    """Look once at what people did, take the step that follows, and return the new state and the step.

    Raises SettingsError if no version is promoted.
    """
    ramp = _existing(app, run)
    if ramp.status != "ramping":
        return ramp, Step(kind=None, reason=f"version {ramp.version}: {ramp.status}")
    settings = app.settings.ramp
    seen = seen_at_stage(_traffic(app, run, since_ms=ramp.since_ms), ramp, settings)
    step = next_step(ramp, seen, settings)
    if step.kind is None:
        return ramp, step
    after = taken(ramp, step, settings, now_ms=now_ms())
    name = _id(ramp.version, step.kind, str(ramp.stage), str(ramp.since_ms))
    _decide(
        app, run, _decision(step.kind, ramp.version, after.share, step.reason, figures_of(seen), "rule", name), after
    )
    return after, step


def follow(app: App, run: str, *, every_seconds: float, stop: Stop, report: Report) -> tuple[Ramp, Step]:
    """Look again and again until the version serves, is rolled back or held, or until `stop`."""
    while True:
        ramp, step = look(app, run)
        report(f"{ramp.version} at {ramp.share:.0%}: {step.reason}", 0, 0)
        if ramp.status != "ramping" or stop.wait(every_seconds):
            return ramp, step


def by_person(app: App, run: str, what: Person) -> Decision:
    """Hold a ramp, let it go on, or roll its version back, because a person says so.

    Raises SettingsError if there is nothing to do that to.
    """
    ramp = _existing(app, run)
    allowed = {"hold": ("ramping",), "go on": ("held",), "roll back": ("ramping", "held", "serves")}
    if ramp.status not in allowed[what]:
        raise SettingsError(f"version {ramp.version} {ramp.status}: nothing to {what}. See: searchloop promote --why")
    kind: DecisionKind = "start" if what == "go on" else what
    # With "go on" the stage begins anew: what was seen before may be what the hold was about.
    status: Status = "ramping" if what == "go on" else "held" if what == "hold" else "rolled back"
    share = 0.0 if what == "roll back" else ramp.share
    after = msgspec.structs.replace(ramp, status=status, share=share, since_ms=now_ms())
    return _decide(app, run, _decision(kind, ramp.version, share, f"a person said: {what}", {}, "person"), after)


def _existing(app: App, run: str) -> Ramp:
    ramp = read_ramp(app.home.run(run))
    if ramp is None:
        raise SettingsError(f"run {run}: no version was promoted yet. Run: searchloop promote VERSION --run {run}")
    return ramp


def _traffic(app: App, run: str, *, since_ms: int = 0) -> Traffic:
    with open_log(app.home.existing_run(run)) as log:
        return read_traffic(log, run, app.settings.utility, since_ms=since_ms)


def _decision(
    kind: DecisionKind, version: str, share: float, reason: str, figures: dict[str, float], by: By, name: str = ""
) -> Decision:
    now = now_ms()
    return Decision(
        decision_id=name or _id(version, kind, str(now)),
        version=version,
        kind=kind,
        share=share,
        reason=reason,
        evidence=figures,
        by=by,
        at_ms=now,
        made_at_ms=now,
    )


def _id(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _decide(app: App, run: str, decision: Decision, after: Ramp | None) -> Decision:
    """Send a decision, and replace the state once Kafka has acknowledged it."""
    begin_live(app, run)
    topic = BY_EVENT[Decision]
    with closing(connect_producer(app.connections.kafka, client_id=f"{run}-promote")) as producer:
        outbox = Outbox(producer, run, stage="promote", settings=app.settings.delivery)
        outbox.forward(
            topic=topic_name(run, topic.kind),
            partition=0,
            key=topic.key(decision).encode(),
            value=encode_event(decision),
        )
        outbox.flush()
    if after is not None:
        write_file(app.home.run(run) / RAMP_FILE, msgspec.json.encode(after))
    return decision
