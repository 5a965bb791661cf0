"""The verbs for the services: up, down, status, doctor."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.app.app import App, VllmTables
from infra.app.interrupts import at_hard_end
from infra.app.progress import progress
from infra.commands.acls import print_acls
from infra.commands.options import need
from infra.recipes.leser.closed_kinds import closed_kinds
from infra.runs.living import known_workers
from infra.runs.standing import known_runs, run_states
from learner.engine_load import read_load
from learner.vllm import VllmClient, VllmError, addresses
from services.doctor import FAIL, OK, WARN, CheckResult, doctor_findings
from services.errors import ProvisionError
from services.local import ServiceStatus
from services.vllm import vllm_python
from storage.monitor.stalls import RunState
from streams.errors import TransientError
from streams.kafka_settings import KafkaSettings

PROBE_SECONDS = 5.0
HEALTH = {"alive": "ok", "stopped": "stopped"}
STYLES = {"stalled": "red", "unknown": "yellow", "stopped": "yellow"}
MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one JSON object.")
@click.option("--secure", is_flag=True, help="Use TLS, and a user with its own rights for each role.")
@click.pass_obj
def up(app: App, as_json: bool, secure: bool) -> None:
    """Start Kafka and Elasticsearch, and leave them running until `down`.

    \b
    The first start downloads 177 MB. Running services are kept; services that died are restarted.
    A home that was started with --secure once stays secure. Certificates, passwords and API keys are in its services
    folder, and every verb and worker uses those of its role automatically.

    \b
    Example:
      searchloop up
      searchloop --home secure up --secure
    """
    services = app.local_services(secure=secure)
    with progress() as report, at_hard_end(lambda: "the guardian is stopping the services that it started"):
        endpoints = services.up(report)
    if as_json:
        click.echo(msgspec.json.encode(endpoints))
    else:
        click.echo(f"kafka          {endpoints.kafka}\nelasticsearch  {endpoints.elasticsearch}")


@click.command()
@click.pass_obj
def down(app: App) -> None:
    """Stop Kafka, Elasticsearch and vLLM of this home; their data are kept.

    \b
    Example:
      searchloop down
    """
    with progress() as report:
        stopped = app.local_services().down(report)
        stopped += app.policy_server().stop()
    for process in stopped:
        click.echo(f"stopped {process.role} (pid {process.pid})")
    if not stopped:
        click.echo("nothing was running")


class WorkerStatus(ServiceStatus, frozen=True, kw_only=True):
    """A worker's row. health: "ok", or "stopped" if a signal (SIGSTOP) stopped the worker."""

    run: str


class RunStatus(ServiceStatus, frozen=True, kw_only=True):
    """A run's row: its role is "run", and its health is the run's state.

    health: "running", "idle", "finished", "stalled", "stopped" (no worker lives) or "unknown" (Kafka does not answer).
    waiting_for: the cause of a stall that has lasted `seconds` so far, otherwise empty. says: one line for
    people, also about kinds of queries that rewards do not train.
    """

    run: str
    waiting_for: str
    seconds: float
    says: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects with role, pid, port and health.")
@click.pass_obj
def status(app: App, as_json: bool) -> None:
    """Show every process with pid, port and health, and every run with its state.

    \b
    A run is running, idle, finished, stalled or stopped. It is stalled if records wait and their stage has not moved
    for delivery.stall_seconds. The table leaves out finished runs without workers; --json lists all runs.

    \b
    Example:
      searchloop status --json
    """
    rows = status_rows(app)
    if as_json:
        click.echo(msgspec.json.encode(rows))
        return
    console = Console(soft_wrap=True)
    table = Table("role", "pid", "port", "health", "run", box=None, header_style="bold")
    for row in rows:
        if not isinstance(row, RunStatus):
            run = row.run if isinstance(row, WorkerStatus) else ""
            table.add_row(row.role, str(row.pid or "-"), str(row.port or "-"), row.health, run)
    console.print(table)
    runs = [row for row in rows if isinstance(row, RunStatus)]
    at_work = {row.run for row in rows if isinstance(row, WorkerStatus)}
    shown = [row for row in runs if row.health != "finished" or row.run in at_work]
    for row in shown:
        console.print(Text(f"run {row.run}: {row.health}: {row.says}", style=STYLES.get(row.health, "")))
    if len(runs) > len(shown):
        console.print(f"{len(runs) - len(shown)} finished runs: see --json")


