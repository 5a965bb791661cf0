"""Promotion: admit a version by held-out queries, start its ramp by the log, look at people, and take the next step.

The state lies in the live run's folder, where servers read it. The decision is sent to Kafka and acknowledged
before the file is replaced. If the process dies between the two, the next look makes the same decision again, which
has the same id: the first record counts. A hold or a roll-back that was decided is finished by the next look.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Literal, NamedTuple

import msgspec

from infra.app.app import App
from infra.app.progress import Report
from infra.promotion.decided import STATUS, Decided, decisions_of, promised, require_decided
from infra.promotion.evidence import PROVEN_HIGH, figures_of, gate, routes_with_log, seen_at_stage
from infra.promotion.held_out import GateVerdict, routes_text
from infra.promotion.state import RAMP_FILE, read_ramp, read_routes, write_routes
from infra.runs.listening import begin_live
from search_env.serving.ramp import Ramp, Status, Step, next_step, taken, took_back
from search_env.serving.routing import Routes
from storage.log import open_log
from storage.offpolicy.reading import read_traffic
from storage.offpolicy.traffic import Traffic
from streams.clients import connect_producer
from streams.clock import now_ms
from streams.codec import encode_event
from streams.delivery import Outbox
from streams.errors import SettingsError
from streams.locks import in_turn, only_one
from streams.serving_events import Decision, DecisionKind
from streams.stopping import Stop
from streams.topics import BY_EVENT, topic_name
from streams.whole_file import write_file

By = Literal["rule", "person"]
Person = Literal["hold", "go on", "roll back"]
FOLLOWER_LOCK, CHANGE_LOCK = "promote.lock", "promote-change.lock"


def ramp_of(app: App, run: str, version: str) -> Status | None:
    """Return the status of a version's ramp, or None if the state is that of another version. Raises SettingsError."""
    ramp = read_ramp(app.home.run(run))
    return ramp.status if ramp is not None and ramp.version == version else None


def needs_gate(app: App, run: str, version: str) -> bool:
    """Return whether the held-out gate has to admit a version before anything else. Raises SettingsError."""
    if app.settings.serve.ungated:
        return False
    ramp, routes = read_ramp(app.home.run(run)), read_routes(app.home.run(run), version)
    serves = ramp is not None and ramp.version == version and ramp.status != "rolled back"
    if serves:
        return False
    return routes is None or routes.status == "withdrawn" or took_back(ramp, version, routes.made_at_ms)


def admit(app: App, run: str, verdict: GateVerdict, *, by: By = "person") -> Decision:
    """Keep the held-out gate's verdict on a version, and return the decision: "admit", or "refuse".

    An admitted version is explored: servers show it at the floor's share (`serve.epsilon`), where its routes let it.
    """
    version, share = verdict.routes.version, app.settings.serve.epsilon / 2
    with _changing(app, run):
        if not verdict.admitted:
            return _decide(app, run, _decision("refuse", version, 0.0, verdict.reason, verdict.figures, by), None)
        decision = _decision("admit", version, share, verdict.reason, verdict.figures, by)
        return _decide(app, run, decision, None, verdict.routes)


class Spoken(NamedTuple):
    """The log's answer on a version that has not begun its ramp. decided: False if more searches may change it."""

    opened: bool
    decided: bool
    reason: str
    figures: dict[str, float]
    routes: Routes | None


def ask_log(app: App, run: str, version: str) -> Spoken:
    """Return what the log says on a version: the off-policy gate, and its routes with what people did.

    Raises as `_startable` does.
    """
    settings = app.settings.ramp
    ramp = _startable(app, run, version)
    traffic = _traffic(app, run)
    opened, reason, figures = gate(traffic, version, _before(ramp, version), settings)
    decided = opened or figures.get(PROVEN_HIGH, 0.0) < 0
    routes = read_routes(app.home.run(run), version)
    if routes is None or not figures:
        return Spoken(opened, decided, reason, figures, routes)
    routes = routes_with_log(traffic, routes, _before(ramp, version), app.settings)
    said = f"{reason}; routes: {routes_text(routes.parts)}"
    if opened and not any(part.action != "raw" for part in routes.parts.values()):
        return Spoken(False, False, f"{said}. Expected a part of the queries where the version wins", figures, routes)
    return Spoken(opened, decided, said, figures, routes)


