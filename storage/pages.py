"""The parts of every HTML page: one file, no requests, no scripts, every text escaped.

Queries, expansions and errors come from outside. They are escaped, freed of control and direction characters, and
placed in <bdi>. In addition, a content policy in the page forbids scripts and all requests.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

from storage.evaluation.comparison import Interval

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


def html_page(title: str, sections: Iterable[str]) -> str:
    """Return the whole page; empty sections are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{clean(title)} – searchloop</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(part for part in sections if part)
        + "\n</body></html>\n"
    )


def clean(text: str) -> str:
    """Return text from outside as safe HTML, without control, direction and private characters."""
    return escape("".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") else " " for c in text))


def html_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; whole numbers are right-aligned."""
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


def show_interval(interval: Interval | None, *, sign: bool = False) -> str:
    """Return an interval as text: `.5000 [.4000, .6000]`, a dash if it is undefined."""
    if interval is None or interval.value is None or interval.low is None or interval.high is None:
        return "–"
    plus = "+" if sign else ""
    return f"{interval.value:{plus}.4f} [{interval.low:{plus}.4f}, {interval.high:{plus}.4f}]"