def status_rows(app: App) -> list[ServiceStatus]:
    """Return the services' rows, then one row per living worker of any run, then one row per run."""
    workers = [
        WorkerStatus(role=worker.role, pid=worker.pid, port=None, health=HEALTH[worker.state], run=folder.name)
        for folder in sorted(app.home.runs.glob("*"))
        for worker in known_workers(folder)
        if worker.state != "dead"
    ]
    rows = app.local_services().status([*app.policy_server().status(), *workers])
    return [*rows, *_run_rows(app, kafka_answers=any(row.role == "kafka" and row.health == "ok" for row in rows))]


def _run_rows(app: App, *, kafka_answers: bool) -> list[RunStatus]:
    runs = known_runs(app.home)
    if not kafka_answers:
        states = [RunState(run=run, state="unknown", says="Kafka does not answer; see the row above") for run in runs]
    else:
        states = run_states(app.home, _kafka(app), runs)
    return [
        RunStatus(
            role="run",
            pid=None,
            port=None,
            health=each.state,
            run=each.run,
            waiting_for=each.waiting_for,
            seconds=each.seconds,
            says="; ".join(filter(None, (each.says, closed_kinds(app.home.run(each.run))))),
        )
        for each in states
    ]


def _kafka(app: App) -> KafkaSettings:
    """Return the settings to reach Kafka, whether or not Elasticsearch runs."""
    kafka = app.connections.kafka
    port = next((row.port for row in app.local_services().status() if row.role == "kafka"), None)
    return kafka if kafka.bootstrap else msgspec.structs.replace(kafka, bootstrap=f"127.0.0.1:{port}")


@click.command()
@click.option(
    "--acls",
    "acls_of",
    metavar="RUN",
    help="Print instead the rights that the roles of this run need on your own Kafka. The run need not exist yet.",
)
@click.option(
    "--user",
    "users",
    multiple=True,
    metavar="ROLE=USER",
    help="With --acls: user of a role; may be repeated. Default: the role's name.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a list of objects with name, level, found and advice; with --acls, with role, resource, name, "
    "operation.",
)
@click.pass_context
def doctor(context: click.Context, acls_of: str | None, users: tuple[str, ...], as_json: bool) -> None:
    """Report what is installed, what is missing, and how to fix it; the exit status is 1 if something is missing.

    \b
    With --acls, print the rights that a run's roles need, as commands of the Kafka command-line tool. The roles are
    generator, environment, learner, sink, monitor and operator (for all other verbs). Several roles may share one user.
    On the Kafka of `up --secure`, searchloop grants these rights itself.

    \b
    Example:
      searchloop doctor
      searchloop doctor --acls leser-shop-0 --user sink=warehouse
    """
    app: App = context.obj
    if acls_of is not None:
        print_acls(app, acls_of, users, as_json=as_json)
        return
    need(context, ["users"], "--acls")
    findings = [*doctor_findings(app.local_services()), vllm_finding(app.tables(VllmTables))]
    if as_json:
        click.echo(msgspec.json.encode(findings))
    else:
        _print_findings(findings)
    if any(finding.level == FAIL for finding in findings):
        sys.exit(1)


def vllm_finding(tables: VllmTables) -> CheckResult:
    """Return the state of vLLM, which only runs with `generation.backend = "vllm"` need."""
    settings = tables.vllm
    if settings.url:
        patient = msgspec.structs.replace(settings, retry_seconds_max=0, timeout_seconds=PROBE_SECONDS)
        said: list[str] = []
        down = 0
        for url in addresses(settings.url):
            try:
                client = VllmClient(url, patient)
                client.require_version()
                load = read_load(client.metrics(timeout_seconds=PROBE_SECONDS))
                queue = f"{load.running:g} running, {load.waiting:g} waiting" if load else "its queue is unknown"
                said.append(f"a server of your own at {url}, {len(client.models())} models, {queue}")
            except (TransientError, VllmError) as error:
                said.append(str(error))
                down += 1
        level = OK if not down else FAIL if down == len(said) else WARN
        advice = "Check vllm.url and vllm.api_key, and that the server is up" if down else ""
        return CheckResult(name="vllm", level=level, found="; ".join(said), advice=advice)
    try:
        python = vllm_python(tables.vllm_server)
    except ProvisionError as error:
        found = "not installed; only generation.backend = 'vllm' needs it"
        level = FAIL if tables.vllm_server.python else OK
        return CheckResult(name="vllm", level=level, found=found if level == OK else str(error), advice="make vllm")
    return CheckResult(name="vllm", level=OK, found=f"at {python}, started by runs that use it")


def _print_findings(findings: Sequence[CheckResult]) -> None:
    table = Table(box=None, header_style="bold")
    for title in ("", "what", "found", "what to do"):
        table.add_column(title, overflow="fold")  # a truncated path is useless
    for finding in findings:
        table.add_row(MARKS[finding.level], finding.name, finding.found, finding.advice)
    Console().print(table)
