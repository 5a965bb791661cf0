"""The blocks of a report's page: the result with its bars, the row of health, and the examples side by side."""

from __future__ import annotations

from collections.abc import Sequence

from storage.evaluation.comparison import Interval
from storage.evaluation.tables import Evaluation, RunTable
from storage.pages import clean, shortened, show_interval
from storage.reports.examples import ComparedAnswer, PlacedHit
from storage.reports.report import Report
from storage.reports.result import ResultLines
from storage.shelf import Shelf

QUERY_CHARACTERS = 300
TEXT_CHARACTERS = 1000
TITLE_CHARACTERS = 160
WORDS_MAX = 40
BAR_WIDTH = 200
MARKS = {"better": "▲", "worse": "▼", "unclear": "◆", "unmeasured": "◇"}
KINDS = {"highest": "Highest reward", "middle": "Middle reward", "lowest": "Lowest reward"}
LIMITS = {"generation": "the generator", "search": "the search environment", "learner": "the learner"}


def result_block(result: ResultLines, report: Report) -> str:
    """Return the first block: what was compared, what changed, how sure that is, and what to do next."""
    parts = [f"<p><bdi>{clean(line)}</bdi></p>" for line in result.lines]
    evaluation = report.evaluations.get(result.name)
    if evaluation is not None:
        parts.append(_bars(evaluation, result))
    following = f"<p><b>Next.</b> {clean(result.following)}</p>"
    if result.commands:
        following += f"<pre>{clean_lines(result.commands)}</pre>"
    return (
        f'<section id="result" class="result {result.outcome}" aria-labelledby="result-title">'
        f'<h2 id="result-title"><span class="mark" aria-hidden="true">{MARKS[result.outcome]}</span> '
        f'{clean(result.headline)}</h2>{"".join(parts)}<div class="next">{following}</div></section>'
    )


def clean_lines(lines: Sequence[str]) -> str:
    """Return lines of text from outside as safe HTML that keeps them apart."""
    return "\n".join(map(clean, lines))


