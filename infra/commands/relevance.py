"""`searchloop relevance`: train the model that computes the rewards, and check it against the raw order."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.app.app import App
from infra.app.progress import Report, progress
from infra.commands.judged import read_judged
from search_env.models.calibration import BINS

if TYPE_CHECKING:
    from infra.recipes.leser.closed_kinds import Verdict
    from infra.recipes.leser.judging import JudgeCheck, KindCheck
    from infra.recipes.leser.people import People
    from search_env.models.reliability import Reliability

CONTROL = "control: judgments shuffled"


@click.command()
@click.option("--index", default="catalogue", show_default=True, help="Index whose documents the model scores.")
@click.option(
    "--queries",
    type=click.Path(path_type=Path),
    help="Judged queries (JSONL) to train on, beside queries made from the catalogue, and to check the model on.",
)
@click.option("--qrels", type=click.Path(path_type=Path), help="Judgments of these queries; required with --queries.")
@click.option("--traffic", metavar="RUN", help="Train on the clicks in this run of live traffic, too.")
@click.option(
    "--label",
    default="",
    help="Keep the trained version under this label, beside the index's newest model, which stays as it is. "
    "relevance.version = LABEL chooses it for a run.",
)
@click.option("--check-only", is_flag=True, help="Check the model that is there, and train none.")
@click.option(
    "--samples",
    default=10_000,
    show_default=True,
    type=click.IntRange(100, 1_000_000),
    help="Number of bootstrap draws.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on standard output.")
@click.pass_obj
def relevance(
    app: App,
    index: str,
    queries: Path | None,
    qrels: Path | None,
    traffic: str | None,
    label: str,
    check_only: bool,
    samples: int,
    as_json: bool,
) -> None:
    """Train the relevance model that computes the rewards, and check it against the raw order of each kind of query.

    \b
    The sources are queries made from attributes and titles, judgments, clicks and a cross-encoder's scores;
    [relevance.sources] weighs them. The check reranks the raw top 100 by the model. A judged query is scored by trees
    that saw no judgment of it, and a control is trained on shuffled judgments. If the model's order is worse than the
    raw order for a kind of query, `train` leaves the kind out (relevance.gate).

    \b
    Example:
      searchloop relevance --index shop --queries judged.jsonl --qrels qrels.tsv
      searchloop relevance --index shop --traffic live
      searchloop relevance --index shop --traffic live --label november
      searchloop relevance --index shop --check-only --json
    """
    from infra.recipes.leser.click_log import shown_lists
    from infra.recipes.leser.people import People
    from search_env.models.relevance_versions import LABEL, NAME

    if check_only and traffic is not None:
        raise click.UsageError("--traffic: expected a command without --check-only, got both. Leave one of the two out")
    if label and (check_only or not LABEL.fullmatch(label) or NAME.fullmatch(label)):
        raise click.UsageError(
            f"--label: expected 1 to 63 of a-z, 0-9 and '-', no version's name, and no --check-only, got {label[:70]!r}"
        )
    folder = app.home.index(index)
    judged = read_judged(queries, qrels, index_folder=folder)
    people = People(judged=judged, log=shown_lists(app.home, traffic) if traffic else None)
    with progress() as report, app.running_services(report) as running:
        trained, check, verdict = train_and_check(
            running, index, people, train=not check_only, label=label, samples=samples, report=report
        )
    if as_json:
        value = {"training": trained, "check": msgspec.to_builtins(check), "verdict": msgspec.to_builtins(verdict)}
        click.echo(msgspec.json.encode(value).decode())
        return
    console = Console()
    if trained:
        table = Table(title=f"relevance model of {index}", show_header=False)
        for name, value in trained.items():
            table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
        console.print(table)
    print_check(check, verdict, console)


def train_and_check(
    app: App, index: str, people: People, *, train: bool, samples: int, report: Report, label: str = ""
) -> tuple[dict[str, Any], JudgeCheck, Verdict]:
    """Return the report of the training, the check of the model, and what its rewards may train."""
    from infra.recipes.leser import judging
    from infra.recipes.leser.gate import CHECKED_QUERIES, keep_check, read_check, verdict_of
    from infra.recipes.leser.relevance import grow_relevance, open_relevance, train_relevance
    from search_env.engine.opening import open_catalogue, open_searcher
    from search_env.models.hit_relevance import HitRelevance
    from search_env.models.relevance import GbdtRelevance

    folder, settings = app.home.index(index), app.settings
    with closing(app.engine()) as client, closing(open_searcher(client, folder, settings.retrieval)) as searcher:
        catalogue = open_catalogue(client, folder)
        trained = {}
        if train:
            trained = train_relevance(folder, settings, catalogue, people=people, report=report, label=label)
            if label:
                version = msgspec.structs.replace(settings.relevance, version=label)
                settings = msgspec.structs.replace(settings, relevance=version)
        model = open_relevance(folder, settings, catalogue=catalogue, report=report)
        kinds = (judging.PAIRS, judging.VALUES, judging.TITLES)
        sets = judging.made_sets(folder, catalogue, settings.gbdt, kinds, count=CHECKED_QUERIES)
        if people.judged is not None:
            sets.append(judging.JudgedSet(judging.JUDGED, *people.judged))
        found = judging.Judge(searcher, model, catalogue).check(sets, samples=samples, report=report)
        if people.judged is not None and train and settings.relevance.sources.judgments and not settings.gbdt.cosine:
            grown, _ = grow_relevance(folder, settings, catalogue, people=people, report=report, shuffle_seed=0)
            shuffled = HitRelevance(catalogue, GbdtRelevance(catalogue, grown), lambda held: GbdtRelevance(held, grown))
            control = judging.JudgedSet(CONTROL, *people.judged)
            found += judging.Judge(searcher, shuffled, catalogue).check([control], samples=samples, report=report)
        check = judging.JudgeCheck(model=model.name, index=searcher.index, kinds=tuple(found))
        before = read_check(folder, model=model.name, index=searcher.index)
        if before is not None:  # A check without judged queries keeps what an earlier one found about them.
            missing = [each for each in before.kinds if check.of(each.kind) is None]
            check = msgspec.structs.replace(check, kinds=(*check.kinds, *missing))
        keep_check(folder, check)
    asked = [(each.kind, each.queries) for each in check.kinds if each.kind != CONTROL]
    return trained, check, verdict_of(check, asked, settings.relevance.gate)


def print_check(check: JudgeCheck, verdict: Verdict, console: Console) -> None:
    """Print what reranking does to each kind of query, which measure to believe, and the calibration."""
    console.print(
        f"reranking the raw top 100 by {check.model}; 95% intervals, paired bootstrap over queries", highlight=False
    )
    for each in check.kinds:
        console.print(Text(f"\n{each.kind}: {each.queries} queries", style="bold"))
        table = Table("measure", "raw", "reranked", "difference", box=box.SIMPLE_HEAD)
        for name in each.raw:
            table.add_row(name, f"{each.raw[name]:.3f}", f"{each.reranked[name]:.3f}", Text(_difference(each, name)))
        console.print(table)
        if each.line:
            console.print(each.line, highlight=False)
    console.print(Text("\ncalibration: the mean label of documents by their score", style="bold"))
    heads = [f".{tenth}–" for tenth in range(BINS)]
    table = Table("kind of query", "error", *heads, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for each in check.kinds:
        if each.reliability is not None:
            table.add_row(each.kind, _short(each.reliability.error), *_bins(each.reliability))
    console.print(table)
    for kind in verdict.kinds:
        console.print(f"{kind.kind}: {'trains' if kind.trains else 'does not train'}: {kind.reason}", highlight=False)


def _difference(check: KindCheck, name: str) -> str:
    found = check.differences.get(name)
    if found is None or found.value is None or found.low is None or found.high is None:
        return ""
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _bins(of: Reliability) -> list[str]:
    """Return the mean label of each tenth of the scores; "" for a tenth without documents."""
    found = {min(int(each.probability * BINS), BINS - 1): _short(each.label) for each in of.bins}
    return [found.get(tenth, "") for tenth in range(BINS)]


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")
