"""The pages in a real browser: charts from a real ledger, live updates, lost connections, hostile text, no way out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from infra.ui.pages import PAGES
from storage.ledger import LEDGER
from storage.sink import Sink
from tests.browser.test_snippet import chromium
from tests.shown_pages import TOKEN, VILE, shown, whole_run, write_run
from tests.stored_events import generation

GROUPS = 120
WIDTHS = (360, 800, 1440)
SCREENSHOTS = "SEARCHLOOP_SCREENSHOTS"  # A folder that keeps what the pages look like.


class Watched:
    """A page, with everything that it asked for and complained of."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", self._asked)

    def open(self, path: str, run: str = "demo") -> Page:
        joined = "&" if "?" in path else "?"
        self.page.goto(f"{self.address}{path}{joined}run={run}")
        return self.page

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")

    def _asked(self, request: Request) -> None:
        self.hosts.add(request.url.split("/")[2])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("home")
    write_run(found, whole_run(GROUPS))
    write_run(found, whole_run(8, query=VILE), run="vile")
    return found


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    with shown(home) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def watched(browser: Browser, address: str) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = Watched(context.new_page(), address)
    found.page.goto(f"{address}/?token={TOKEN}")
    yield found
    context.close()
    assert found.complaints == []
    assert found.hosts == {address.removeprefix("http://")}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_draws_what_the_ledger_holds(path: str, watched: Watched) -> None:
    page = watched.open(path)
    expect(page.locator("h1")).to_have_text(PAGES[path][1])
    expect(page.locator("#live")).to_have_text("not running")
    if path in ("/", "/rewards", "/learning"):
        expect(page.locator("canvas").first).to_be_visible()
        # A chart has ink: its canvas is not of one colour.
        colours = page.evaluate(
            """() => new Set(document.querySelector("canvas").getContext("2d")
               .getImageData(0, 0, 300, 150).data.filter((_, at) => at % 4 === 3)).size"""
        )
        assert colours > 1
    assert page.locator(".notice.bad").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_each_width_in_both_themes_and_break_no_rule_of_accessibility(
    width: int, scheme: str, browser: Browser, address: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    watched = Watched(context.new_page(), address)
    watched.page.goto(f"{address}/?token={TOKEN}")
    paths = [*PAGES, f"/example?group={generation(5).group_id}"]
    for path in paths:
        page = watched.open(path)
        expect(page.locator("#live")).to_have_text("not running")
        expect(page.get_by_text("Asking the ledger")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} is wider than {width}"
        found = Axe().run(page).response["violations"] if width == WIDTHS[-1] else []
        assert [(path, each["id"], [node["target"] for node in each["nodes"]][:3]) for each in found] == []
        if folder := os.environ.get(SCREENSHOTS):
            name = PAGES[path][0] if path in PAGES else "example"
            page.screenshot(path=Path(folder) / f"{name}-{scheme}-{width}.png", full_page=True)
    context.close()
    assert watched.complaints == []


def test_a_point_leads_to_its_groups_and_a_group_to_its_results_and_back(watched: Watched) -> None:
    page = watched.open("/rewards")
    chart = page.locator("section", has_text="Spread within a group").locator(".u-over")
    expect(chart).to_be_visible()
    box = chart.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_url("**/examples?*")
    step = int(page.url.partition("step=")[2].partition("&")[0])
    assert 0 < step < GROUPS // 4
    links = page.locator("table.data tbody a")
    expect(links).to_have_count(4)
    links.first.click()
    page.wait_for_url("**/example?*")
    expect(page.locator(".stages li")).to_have_count(4)
    expect(page.locator(".notice")).to_have_text(f"It gave a gradient to version {step + 1}.")
    expect(page.locator("section.card")).to_have_count(8)
    page.locator("summary", has_text="Results beside the raw ones").first.click()
    expect(page.locator(".results").first).to_be_visible()
    assert page.locator(".move.gained").count() > 0
    page.get_by_role("link", name="All groups of this version").click()
    expect(page.locator("table.data tbody a")).to_have_count(4)


def test_filters_choose_groups_by_query_and_version(watched: Watched) -> None:
    page = watched.open("/examples")
    page.get_by_label("Query, or its id").fill("q3")
    page.get_by_label("Policy version (step)").fill("0")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("table.data tbody tr")).to_have_count(1)
    assert "query=q3" in page.url and "run=demo" in page.url


