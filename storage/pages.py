"""The parts of every HTML page: one file, no requests, no scripts, every text escaped.

Queries, expansions and errors come from outside. They are escaped, freed of control and direction characters, and
placed in <bdi>. In addition, a content policy in the page forbids scripts and all requests.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from storage.evaluation.comparison import Interval

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html_page(title: str, sections: Iterable[str]) -> str:
    """Return the whole page; empty sections are left out."""
    style = resources.files("storage").joinpath("pages.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{clean(title)} – searchloop</title><style>{style}</style></head><body>\n"
        + "\n".join(part for part in sections if part)
        + "\n</body></html>\n"
    )


def clean(text: str) -> str:
    """Return text from outside as safe HTML, without control, direction and private characters."""
    return escape("".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") else " " for c in text))


def shortened(text: str, characters: int) -> str:
    """Return the beginning of a text that is longer than so many characters, and say how long it is."""
    return text if len(text) <= characters else f"{text[:characters]}… ({len(text):,} characters)"


def html_table(names: Sequence[str], rows: Iterable[Sequence[object]], *, about: str = "table") -> str:
    """Return a table; whole numbers are right-aligned. about: its name for a screen reader."""
    head = "".join(f'<th scope="col">{clean(name)}</th>' for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="number">{cell}</td>' if isinstance(cell, int) else f"<td><bdi>{clean(str(cell))}</bdi></td>"
            for cell in row
        )
        + "</tr>"
        for row in rows
    )
    # A table that scrolls must be reachable by keyboard.
    return (
        f'<div class="wide" role="group" tabindex="0" aria-label="{clean(about)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def folded(title: str, content: Iterable[str], *, note: str = "") -> str:
    """Return content that is shown on demand; nothing if there is none."""
    parts = [part for part in content if part]
    if not parts:
        return ""
    said = f' <span class="quiet">{clean(note)}</span>' if note else ""
    return f'<details class="fold"><summary>{clean(title)}{said}</summary><div>{"".join(parts)}</div></details>'


def show_interval(interval: Interval | None, *, sign: bool = False) -> str:
    """Return an interval as text: `.5000 [.4000, .6000]`, a dash if it is undefined."""
    if interval is None or interval.value is None or interval.low is None or interval.high is None:
        return "–"
    plus = "+" if sign else ""
    return f"{interval.value:{plus}.4f} [{interval.low:{plus}.4f}, {interval.high:{plus}.4f}]"