def _startable(app: App, run: str, version: str) -> Ramp | None:
    """Return the state of the ramp before a version's own begins.

    Raises SettingsError while another version is on its ramp, if this one serves already, if no gate admitted it, or if
    no decision made the state.
    """
    ramp = read_ramp(app.home.run(run))
    if ramp is not None:
        require_decided(run, ramp, decisions_of(app, run))
        if ramp.version == version and ramp.status == "serves":
            raise SettingsError(
                f"version {version} serves already. To begin anew, roll it back: searchloop promote --roll-back"
            )
        if ramp.status in ("ramping", "held") and ramp.version != version:
            raise SettingsError(
                f"version {ramp.version} is {ramp.status} at {ramp.share:.0%}. Finish it first: searchloop promote "
                "--go-on, or --roll-back"
            )
    if needs_gate(app, run, version):
        raise SettingsError(f"version {version} has not passed its held-out gate. Run: searchloop promote {version}")
    return ramp


def start(app: App, run: str, version: str, *, by: By = "person", spoken: Spoken | None = None) -> Decision:
    """Start the ramp of a version if the log speaks for it, and return the decision: "start", or "refuse".

    A version of which the log proves a loss is withdrawn, so that nobody is shown it any more.

    spoken: the log's answer, if it was asked just now. Raises as `ask_log` does.
    """
    found = spoken or ask_log(app, run, version)
    with _changing(app, run):
        ramp = _startable(app, run, version)  # Once more: meanwhile somebody may have taken the version back.
        if not found.opened:
            decision = _decision("refuse", version, 0.0, found.reason, found.figures, by)
            return _decide(app, run, decision, None, withdraw=found.decided)
        made = Ramp(
            version=version, before=_before(ramp, version), share=app.settings.ramp.stages[0], since_ms=now_ms()
        )
        decision = _decision("start", version, made.share, found.reason, found.figures, by)
        return _decide(app, run, decision, made, found.routes)


def _before(ramp: Ramp | None, version: str) -> str:
    """Return what people get now, beside a version that is to come: "" for raw results."""
    if ramp is None:
        return ""
    now = ramp.version if ramp.status == "serves" else ramp.before
    return now if now != version else ""


def look(app: App, run: str) -> tuple[Ramp, Step]:
    """Look once at what people did, take the step that follows, and return the new state and the step.

    Raises SettingsError if no version is promoted.
    """
    with _changing(app, run):
        return _look(app, run)


def _look(app: App, run: str) -> tuple[Ramp, Step]:
    ramp, finished = _existing(app, run)
    if finished is not None:
        return ramp, Step(kind=None, reason=f"finished what was decided before: {finished.kind}")
    if ramp.status != "ramping":
        return ramp, Step(kind=None, reason=f"version {ramp.version}: {ramp.status}")
    if (ahead_ms := ramp.since_ms - now_ms()) > 0:
        return ramp, Step(
            kind=None,
            reason=f"this stage begins {ahead_ms / 1000:,.0f} s from now by this machine's clock, which was set "
            "back: nothing counts until then. Set the clock, or begin the stage anew: --hold, then --go-on",
        )
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


def explore(app: App, run: str, version: str, *, every_seconds: float, stop: Stop, report: Report) -> Spoken:
    """Ask the log again and again until it decides on an admitted version, or until `stop`; return its last answer."""
    while True:
        found = ask_log(app, run, version)
        report(f"{version} is explored: {found.reason}", 0, 0)
        if found.decided or stop.wait(every_seconds):
            return found


def by_person(app: App, run: str, what: Person) -> Decision:
    """Hold a ramp, let it go on, or roll its version back, because a person says so.

    Raises SettingsError if there is nothing to do that to.
    """
    with _changing(app, run):
        return _by_person(app, run, what)


def withdraw(app: App, run: str, version: str) -> Decision:
    """Take one version away from people because a person says so, wherever they get it.

    It may be on its ramp, serve, be what people get beside a newer one, or be explored.
    Raises SettingsError if people do not get it.
    """
    with _changing(app, run):
        ramp, routes = read_ramp(app.home.run(run)), read_routes(app.home.run(run), version)
        if ramp is not None and ramp.version == version and ramp.status != "rolled back":
            return _by_person(app, run, "roll back")
        after = None
        if ramp is not None and ramp.before == version:
            # What a stage compares with has changed, so it begins anew.
            under_way = ramp.status in ("ramping", "held")
            after = msgspec.structs.replace(ramp, before="", since_ms=now_ms() if under_way else ramp.since_ms)
        elif routes is None or routes.status == "withdrawn":
            raise SettingsError(f"version {version} is shown to nobody. See: searchloop promote --why")
        return _decide(app, run, _decision("roll back", version, 0.0, "a person said: roll back", {}, "person"), after)


