"""An experiment as one HTML page: one table per query set, the training curves, and the commands to repeat it."""

from __future__ import annotations

from infra.experiments.tables import ArmRow, Results, SetTable
from storage.charts import Series, line_chart
from storage.pages import clean, html_page, html_table, show_interval


def render_experiment(results: Results) -> str:
    """Return the whole page."""
    sections = [
        "<main>",
        f"<h1>{clean(results.title)}</h1>",
        f'<p class="quiet">index {clean(results.index)}; differences to {clean(results.baseline)}; 95% intervals '
        f"from {results.samples:,} draws over queries, paired; p after Holm over the measures</p>",
    ]
    for each in results.sets:
        sections += _set_sections(each, results)
    sections += ['<h2>Training</h2><div class="charts">', *_charts(results), "</div>"]
    listing = "\n".join(map(clean, results.commands))
    sections.append(f"<h2>Commands to repeat it by hand</h2><pre>{listing}</pre></main>")
    return html_page(results.title, sections)


def _set_sections(each: SetTable, results: Results) -> list[str]:
    compared = results.measures + each.added
    measures = [measure for measure in compared if measure in each.arms[0].measures]
    reached = [[arm.name, *(_reached(arm, measure) for measure in measures)] for arm in each.arms]
    gained = [[arm.name, *(_gained(arm, measure) for measure in compared)] for arm in each.arms if arm.differences]
    return [
        f"<h2>{clean(each.name)}</h2>",
        f'<p class="quiet">{each.queries} queries, {each.without_relevant} of them without a relevant document</p>',
        html_table(["arm", *measures], reached),
        *([f'<p class="quiet">{clean(each.believed.line)}</p>'] if each.believed and each.believed.line else []),
        f'<p class="quiet">Differences to {clean(results.baseline)}</p>',
        html_table(["arm", *compared], gained),
    ]


def _reached(arm: ArmRow, measure: str) -> str:
    seeds = ", ".join(f"{value:.3f}" for value in arm.by_seed[measure].values())
    return show_interval(arm.measures[measure]) + (f" (seeds {seeds})" if len(arm.seeds) > 1 else "")


def _gained(arm: ArmRow, measure: str) -> str:
    difference = arm.differences[measure]
    p = "" if difference.p_holm is None else f", p {difference.p_holm:.4f}"
    return show_interval(difference.interval, sign=True) + p


def _charts(results: Results) -> list[str]:
    return [
        line_chart(
            what[0].upper() + what[1:],
            [Series(name=arm, points=points) for arm, points in curve.items()],
            x_label="turn" if what.endswith("turn") else "update (step)",
            percent=what == "valid",
        )
        for what, curve in results.curves.items()
    ]