def _bars(evaluation: Evaluation, result: ResultLines) -> str:
    """Return the rows of an evaluation as a table with a bar for each interval, on one scale."""
    rows = [(run, run.measures[result.measure]) for run in evaluation.runs if result.measure in run.measures]
    edges = [edge for _, each in rows for edge in (each.low, each.high, each.value) if edge is not None]
    if not edges:
        return ""
    low, high = min(edges), max(edges)
    margin = (high - low) * 0.06 or 0.5
    base = next((each.value for run, each in rows if run.name == result.baseline), None)
    lines = "".join(_bar_row(run, each, result, low=low - margin, high=high + margin, base=base) for run, each in rows)
    return (
        '<div class="wide bars" role="group" tabindex="0" aria-label="Rows that were compared"><table><thead><tr>'
        f'<th scope="col">Row</th><th scope="col"><span class="hidden">Interval as a bar</span></th>'
        f'<th scope="col">{clean(result.measure)} [interval]</th>'
        f'<th scope="col">Difference to {clean(result.baseline)} [interval]</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _bar_row(run: RunTable, each: Interval, result: ResultLines, *, low: float, high: float, base: float | None) -> str:
    def across(value: float) -> str:
        return f"{(value - low) / (high - low) * BAR_WIDTH:.1f}"

    drawn = "" if base is None else f'<line class="zero" x1="{across(base)}" x2="{across(base)}" y1="0" y2="18"/>'
    if each.low is not None and each.high is not None and each.value is not None:
        drawn += (
            f'<line x1="{across(each.low)}" x2="{across(each.high)}" y1="9" y2="9"/>'
            f'<path d="M{across(each.value)} 9h.01"/>'
        )
    difference = run.differences.get(result.measure)
    said = show_interval(difference.interval, sign=True) if difference else "–"
    picked = ' class="picked"' if run.name == result.row else ""
    return (
        f'<tr{picked}><th scope="row"><bdi>{clean(run.name)}</bdi></th><td><svg class="bar" aria-hidden="true" '
        f'viewBox="0 0 {BAR_WIDTH} 18" preserveAspectRatio="none">{drawn}</svg></td>'
        f"<td>{_ranged(show_interval(each))}</td><td>{_ranged(said)}</td></tr>"
    )


def _ranged(text: str) -> str:
    """Return an interval's text as HTML that breaks, if at all, before its range."""
    value, _, span = text.partition(" ")
    return f"{clean(value)} <span>{clean(span)}</span>" if span else clean(value)


def health_block(report: Report) -> str:
    """Return the row of health: one tile for each question, with a word on whether to look closer."""
    letters = sum(report.dead_letters.values())
    gaps = sum(row.gaps for row in report.partitions)
    fates = {
        name: sum(getattr(row, name) for row in report.accounting)
        for name in ("candidates", "scored", "failed", "expired", "waiting")
    }
    uses = max((row.uses_max for row in report.accounting), default=0)
    lag = report.lag
    tiles = [
        _tile("Alerts", f"{len(report.alerts)}", not report.alerts, "rules broken when the log ended"),
        _tile("Dead letters", f"{letters:g}", letters == 0, "records that a worker gave up on"),
        _tile(
            "Accounting residual",
            f"{report.residual}",
            report.residual == 0 and uses <= 1,
            f"of {fates['candidates']:,} candidates; each taught at most {'once' if uses <= 1 else f'{uses} times'}",
        ),
        _tile("Gaps in the log", f"{gaps}", gaps == 0, "offsets without a record"),
        _tile("Failed", f"{fates['failed']:,}", fates["failed"] == 0, "candidates that could not be scored"),
        _tile("Expired", f"{fates['expired']:,}", fates["expired"] == 0, "candidates too old to learn from"),
        _tile("Waiting", f"{fates['waiting']:,}", True, "candidates not rewarded yet"),
        _tile(
            "Staleness, p95",
            f"{lag['p95']:g}" if "p95" in lag else "–",
            True if "p95" in lag else None,
            f"versions; largest {lag['max']:g}" if "max" in lag else "no update yet",
        ),
    ]
    alerts = "".join(f"<li><b>{clean(each.name)}</b>: {clean(each.what)}</li>" for each in report.alerts)
    listed = f'<ul class="alerts">{alerts}</ul>' if alerts else ""
    return (
        '<section id="health" aria-labelledby="health-title"><h2 id="health-title">Is it healthy?</h2>'
        f'<ul class="health">{"".join(tiles)}</ul>{listed}{_limit(report)}</section>'
    )


def _tile(name: str, value: str, fine: bool | None, note: str) -> str:
    state = {True: "fine", False: "look closer", None: "not known"}[fine]
    kind = ' class="look"' if fine is False else ""
    return (
        f'<li{kind}><span>{clean(name)}</span><b>{clean(value)}</b><span class="state">{state}</span>'
        f"<span>{clean(note)}</span></li>"
    )


def _limit(report: Report) -> str:
    time = report.time
    if time is None:
        return '<p class="quiet">What limits the loop: not known, because too few updates were made.</p>'
    shares = (
        f"Of the time between updates (median {time.seconds:.2g} s), {time.generation:.0%} passed until the last text "
        f"was written, {time.search:.0%} until it was rewarded, and {time.learner:.0%} until the update was made."
    )
    verdict = f"What limits the loop: {LIMITS[time.limit]}." if time.limit else "No stage alone limits the loop."
    return f"<p><b>{verdict}</b> {shares}</p>"


def example_blocks(report: Report, shelf: Shelf) -> str:
    """Return the examples, the first and the last of them open; nothing if there are none."""
    if not report.comparisons:
        return ""
    newest = report.comparisons[0]
    last = len(report.comparisons) - 1
    blocks = [_example(each, shelf, opened=at in (0, last)) for at, each in enumerate(report.comparisons)]
    note = f'<p class="quiet">{clean(shelf.note)}</p>' if shelf.note else ""
    searched = any(each.raw or each.helped for each in report.comparisons)
    title = "What the policy does to results" if searched else "What the policy writes"
    return (
        f'<section id="examples" aria-labelledby="examples-title"><h2 id="examples-title">{title}</h2>'
        f"<p>Answers of version {newest.step} in training, where it samples. They are picked by reward: the highest, "
        f"the middle and the lowest of all valid answers.</p>{note}{''.join(blocks)}</section>"
    )


def _example(each: ComparedAnswer, shelf: Shelf, *, opened: bool) -> str:
    low, mean, high = each.group
    asked = each.query or shelf.titles.get(each.product_id) or each.product_id or "(no query)"
    summary = (
        f"<summary>{KINDS[each.kind]} <b>{each.reward:.3f}</b>: "
        f"<b><bdi>{clean(shortened(asked, QUERY_CHARACTERS))}</bdi></b></summary>"
    )
    parts = [
        f'<p class="quiet">Rewards in its group: {low:.3f} to {high:.3f}, mean {mean:.3f}. Group '
        f"<code>{clean(each.group_id)}</code>, candidate {each.candidate}.</p>"
    ]
    if each.expansions:
        words = "".join(f"<li><bdi>{clean(shortened(word, 80))}</bdi></li>" for word in each.expansions[:WORDS_MAX])
        more = f"<li>and {len(each.expansions) - WORDS_MAX} more</li>" if len(each.expansions) > WORDS_MAX else ""
        parts.append(f'<p>The policy added:</p><ul class="words">{words}{more}</ul>')
    else:
        text = clean(shortened(each.summary or each.text, TEXT_CHARACTERS)) or "(nothing)"
        parts.append(f"<p>The policy wrote:</p><pre><bdi>{text}</bdi></pre>")
    if not each.valid:
        parts.append(f'<p class="warn">The answer is not valid: {clean(each.error or "no reason was kept")}.</p>')
        parts.append('<p class="quiet">Nothing was searched with it: people would see the results of the query.</p>')
    elif each.raw or each.helped:
        parts.append(_sides(each, shelf))
    return f'<details class="example"{" open" if opened else ""}>{summary}<div>{"".join(parts)}</div></details>'


def _sides(each: ComparedAnswer, shelf: Shelf) -> str:
    grades = shelf.grades.get(each.query_id, {})
    said = f"{each.gained} new, {each.lost} lost among the first {max(len(each.raw), len(each.helped))}"
    if grades:
        had, has = (sum(grades.get(hit.document_id, 0) > 0 for hit in side) for side in (each.raw, each.helped))
        said += f"; relevant ones: {had} before, {has} after"
    before, after = _hits(each.raw, shelf, grades, after=False), _hits(each.helped, shelf, grades, after=True)
    return (
        f'<p>{said}.</p><div class="sides"><div><h3>The query alone</h3>{before}</div>'
        f"<div><h3>With the added text</h3>{after}</div></div>"
    )


def _hits(hits: Sequence[PlacedHit], shelf: Shelf, grades: dict[str, int], *, after: bool) -> str:
    if not hits:
        return '<p class="quiet">Nothing was found.</p>'
    return f'<ol class="hits">{"".join(_hit(hit, shelf, grades, after=after) for hit in hits)}</ol>'


def _hit(hit: PlacedHit, shelf: Shelf, grades: dict[str, int], *, after: bool) -> str:
    kind, move = moved(hit, after=after)
    title = shelf.titles.get(hit.document_id)
    named = f"<bdi>{clean(shortened(title, TITLE_CHARACTERS))}</bdi> " if title else ""
    identifier = clean(shortened(hit.document_id, 60))
    named += f'<span class="quiet"><bdi>{identifier}</bdi></span>' if title else f"<bdi>{identifier}</bdi>"
    grade = ""
    if hit.document_id in grades:
        value = grades[hit.document_id]
        grade = f' <span class="grade{"" if value > 0 else " none"}">grade {value}</span>'
    return (
        f'<li class="{kind}"><span class="rank">{hit.rank}.</span><span class="move">{move}</span>'
        f'<span class="document">{named}{grade}</span></li>'
    )


def moved(hit: PlacedHit, *, after: bool) -> tuple[str, str]:
    """Return what happened to a document, as a kind and in words with a sign.

    after: True for a list of the helped search, False for the raw one.
    """
    if hit.other_rank is None:
        return ("new", "+ new") if after else ("lost", "× lost")
    before, now = (hit.other_rank, hit.rank) if after else (hit.rank, hit.other_rank)
    if before == now:
        return "same", "= same"
    if after:
        return ("up", f"▲ from {before}") if now < before else ("down", f"▼ from {before}")
    return ("rise", f"▲ to {now}") if now < before else ("down", f"▼ to {now}")
