"""The report as one HTML file: charts as inline SVG, tables, examples."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from storage.charts import Series, line_chart
from storage.evaluation.tables import Evaluation
from storage.pages import clean, html_page, html_table, show_interval
from storage.report import Report, UpdateRow, VersionRow


def render_page(report: Report) -> str:
    """Return the whole page."""
    sections = [
        _head(report),
        '<div class="charts">',
        *_version_charts(report.versions),
        *_update_charts(report.updates),
        "</div>",
        *(section for name, evaluation in report.evaluations.items() for section in _evaluation(name, evaluation)),
        *_accounts(report),
        *_examples(report),
        *_letters(report),
        *_partitions(report),
    ]
    return html_page(report.run, sections)


def _head(report: Report) -> str:
    lines = [f"<h1>Run {clean(report.run)}</h1>"]
    if report.first_ms is not None and report.last_ms is not None:
        minutes = (report.last_ms - report.first_ms) / 60_000
        lines.append(
            f'<p class="quiet">rewards from {_time(report.first_ms)} to {_time(report.last_ms)} UTC '
            f"({minutes:.1f} minutes)</p>"
        )
    if report.live:
        lines.append('<p class="warn">The run is still going: this report lacks its newest minute.</p>')
    scored = [version for version in report.versions if version.reward is not None]
    if scored:
        first, last = scored[0], scored[-1]
        lines.append(
            f"<p>Reward {first.reward:.3f} at step {first.step}, {last.reward:.3f} at step {last.step}; "
            f"{len(report.updates)} updates, {sum(version.groups for version in scored)} groups.</p>"
        )
    else:
        lines.append("<p>No group has been rewarded yet.</p>")
    return "\n".join(lines)


def _version_charts(rows: Sequence[VersionRow]) -> list[str]:
    def line(name: str, field: str, errors: str = "") -> Series:
        kept = [row for row in rows if getattr(row, field) is not None]
        return Series(
            name=name,
            points=tuple((row.step, getattr(row, field)) for row in kept),
            errors=tuple(getattr(row, errors) or 0.0 for row in kept) if errors else (),
        )

    parts = sorted({name for row in rows for name in row.components})
    label = "policy version (step)"
    return [
        line_chart("Reward", [line("mean", "reward", "reward_error"), line("best of group", "best")], x_label=label),
        line_chart(
            "Parts of the reward",
            [
                Series(
                    name=name,
                    points=tuple((row.step, row.components[name]) for row in rows if name in row.components),
                )
                for name in parts
            ],
            x_label=label,
        ),
        line_chart(
            "Valid outputs, groups without spread",
            [line("valid", "valid"), line("flat groups", "flat")],
            x_label=label,
            percent=True,
        ),
        line_chart("Expansions per candidate", [line("mean", "expansions")], x_label=label),
    ]


def _update_charts(rows: Sequence[UpdateRow]) -> list[str]:
    lag = [row for row in rows if row.lag_mean is not None]
    charts = [
        line_chart(
            "Staleness of the groups in an update",
            [
                Series(name="mean", points=tuple((row.step, row.lag_mean or 0.0) for row in lag)),
                Series(name="largest", points=tuple((row.step, float(row.lag_max or 0)) for row in lag)),
            ],
            x_label="update (step)",
        )
    ]
    for name in sorted({name for row in rows for name in row.metrics}):
        points = tuple((float(row.step), row.metrics[name]) for row in rows if name in row.metrics)
        charts.append(line_chart(f"Update: {name}", [Series(name=name, points=points)], x_label="update (step)"))
    return charts


def _evaluation(name: str, evaluation: Evaluation) -> list[str]:
    measures = evaluation.measures
    rows = [[run.name, *(show_interval(run.measures.get(measure)) for measure in measures)] for run in evaluation.runs]
    sections = [
        f"<h2>Evaluation: {clean(name)}</h2>",
        f'<p class="quiet">{evaluation.queries} queries; {evaluation.settings.confidence:.0%} intervals by query</p>',
        html_table(["run", *measures], rows),
    ]
    if evaluation.believed and evaluation.believed.line:
        sections.append(f'<p class="quiet">{clean(evaluation.believed.line)}</p>')
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
        sections.append(f'<p class="quiet">Against {clean(evaluation.baseline or "")} (p after Holm):</p>')
        sections.append(html_table(["run", *names], rows))
    return sections


def _accounts(report: Report) -> list[str]:
    rows = [[a.split, a.candidates, a.scored, a.failed, a.expired, a.waiting, a.uses_max] for a in report.accounting]
    names = ["split", "candidates", "scored", "failed", "expired", "waiting", "most uses of one"]
    return ["<h2>The fates of all candidates</h2>", html_table(names, rows)] if rows else []


def _examples(report: Report) -> list[str]:
    rows = [[e.query, ", ".join(e.expansions) or "(none)", f"{e.reward:.3f}", e.found] for e in report.examples]
    names = ["query", "best expansions of the newest version", "reward", "new documents found"]
    return ["<h2>Examples</h2>", html_table(names, rows)] if rows else []


def _letters(report: Report) -> list[str]:
    if not report.dead_letters:
        return ["<h2>Dead letters</h2><p>None.</p>"]
    counts = ", ".join(f"{clean(stage)} {count:g}" for stage, count in report.dead_letters.items())
    rows = [[x.stage, f"{x.topic}/{x.partition}@{x.offset}", x.attempts, x.error] for x in report.letters]
    return [f"<h2>Dead letters</h2><p>{counts}</p>", html_table(["stage", "record", "attempts", "error"], rows)]


def _partitions(report: Report) -> list[str]:
    rows = [[p.topic, p.partition, p.next_offset, p.records, p.gaps, p.undecodable] for p in report.partitions]
    names = ["topic", "partition", "next offset", "records", "gaps", "undecodable"]
    return ["<h2>The log</h2>", html_table(names, rows)] if rows else []


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # The time of a clock that was far off.
        return f"{milliseconds} ms"
