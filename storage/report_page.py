"""The report as one HTML file: charts as inline SVG, nothing fetched, nothing run, every text escaped.

Queries, expansions and errors come from outside. They are escaped, freed of control and direction characters, and stand
in <bdi>; a content policy in the page forbids scripts and every request besides.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from storage.charts import Series, line_chart
from storage.evaluation.comparison import Interval
from storage.evaluation.tables import Evaluation
from storage.report import Report, UpdateRow, VersionRow

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #66707b; --rule: #d9dee3; --paper: #fff;
  --c0: #1f6feb; --c1: #d9480f; --c2: #2b8a3e; --c3: #862e9c; --c4: #b08900; --c5: #0b7285; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --quiet: #9aa4ae; --rule: #343b42; --paper: #14181c;
  --c0: #74a9ff; --c1: #ff922b; --c2: #69db7c; --c3: #da77f2; --c4: #ffd43b; --c5: #66d9e8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .quiet { color: var(--quiet); } .warn { color: var(--c1); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 1rem 2rem; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .9rem; }
.key { font-weight: 400; margin-left: .8em; } .key::before { content: "\\25cf\\00a0"; }
svg { width: 100%; height: auto; } .grid { stroke: var(--rule); } .tick { fill: var(--quiet); font-size: 11px; }
.line { fill: none; stroke-width: 1.8; stroke: currentColor; } .band { opacity: .16; fill: currentColor; }
.dot { fill: currentColor; }
.series-0 { color: var(--c0); } .series-1 { color: var(--c1); } .series-2 { color: var(--c2); }
.series-3 { color: var(--c3); } .series-4 { color: var(--c4); } .series-5 { color: var(--c5); }
.key { color: var(--quiet); } .key.series-0::before { color: var(--c0); } .key.series-1::before { color: var(--c1); }
.key.series-2::before { color: var(--c2); } .key.series-3::before { color: var(--c3); }
.key.series-4::before { color: var(--c4); } .key.series-5::before { color: var(--c5); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; color: var(--quiet); } td.number { text-align: right; white-space: nowrap; }
"""


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
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{clean(report.run)} – searchloop</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(part for part in sections if part)
        + "\n</body></html>\n"
    )


def clean(text: str) -> str:
    """Return text from outside as safe HTML, without control, direction and private characters."""
    return escape("".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") else " " for c in text))


def _head(report: Report) -> str:
    lines = [f"<h1>Run {clean(report.run)}</h1>"]
    if report.first_ms is not None and report.last_ms is not None:
        minutes = (report.last_ms - report.first_ms) / 60_000
        lines.append(
            f'<p class="quiet">rewards from {_time(report.first_ms)} to {_time(report.last_ms)} UTC '
            f"({minutes:.1f} minutes)</p>"
        )
    if report.live:
        lines.append('<p class="warn">The run goes on: the newest minute is not in this report yet.</p>')
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
    measures = list(evaluation.settings.measures)
    rows = [[run.name, *(_interval(run.measures.get(measure)) for measure in measures)] for run in evaluation.runs]
    sections = [
        f"<h2>Evaluation: {clean(name)}</h2>",
        f'<p class="quiet">{evaluation.queries} queries; {evaluation.settings.confidence:.0%} intervals by query</p>',
        _table(["run", *measures], rows),
    ]
    against = [run for run in evaluation.runs if run.differences]
    if against:
        names = list(dict.fromkeys(measure for run in against for measure in run.differences))
        rows = []
        for run in against:
            cells = [run.name]
            for measure in names:
                difference = run.differences.get(measure)
                p = "" if difference is None or difference.p_holm is None else f", p {difference.p_holm:.4f}"
                cells.append(_interval(difference.interval if difference else None, sign=True) + p)
            rows.append(cells)
        sections.append(f'<p class="quiet">Against {clean(evaluation.baseline or "")} (p after Holm):</p>')
        sections.append(_table(["run", *names], rows))
    return sections


def _accounts(report: Report) -> list[str]:
    rows = [[a.split, a.candidates, a.scored, a.failed, a.expired, a.waiting, a.uses_max] for a in report.accounting]
    names = ["split", "candidates", "scored", "failed", "expired", "waiting", "most uses of one"]
    return ["<h2>Where every candidate went</h2>", _table(names, rows)] if rows else []


def _examples(report: Report) -> list[str]:
    rows = [[e.query, ", ".join(e.expansions) or "(none)", f"{e.reward:.3f}", e.found] for e in report.examples]
    names = ["query", "best expansions of the newest version", "reward", "new documents found"]
    return ["<h2>Examples</h2>", _table(names, rows)] if rows else []


def _letters(report: Report) -> list[str]:
    if not report.dead_letters:
        return ["<h2>Dead letters</h2><p>None.</p>"]
    counts = ", ".join(f"{clean(stage)} {count:g}" for stage, count in report.dead_letters.items())
    rows = [[x.stage, f"{x.topic}/{x.partition}@{x.offset}", x.attempts, x.error] for x in report.letters]
    return [f"<h2>Dead letters</h2><p>{counts}</p>", _table(["stage", "record", "attempts", "error"], rows)]


def _partitions(report: Report) -> list[str]:
    rows = [[p.topic, p.partition, p.next_offset, p.records, p.gaps, p.undecodable] for p in report.partitions]
    names = ["topic", "partition", "next offset", "records", "gaps", "undecodable"]
    return ["<h2>The log</h2>", _table(names, rows)] if rows else []


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{clean(name)}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="number">{cell}</td>' if isinstance(cell, int) else f"<td><bdi>{clean(str(cell))}</bdi></td>"
            for cell in row
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _interval(interval: Interval | None, *, sign: bool = False) -> str:
    if interval is None or interval.value is None or interval.low is None or interval.high is None:
        return "–"
    plus = "+" if sign else ""
    return f"{interval.value:{plus}.4f} [{interval.low:{plus}.4f}, {interval.high:{plus}.4f}]"


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # A clock that was far off.
        return f"{milliseconds} ms"
