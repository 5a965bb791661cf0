"""`searchloop replay import-ubi` and `import-sessions`: traffic from outside, as a run that can be replayed."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from infra.app.app import App
from infra.app.progress import progress
from infra.commands.results import show_result, warn


@click.command(name="import-ubi")
@click.option("--queries", required=True, type=click.Path(path_type=Path), help="Queries, NDJSON, plain or packed.")
@click.option("--events", required=True, type=click.Path(path_type=Path), help="Events, NDJSON, plain or packed.")
@click.option("--application", help="Of this application alone.")
@click.option("--into", required=True, help="The new run's name.")
@click.option("--index", help="Also make a request of each search, with this index's context.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object on standard output.")
@click.pass_obj
def import_ubi(
    app: App, queries: Path, events: Path, application: str | None, into: str, index: str | None, as_json: bool
) -> None:
    """Read User Behavior Insights (UBI 1.3) as feedback, and with --index as requests.

    \b
    Each application is read by itself. A position with more clicks than impressions is left out, and counted; so is
    whatever cannot be read. Actions without an impression are kept, and counted as orphans. A time without a zone is
    UTC. Both files are read before anything is made; if the import fails, nothing of it stays.

    \b
    Example:
      searchloop replay import-ubi --queries queries.ndjson.gz --events events.ndjson.gz --into traffic --index shop
      searchloop replay load --run traffic --like shop-0 --into traffic-load --speed x60
    """
    from infra.replaying.importing import import_feedback
    from search_env.traffic.ubi import read_ubi

    feedback, summaries = read_ubi(queries, events, application=application)
    with progress() as report, app.running_services(report) as running:
        count = import_feedback(running, feedback, into=into, index=index, report=report)
    if as_json:
        click.echo(msgspec.json.encode({"run": into, "searches": count, "applications": summaries}).decode())
        return
    for summary in summaries:
        show_result(summary, f"application {summary.application}", as_json=False)
    click.echo(f"{count:,} searches imported into {into}")


@click.command(name="import-sessions")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--into", required=True, help="The new run's name.")
@click.option("--application", default="sessions", show_default=True, help="What the traffic is to be called.")
@click.option("--corpus", type=click.Path(path_type=Path), help="The catalogue: count rows that name no product of it.")
@click.option("--index", help="Also make a request of each session, with this index's context.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object on standard output.")
@click.pass_obj
def import_sessions(
    app: App, file: Path, into: str, application: str, corpus: Path | None, index: str | None, as_json: bool
) -> None:
    """Read ranked click sessions (CSV) as feedback, and with --index as requests.

    \b
    Columns: session_id,query,rank0,doc_id,clicked; rank0 counts from 0, and a session's rows stand together. A row that
    cannot be used is left out, and counted. The file is read through once before anything is made; if the import
    fails, nothing of it stays.

    \b
    Example:
      searchloop replay import-sessions sessions.csv.gz --corpus corpus.jsonl.gz --into clicks
    """
    from infra.replaying.importing import import_feedback
    from search_env.catalogue.corpora import load_corpus
    from search_env.traffic.sessions import SessionFile

    known = {document.id for document in load_corpus(corpus, tell=warn)} if corpus else None
    sessions = SessionFile(file, application=application, known=known)
    summary = sessions.read_through()
    with progress() as report, app.running_services(report) as running:
        count = import_feedback(running, sessions.read_again(), into=into, index=index, report=report)
    found = {"run": into, "searches": count, **summary.as_dict()}
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo(", ".join(f"{name} {value}" for name, value in found.items() if not isinstance(value, dict)))
    if summary.left_out.total:
        warn(f"{file}: {summary.left_out.total:,} rows were left out: {summary.left_out.told()}")
