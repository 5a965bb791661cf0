"""`searchloop replay import-ubi` and `import-sessions`: external traffic, imported as a run that can be replayed."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from infra.app.app import App
from infra.app.progress import progress
from infra.commands.results import show_result, warn


@click.command(name="import-ubi")
@click.option(
    "--queries", required=True, type=click.Path(path_type=Path), help="File of queries (NDJSON), plain or compressed."
)
@click.option(
    "--events", required=True, type=click.Path(path_type=Path), help="File of events (NDJSON), plain or compressed."
)
@click.option("--application", help="Import only this application.")
@click.option("--into", required=True, help="Name of the new run.")
@click.option("--index", help="Also make a request from each search, with the context of this index.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output.")
@click.pass_obj
def import_ubi(
    app: App, queries: Path, events: Path, application: str | None, into: str, index: str | None, as_json: bool
) -> None:
    """Import User Behavior Insights (UBI 1.3) as feedback and, with --index, as requests.

    \b
    Each application is read separately. Positions with more clicks than impressions and unreadable lines are left out
    and counted. Actions without an impression are kept and counted as orphans. A time without a zone is UTC. Both files
    are read before anything is written. If the import fails, everything that it wrote is deleted.

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
@click.option("--into", required=True, help="Name of the new run.")
@click.option("--application", default="sessions", show_default=True, help="Name of the traffic's application.")
@click.option(
    "--corpus", type=click.Path(path_type=Path), help="Catalogue; rows that name no product of it are counted."
)
@click.option("--index", help="Also make a request from each session, with the context of this index.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output.")
@click.pass_obj
def import_sessions(
    app: App, file: Path, into: str, application: str, corpus: Path | None, index: str | None, as_json: bool
) -> None:
    """Import ranked click sessions (CSV) as feedback and, with --index, as requests.

    \b
    The columns are session_id,query,rank0,doc_id,clicked; rank0 counts from 0. The rows of a session must be adjacent.
    Unusable rows are left out and counted. The file is read once before anything is written. If the import fails,
    everything that it wrote is deleted.

    \b
    Example:
      searchloop replay import-sessions sessions.csv.gz --corpus corpus.jsonl.gz --into clicks
    """
    from infra.replaying.importing import import_feedback
    from search_env.catalogue.corpora import load_corpus
    from search_env.traffic.sessions import SessionFile
    from streams.pseudonyms import Pseudonyms

    known = {document.id for document in load_corpus(corpus, tell=warn)} if corpus else None
    sessions = SessionFile(file, application=application, known=known)
    summary = sessions.read_through()
    with (
        progress() as report,
        app.running_services(report) as running,
        Pseudonyms(running.home.people) as pseudonyms,
    ):
        again = sessions.read_again(lambda session: pseudonyms.of("", session)[1])
        count = import_feedback(running, again, into=into, index=index, report=report)
    found = {"run": into, "searches": count, **summary.as_dict()}
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo(", ".join(f"{name} {value}" for name, value in found.items() if not isinstance(value, dict)))
    if summary.left_out.total:
        warn(f"{file}: {summary.left_out.total:,} rows were left out: {summary.left_out.told()}")


@click.command(name="export-ubi")
@click.option("--run", "run_name", required=True, help="Run whose impressions and actions are written.")
@click.option(
    "--queries", required=True, type=click.Path(path_type=Path), help="New file of queries (NDJSON); .gz compresses it."
)
@click.option(
    "--events", required=True, type=click.Path(path_type=Path), help="New file of events (NDJSON); .gz compresses it."
)
@click.pass_obj
def export_ubi(app: App, run_name: str, queries: Path, events: Path) -> None:
    """Write a run's impressions and actions as User Behavior Insights (UBI 1.3), from its ledger.

    \b
    Each impression and each action is written once. Policy and propensities stand under query_attributes. The files
    must not exist; they are whole or absent.

    \b
    Example:
      searchloop replay export-ubi --run live --queries queries.ndjson.gz --events events.ndjson.gz
    """
    from infra.replaying.exporting import export_ubi as export

    count = export(app.home.existing_run(run_name), queries=queries, events=events)
    click.echo(f"{count.queries:,} queries in {queries}, {count.events:,} events in {events}")
