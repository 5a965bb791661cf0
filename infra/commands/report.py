"""`searchloop report` and `searchloop rebuild`: a run's report from its log alone, and the log's tables rebuilt."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from infra.app.app import App
from infra.app.home import RunFolder
from infra.commands.ledger import print_lineage
from infra.commands.options import exclude
from infra.runs.reporting import opening, page_of, report_of
from search_env.catalogue.corpora import write_whole
from storage.errors import StorageError
from storage.log import open_log, rebuild_ledger
from storage.reports.report import to_json
from storage.reports.text import print_report


@click.command()
@click.option("--run", "name", required=True, help="Name of the run.")
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Also write the report to this HTML file."
)
@click.option(
    "--parquet",
    type=click.Path(path_type=Path),
    help="Also write each view of the run's DuckDB file as Parquet to this new folder.",
)
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    help="Also write rewards, update metrics and dev scores as TensorBoard event files to this new folder.",
)
@click.option(
    "--policy", help="Show instead the events that made this version: latest, a step, or a version's name (lineage)."
)
@click.option(
    "--event",
    help="Show instead the versions that this event taught. An event is a place, a group, candidate or request id, or "
    "a query.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value on standard output.")
@click.pass_context
def report(
    context: click.Context,
    name: str,
    page: Path | None,
    parquet: Path | None,
    tensorboard: Path | None,
    policy: str | None,
    event: str | None,
    as_json: bool,
) -> None:
    """Report on a run: rewards by version, outcomes, staleness, dead letters, evaluations.

    \b
    --html writes a page that opens anywhere: the result first, then health, six charts, and examples with their results
    before and after. The page has no script and loads nothing.
    The report reads only the run's folder, even while the run continues. It keeps its sums there, in report.sums, so
    that the next report reads only what is new; without the file, it reads everything.
    With --policy or --event, it shows the lineage of a version or of an event instead. The views version_events and
    event_versions in the run's DuckDB file give the same in SQL.

    \b
    Example:
      searchloop report --run demo --html report.html
      searchloop report --run demo --parquet tables --tensorboard curves
      searchloop report --run demo --policy latest
      searchloop report --run demo --event 'requests[0]@17'
    """
    app: App = context.obj
    if policy is not None or event is not None:
        exclude(context, ["page", "parquet", "tensorboard"], "--policy" if policy is not None else "--event")
        if policy is not None:
            exclude(context, ["event"], "--policy")
        print_lineage(app, name, policy=policy, event=event, as_json=as_json)
        return
    folder = app.home.existing_run(name)
    if parquet is not None or tensorboard is not None:
        _export(folder, parquet, tensorboard)
    found = report_of(folder, _say)
    if page is not None:
        try:
            write_whole(page, page_of(app.home, folder, found))
        except OSError as error:
            raise StorageError(f"{page}: cannot be written ({error.strerror}); choose another place") from error
    if as_json:
        click.echo(to_json(found))
        return
    print_report(found, Console())
    if page is not None:
        click.echo(f"wrote {page}\nlook: {opening(page)}")


def _export(folder: RunFolder, parquet: Path | None, tensorboard: Path | None) -> None:
    from infra.monitoring.exporting import export_parquet, export_tensorboard

    with open_log(folder) as log:
        if parquet is not None:
            export_parquet(log, parquet, _say)
        if tensorboard is not None:
            export_tensorboard(log, folder.name, tensorboard, _say)


def _say(said: str) -> None:
    click.echo(said, err=True)


@click.command()
@click.option("--run", "name", required=True, help="Name of the run.")
@click.option(
    "--gaps", is_flag=True, help="Accept missing offsets: Kafka never had a record where no segment holds one."
)
@click.pass_obj
def rebuild(app: App, name: str, gaps: bool) -> None:
    """Rebuild a lost or damaged DuckDB file of a run from its archive; the old file is kept beside it.

    \b
    Records that are not archived yet come from the old file, if it can be read, or from Kafka when the run continues.
    To compare first, by content hash, run: searchloop verify --rebuild

    \b
    Example:
      searchloop rebuild --run demo
    """
    count = rebuild_ledger(app.home.existing_run(name), gaps=gaps)
    click.echo(f"rebuilt the ledger of run {name} from {count:,} records")