def _by_person(app: App, run: str, what: Person) -> Decision:
    ramp, finished = _existing(app, run)
    if finished is not None and finished.kind == what and what != "go on":
        return _decision(what, ramp.version, ramp.share, f"finished what was decided before: {what}", {}, "person")
    allowed = {"hold": ("ramping",), "go on": ("held",), "roll back": ("ramping", "held", "serves")}
    if ramp.status not in allowed[what]:
        beside = f" People get version {ramp.before}: searchloop promote {ramp.before} --roll-back" * bool(ramp.before)
        raise SettingsError(
            f"version {ramp.version} {ramp.status}: nothing to {what}. See: searchloop promote --why.{beside}"
        )
    kind: DecisionKind = "start" if what == "go on" else what
    # With "go on" the stage begins anew: what was seen before may be what the hold was about.
    status: Status = "ramping" if what == "go on" else "held" if what == "hold" else "rolled back"
    share = 0.0 if what == "roll back" else ramp.share
    after = msgspec.structs.replace(ramp, status=status, share=share, since_ms=now_ms())
    return _decide(app, run, _decision(kind, ramp.version, share, f"a person said: {what}", {}, "person"), after)


def _existing(app: App, run: str) -> tuple[Ramp, Decided | None]:
    """Return the state of the ramp, and the decision that had to be finished first, if there was one."""
    ramp = read_ramp(app.home.run(run))
    if ramp is None:
        raise SettingsError(f"run {run}: no version was promoted yet. Run: searchloop promote VERSION --run {run}")
    decisions = decisions_of(app, run)
    require_decided(run, ramp, decisions)
    last = promised(ramp, decisions)
    if last is not None:
        ramp = msgspec.structs.replace(ramp, status=STATUS[last.kind], share=last.share, since_ms=now_ms())
        _keep(app, run, ramp, last.version, withdraw=last.kind == "roll back")
    return ramp, last


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


@contextmanager
def following(app: App, run: str) -> Iterator[None]:
    """Hold the right to follow a run's ramp. Raises SettingsError if another process has it, and says which one."""
    path = app.home.run(run) / FOLLOWER_LOCK
    held_by = path.read_text().strip() if path.exists() else ""
    taken = SettingsError(
        f"run {run}: another `searchloop promote` follows it ({held_by or 'it began just now'}). Wait for "
        "its end, or stop it. "
        "--hold, --go-on, --roll-back and --why work beside it"
    )
    with only_one(path, taken):
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}\n")
        yield


@contextmanager
def _changing(app: App, run: str) -> Iterator[None]:
    """Hold the lock of one change: a look and a person's decision never overwrite each other."""

    def refusal(error: OSError) -> SettingsError:
        return SettingsError(f"{app.home.run(run)}: the lock of a promotion cannot be made: {error}")

    with in_turn(app.home.run(run) / CHANGE_LOCK, refusal=refusal):
        yield


def _decide(
    app: App,
    run: str,
    decision: Decision,
    after: Ramp | None,
    routes: Routes | None = None,
    *,
    withdraw: bool = False,
) -> Decision:
    """Send a decision, and replace the state once Kafka has acknowledged it. A roll-back withdraws the version.

    routes: written before the ramp, so that no server shows the version where it may not.
    """
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
    if routes is not None:
        write_routes(app.home.run(run), routes)
    _keep(app, run, after, decision.version, withdraw=withdraw or decision.kind == "roll back")
    return decision


def _keep(app: App, run: str, after: Ramp | None, version: str, *, withdraw: bool) -> None:
    """Replace the state of the ramp, and withdraw the routes of a version that people shall not get any more."""
    folder = app.home.run(run)
    if after is not None:
        write_file(folder / RAMP_FILE, msgspec.json.encode(after))
    if withdraw and (kept := read_routes(folder, version)) is not None:
        write_routes(folder, msgspec.structs.replace(kept, status="withdrawn"))
