"""The report's page in a real browser: three widths and both themes, nothing overflows, nothing is fetched."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from storage.monitor.alerts import Alert
from storage.monitor.limits import TimeShares
from storage.reports.page import render_page
from storage.reports.report import DevRow, Report, read_report
from storage.shelf import Shelf
from tests.browser.tabs import Tab, open_browser
from tests.reported import EMPTY, compared, hits, updates, versions
from tests.stored_events import record, reward, small_run
from tests.unit.test_report import run_folder
from tests.unit.test_report_page import hostile_report

WIDTHS = (360, 820, 1440)
LOOKS = [(width, dark) for width in WIDTHS for dark in (False, True)]


def full_report(folder: Path) -> tuple[Report, Shelf]:
    """A report that has everything: a comparison, dev scores, alerts, dead letters, examples with titles and grades."""
    found = read_report(run_folder(folder, [*small_run(16), record(reward(40, step=4), 40)]))
    metrics = [
        {"entropy": 1.5 - n / 80, "kl_behaviour": 0.001 * (1 + math.sin(n)), "grad_norm": 1 + math.cos(n)}
        for n in range(60)
    ]
    seen = {hit.document_id for each in found.comparisons for hit in (*each.raw, *each.helped)}
    query = found.comparisons[0].query_id
    report = msgspec.structs.replace(
        found,
        evaluations={"evaluation": compared(hits("0-3"), hits("0-17"), shown=hits("1-18"))},
        versions=tuple(
            msgspec.structs.replace(row, reward=0.5 + row.step / 200 + math.sin(row.step) / 10, best=0.9)
            for row in versions(60)
        ),
        updates=tuple(
            msgspec.structs.replace(row, metrics=of) for row, of in zip(updates(60, {}), metrics, strict=True)
        ),
        dev=tuple(
            DevRow(lineage="a", step=n, measure="nDCG@10", value=0.3 + n / 900, queries=300) for n in (0, 20, 40)
        ),
        alerts=(Alert(name="no-op collapse", what="60% of the answers change no search (limit 50%)"),),
        dead_letters={"environment": 3.0},
        time=TimeShares(updates=59, seconds=1.2, generation=0.2, search=0.6, learner=0.2, limit="search"),
    )
    titles = {document: f"Wireless headphones {document}, over the ear, noise cancelling" for document in seen}
    return report, Shelf(titles=titles, grades={query: dict.fromkeys(sorted(seen)[:30], 1)})


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with open_browser() as browser:
        yield Tab(browser.new_page())


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages by name: a full one, a hostile one, and one of a run that has only begun."""
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "full": render_page(*full_report(folder / "full")),
        "hostile": render_page(*hostile_report(folder / "hostile")),
        "empty": render_page(EMPTY),
    }
    found = {}
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text)
        found[name] = (folder / f"{name}.html").as_uri()
    return found


@pytest.mark.parametrize("name", ["full", "hostile", "empty"])
@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_the_page_fits_every_width_and_theme_without_a_complaint(
    tab: Tab, addresses: dict[str, str], name: str, width: int, dark: bool, tmp_path: Path
) -> None:
    tab.trouble.clear()
    tab.requests.clear()
    tab.open(addresses[name], width=width, dark=dark)
    tab.value("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert tab.value("document.documentElement.scrollWidth") <= width
    wide = tab.value(
        "[...document.querySelectorAll('body *')].filter(each => !each.closest('.wide, svg, .hidden, .labels') && "
        f"each.getBoundingClientRect().right > {width} + 0.5).map(each => each.outerHTML.slice(0, 120))"
    )
    assert wide == []
    assert tab.violations() == []
    assert tab.trouble == [] and tab.requests == [addresses[name]]
    if folder := os.environ.get("SEARCHLOOP_SCREENSHOTS"):
        tab.picture(Path(folder) / f"report-{name}-{width}-{'dark' if dark else 'light'}.png")


@pytest.mark.parametrize("width", WIDTHS)
def test_charts_have_a_size_and_labels_that_do_not_overlap(tab: Tab, addresses: dict[str, str], width: int) -> None:
    tab.open(addresses["full"], width=width)
    sizes = tab.value(
        "[...document.querySelectorAll('#charts svg.lines')].map(each => each.getBoundingClientRect())"
        ".map(each => [each.width, each.height])"
    )
    assert len(sizes) == 8  # Six charts, two of which have two panels.
    assert all(wide >= 150 and high >= 100 for wide, high in sizes)
    overlaps = tab.value(
        "[...document.querySelectorAll('#charts .labels')].flatMap(column => { const places = [...column.children]"
        ".map(each => each.getBoundingClientRect()).sort((a, b) => a.top - b.top); "
        "return places.slice(1).filter((each, at) => each.top < places[at].bottom - 1).map(each => each.top); })"
    )
    assert overlaps == []
    drawn = tab.value(
        "[...document.querySelectorAll('#charts .line')].map(each => getComputedStyle(each).strokeDasharray)"
    )
    assert "none" in drawn and len(set(drawn)) >= 2


def test_what_is_folded_away_opens_and_the_result_is_seen_first(tab: Tab, addresses: dict[str, str]) -> None:
    tab.open(addresses["full"], width=1440)
    tops = tab.value(
        "['result', 'health', 'charts', 'examples', 'rest'].map(name => "
        "document.getElementById(name).getBoundingClientRect().top)"
    )
    assert tops == sorted(tops) and tops[0] < 200
    folded = tab.value("[...document.querySelectorAll('#rest details')].map(each => each.open)")
    assert len(folded) >= 5 and not any(folded)
    opened = tab.value(
        "[...document.querySelectorAll('#rest details')].map(each => { each.querySelector('summary').click(); "
        "return each.open && each.querySelector('div').getBoundingClientRect().height > 20; })"
    )
    assert opened and all(opened)
    assert tab.value("[...document.querySelectorAll('.example')].filter(each => each.open).length") == 2


def test_links_and_folds_are_reached_by_keyboard_in_the_order_of_the_page(tab: Tab, addresses: dict[str, str]) -> None:
    tab.open(addresses["full"], width=820)
    reached = []
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        reached.append(
            tab.value("[document.activeElement.tagName, document.activeElement.getBoundingClientRect().top + scrollY]")
        )
    assert [tag for tag, _ in reached[:5]] == ["A"] * 5 and "SUMMARY" in {tag for tag, _ in reached}
    places = [top for _, top in reached]
    assert places == sorted(places)


def test_the_theme_is_the_readers(tab: Tab, addresses: dict[str, str]) -> None:
    grounds = []
    for dark in (False, True):
        tab.open(addresses["full"], width=820, dark=dark)
        grounds.append(tab.value("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(16, 20, 24)"]


def test_a_hostile_script_does_not_run(tab: Tab, addresses: dict[str, str]) -> None:
    tab.open(addresses["hostile"], width=820)
    assert tab.value("document.scripts.length + document.images.length + document.forms.length") == 0
    assert "<script>alert(" in tab.value("document.body.innerText")


def test_the_checks_would_notice_what_they_look_for(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        '<!doctype html><html><head><title>bad</title></head><body><main><h1>x</h1><img src="data:,">'
        '<p style="color:#ddd">pale</p></main><script>console.error("oh"); nothing.at.all;</script></body></html>'
    )
    tab.trouble.clear()
    tab.open((tmp_path / "bad.html").as_uri(), width=820)
    found = {line.partition(":")[0] for line in tab.violations()}
    assert {"html-has-lang", "image-alt", "color-contrast"} <= found
    assert len(tab.trouble) >= 2
