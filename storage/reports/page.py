"""The report as one HTML file: the result first, then health, six charts, examples, and everything else folded away."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

from storage.evaluation.tables import Evaluation
from storage.pages import clean, folded, html_page, html_table, show_interval
from storage.reports.blocks import example_blocks, health_block, result_block
from storage.reports.charts import main_charts, metric_charts
from storage.reports.report import Report
from storage.reports.result import result_lines
from storage.reports.updates import UpdateRow
from storage.reports.versions import VersionRow
from storage.shelf import Shelf

T = TypeVar("T")
ROWS_MAX = 200  # Of a table with a row per version or update.


def render_page(report: Report, shelf: Shelf | None = None) -> str:
    """Return the whole page. shelf: titles and grades for the examples.

    Its size is bounded: lines have at most `charts.POINTS_MAX` points, tables at most `ROWS_MAX` rows.
    """
    shelf = shelf or Shelf()
    sections = [
        _head(report),
        "<main>",
        result_block(result_lines(report, shelf), report),
        health_block(report),
        _charts(report),
        example_blocks(report, shelf),
        _rest(report),
        "</main>",
        "<footer><p>Made from the run's log alone by <code>searchloop report --html</code>. The page has no script and "
        "loads nothing.</p></footer>",
    ]
    return html_page(f"Run {report.run}", sections)


def _head(report: Report) -> str:
    lines = [f"<h1>Run <bdi>{clean(report.run)}</bdi></h1>"]
    said = [f"{len(report.updates):,} updates", f"{sum(version.groups for version in report.versions):,} groups"]
    if report.first_ms is not None and report.last_ms is not None:
        minutes = (report.last_ms - report.first_ms) / 60_000
        said.append(f"{_time(report.first_ms)} to {_time(report.last_ms)} UTC ({minutes:.1f} minutes)")
    lines.append(f'<p class="quiet">{", ".join(said)}</p>')
    if report.live:
        lines.append('<p class="warn">The run is still going: this report lacks its newest minute.</p>')
    places = {"result": "Result", "health": "Health", "charts": "Charts", "examples": "Examples", "rest": "Everything"}
    if not report.comparisons:
        del places["examples"]
    links = "".join(f'<li><a href="#{place}">{name}</a></li>' for place, name in places.items())
    return f'<header>{"".join(lines)}<nav aria-label="Parts of the page"><ul>{links}</ul></nav></header>'


def _charts(report: Report) -> str:
    return (
        '<section id="charts" aria-labelledby="charts-title"><h2 id="charts-title">How the run went</h2>'
        f'<div class="charts">{"".join(main_charts(report))}</div></section>'
    )


def _rest(report: Report) -> str:
    parts = [
        *(_evaluation(name, evaluation) for name, evaluation in report.evaluations.items()),
        folded(
            "Every metric", ['<div class="charts">', *metric_charts(report), "</div>"], note="by the name in the log"
        )
        if report.updates
        else "",
        _versions(report.versions),
        _updates(report.updates),
        _accounts(report),
        _letters(report),
        _partitions(report),
    ]
    return (
        '<section id="rest" aria-labelledby="rest-title"><h2 id="rest-title">Everything else</h2>'
        + "".join(parts)
        + "</section>"
    )


def _evaluation(name: str, evaluation: Evaluation) -> str:
    measures = evaluation.measures
    rows = [[run.name, *(show_interval(run.measures.get(measure)) for measure in measures)] for run in evaluation.runs]
    parts = [html_table(["row", *measures], rows, about=f"{name}: measures")]
    if evaluation.believed and evaluation.believed.line:
        parts.append(f'<p class="quiet">{clean(evaluation.believed.line)}</p>')
    against = [run for run in evaluation.runs if run.differences]
    if against:
        names = list(dict.fromkeys(measure for run in against for measure in run.differences))
        rows = []
        for run in against:
            cells = [run.name]
            for measure in names:
                difference = run.differences.get(measure)
                p = "" if difference is None or difference.p_holm is None else f", p {difference.p_holm:.4f}"
                cells.append(show_interval(difference.interval if difference else None, sign=True) + p)
            rows.append(cells)
        parts.append(f'<p class="quiet">Differences to {clean(evaluation.baseline or "")} (p after Holm):</p>')
        parts.append(html_table(["row", *names], rows, about=f"{name}: differences"))
    note = f"{evaluation.queries:,} queries, {evaluation.settings.confidence:.0%} intervals by query"
    return folded(f"Every measure of {name}", parts, note=note)


def _versions(rows: Sequence[VersionRow]) -> str:
    shown = _sampled(rows)
    cells = [
        [r.step, r.lineage, r.groups, r.scored, r.failed]
        + [_number(value) for value in (r.reward, r.spread, r.best, r.valid, r.flat, r.expansions)]
        for r in shown
    ]
    names = ["step", "lineage", "groups", "scored", "failed", "reward", "spread", "best", "valid", "flat", "expansions"]
    note = f"{len(rows):,}" if len(shown) == len(rows) else f"{len(shown):,} of {len(rows):,}"
    return folded("Policy versions", [html_table(names, cells, about="Policy versions")] if rows else [], note=note)


def _updates(rows: Sequence[UpdateRow]) -> str:
    shown = _sampled(rows)
    cells = [
        [r.step, r.lineage, r.trained, r.flat, r.expired, r.failed, _number(r.lag_mean), _number(r.lag_max)]
        for r in shown
    ]
    names = ["step", "lineage", "trained", "flat", "expired", "failed", "mean staleness", "largest staleness"]
    note = f"{len(rows):,}" if len(shown) == len(rows) else f"{len(shown):,} of {len(rows):,}"
    return folded("Updates, groups by fate", [html_table(names, cells, about="Updates")] if rows else [], note=note)


def _accounts(report: Report) -> str:
    rows = [[a.split, a.candidates, a.scored, a.failed, a.expired, a.waiting, a.uses_max] for a in report.accounting]
    names = ["split", "candidates", "scored", "failed", "expired", "waiting", "most uses of one"]
    return folded("The fates of all candidates", [html_table(names, rows, about="Fates")] if rows else [])


def _letters(report: Report) -> str:
    if not report.dead_letters:
        return ""
    counts = ", ".join(f"{clean(stage)} {count:g}" for stage, count in report.dead_letters.items())
    rows = [[x.stage, f"{x.topic}/{x.partition}@{x.offset}", x.attempts, x.error] for x in report.letters]
    table = html_table(["stage", "record", "attempts", "error"], rows, about="Dead letters")
    return folded("Dead letters", [f"<p>{counts}</p>", table], note="records that a worker gave up on")


def _partitions(report: Report) -> str:
    rows = [[p.topic, p.partition, p.next_offset, p.records, p.gaps, p.undecodable] for p in report.partitions]
    names = ["topic", "partition", "next offset", "records", "gaps", "undecodable"]
    return folded("The log", [html_table(names, rows, about="Partitions")] if rows else [], note="by partition")


def _sampled(rows: Sequence[T]) -> list[T]:
    """Return at most `ROWS_MAX` rows, evenly spread, with the first and the last."""
    if len(rows) <= ROWS_MAX:
        return list(rows)
    return [rows[round(at * (len(rows) - 1) / (ROWS_MAX - 1))] for at in range(ROWS_MAX)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # The time of a clock that was far off.
        return f"{milliseconds} ms"