def test_two_versions_are_compared_query_by_query_and_columns_are_sorted(watched: Watched) -> None:
    page = watched.open("/versions?from=0&to=20&width=5")
    table = page.locator("section", has_text="Queries that two versions both answered").locator("tbody tr")
    expect(table).to_have_count(7)
    change = [float(row.locator("td").nth(3).inner_text()) for row in table.all()]
    assert change == sorted(change, key=lambda value: -abs(value))
    page.get_by_role("button", name="change").first.click()
    assert [float(row.locator("td").nth(3).inner_text()) for row in table.all()] == sorted(change, reverse=True)


def test_sql_is_asked_and_a_wrong_one_is_explained(watched: Watched) -> None:
    page = watched.open("/sql?name=reward_by_version")
    expect(page.locator("table.data tbody tr")).to_have_count(GROUPS // 4)
    for sql, said in (("SELECT 6 * 7 AS answer", "42"), ("DROP TABLE rewards", "expected one SELECT")):
        page.locator("textarea").fill(sql)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("main")).to_contain_text(said)
    # The refused statement is an answer with status 400, which the browser notes by itself.
    watched.complaints = [each for each in watched.complaints if "400 (Bad Request)" not in each]


def test_hostile_text_is_shown_as_text(watched: Watched) -> None:
    for path in ("/", "/examples", f"/example?group={generation(1).group_id}", "/versions", "/sql?name=groups"):
        page = watched.open(path, run="vile")
        expect(page.locator("#live")).to_have_text("not running")
        expect(page.get_by_text("Asking the ledger")).to_have_count(0)
        assert page.locator("main script, main img").count() == 0
    page = watched.open("/examples", run="vile")
    expect(page.locator("table.data tbody a").first).to_contain_text('<script>alert("x")</script>')
    assert "\u202e" not in page.locator("main").inner_text()
    page = watched.open("/examples?query=" + "%3Cscript%3Ealert(1)%3C/script%3E" * 300)
    expect(page.locator("main")).to_contain_text("No rows.")


def test_a_wrong_token_is_explained_and_shows_nothing(browser: Browser, address: str) -> None:
    page = browser.new_context().new_page()
    page.goto(f"{address}/?token=wrong")
    assert "open the address" in page.locator("body").inner_text().lower()
    page.context.close()


def test_an_empty_installation_says_how_to_begin(browser: Browser, tmp_path: Path) -> None:
    with shown(tmp_path) as empty:
        page = browser.new_context().new_page()
        page.goto(f"{empty}/?token={TOKEN}")
        expect(page.locator("main")).to_contain_text("searchloop demo")
        page.context.close()


def test_new_records_appear_and_a_lost_connection_comes_back(browser: Browser, tmp_path: Path) -> None:
    folder = write_run(tmp_path, whole_run(8))
    records = whole_run(16)
    port = None
    context = browser.new_context()
    page = context.new_page()
    with shown(tmp_path) as first:
        port = first.rpartition(":")[2]
        page.goto(f"{first}/?token={TOKEN}")
        expect(page.locator("main")).to_contain_text("2 updates, 8 rewarded groups")
        with Sink(folder / LEDGER) as sink:
            sink.write([each for each in records if each not in whole_run(8)])
        expect(page.locator("main")).to_contain_text("4 updates, 16 rewarded groups", timeout=20_000)
    expect(page.locator("#live")).to_contain_text("connection lost", timeout=20_000)
    with Sink(folder / LEDGER) as sink:
        sink.write([each for each in whole_run(24) if each not in records])
    with shown(tmp_path, port=int(port)):
        expect(page.locator("main")).to_contain_text("6 updates, 24 rewarded groups", timeout=30_000)
        expect(page.locator("#live")).to_have_text("not running")
    context.close()


def test_the_keyboard_reaches_everything(watched: Watched) -> None:
    page = watched.open("/examples")
    expect(page.locator("table.data tbody a").first).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"INPUT", "SELECT", "BUTTON", "A"} <= reached
