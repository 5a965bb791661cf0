"""The pages in a real browser: charts from a real ledger, live updates, lost connections, hostile text, no way out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from infra.ui.pages import PAGES
from storage.ledger import LEDGER
from storage.sink import Sink
from streams.codec import decode
from streams.events import Event, Reward, Update
from streams.records import Received
from tests.browser.tabs import Tab, open_browser
from tests.reported import compared, hits
from tests.shown_pages import TOKEN, VILE, in_log_order, shown, whole_run, write_run
from tests.stored_events import generation, impression_outcome, policy, reward, update

GROUPS = 120
WIDTHS = (360, 800, 1440)
SCREENSHOTS = "SEARCHLOOP_SCREENSHOTS"  # A folder that keeps what the pages look like.


class Watched(Tab):
    """A tab with pages of one address."""

    def __init__(self, page: Page, address: str) -> None:
        super().__init__(page)
        self.address = address
        page.goto(f"{address}/?token={TOKEN}")

    def show(self, path: str, run: str = "demo") -> Page:
        """Open a page for a run."""
        joined = "&" if "?" in path else "?"
        self.page.goto(f"{self.address}{path}{joined}run={run}")
        return self.page

    @property
    def hosts(self) -> set[str]:
        """The hosts that were asked for anything."""
        return {each.split("/")[2] for each in self.requests}


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
    with open_browser() as found:
        yield found


@pytest.fixture
def watched(browser: Browser, address: str) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = Watched(context.new_page(), address)
    yield found
    context.close()
    assert found.trouble == []
    assert found.hosts == {address.removeprefix("http://")}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_draws_what_the_ledger_holds(path: str, watched: Watched) -> None:
    page = watched.show(path)
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
    paths = [*PAGES, f"/example?group={generation(5).group_id}"]
    for path in paths:
        page = watched.show(path)
        expect(page.locator("#live")).to_have_text("not running")
        expect(page.get_by_text("Asking the ledger")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} is wider than {width}"
        if width == WIDTHS[-1]:
            assert (path, watched.violations()) == (path, [])
        if folder := os.environ.get(SCREENSHOTS):
            name = PAGES[path][0] if path in PAGES else "example"
            watched.picture(Path(folder) / f"{name}-{scheme}-{width}.png")
    context.close()
    assert watched.trouble == []


def test_a_point_leads_to_its_groups_and_a_group_to_its_results_and_back(watched: Watched) -> None:
    page = watched.show("/rewards")
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
    page = watched.show("/examples")
    page.get_by_label("Query, or an id").fill("q3")
    page.get_by_label("Policy version (step)").fill("0")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("table.data tbody tr")).to_have_count(1)
    assert "query=q3" in page.url and "run=demo" in page.url


def test_two_versions_are_compared_query_by_query_and_columns_are_sorted(watched: Watched) -> None:
    page = watched.show("/versions?from=0&to=20&width=5")
    table = page.locator("section", has_text="Queries that two versions both answered").locator("tbody tr")
    expect(table).to_have_count(7)
    change = [float(row.locator("td").nth(3).inner_text()) for row in table.all()]
    assert change == sorted(change, key=lambda value: -abs(value))
    page.get_by_role("button", name="change").first.click()
    assert [float(row.locator("td").nth(3).inner_text()) for row in table.all()] == sorted(change, reverse=True)


def test_sql_is_asked_and_a_wrong_one_is_explained(watched: Watched) -> None:
    page = watched.show("/sql?name=reward_by_version")
    expect(page.locator("table.data tbody tr")).to_have_count(GROUPS // 4)
    for sql, said in (("SELECT 6 * 7 AS answer", "42"), ("DROP TABLE rewards", "expected one SELECT")):
        page.locator("textarea").fill(sql)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("main")).to_contain_text(said)
    # The refused statement is an answer with status 400, which the browser notes by itself.
    watched.trouble = [each for each in watched.trouble if "400 (Bad Request)" not in each]


def test_hostile_text_is_shown_as_text(watched: Watched) -> None:
    for path in ("/", "/examples", f"/example?group={generation(1).group_id}", "/versions", "/sql?name=groups"):
        page = watched.show(path, run="vile")
        expect(page.locator("#live")).to_have_text("not running")
        expect(page.get_by_text("Asking the ledger")).to_have_count(0)
        assert page.locator("main script, main img").count() == 0
    page = watched.show("/examples", run="vile")
    expect(page.locator("table.data tbody a").first).to_contain_text('<script>alert("x")</script>')
    assert "\u202e" not in page.locator("main").inner_text()
    page = watched.show("/examples?query=" + "%3Cscript%3Ealert(1)%3C/script%3E" * 300)
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
        expect(page.locator("main")).to_contain_text("4 updates, 16 rewarded groups")
    expect(page.locator("#live")).to_contain_text("connection lost")
    with Sink(folder / LEDGER) as sink:
        sink.write([each for each in whole_run(24) if each not in records])
    with shown(tmp_path, port=int(port)):
        expect(page.locator("main")).to_contain_text("6 updates, 24 rewarded groups")
        expect(page.locator("#live")).to_have_text("not running")
    context.close()


def test_the_keyboard_reaches_everything(watched: Watched) -> None:
    page = watched.show("/examples")
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


# Five questions that an engineer asks. Each is answered by following links, from the first page on.


def follow(page: Page, *names: str) -> None:
    for name in names:
        page.get_by_role("link", name=name, exact=True).first.click()


def hacked_run(groups: int = GROUPS) -> list[Received]:
    """Return a run whose reward rises with its size alone."""
    events = [decode(each.value) for each in whole_run(groups)]
    found: list[Event] = []
    for event in events:
        if isinstance(event, Reward):
            size = event.generation.policy.step / groups
            outcomes = tuple(
                msgspec.structs.replace(
                    each, reward=0.4 + size + number / 100, components={"relevance": 0.4, "size": size}
                )
                for number, each in enumerate(event.outcomes)
            )
            event = msgspec.structs.replace(event, outcomes=outcomes)
        found.append(event)
    return in_log_order(found)


def test_why_did_the_reward_rise(browser: Browser, tmp_path: Path) -> None:
    write_run(tmp_path, hacked_run())
    with shown(tmp_path) as address:
        watched = Watched(browser.new_context().new_page(), address)
        page = watched.page
        expect(page.locator(".statement", has_text="Is it learning?")).to_contain_text("The training reward rose")
        page.locator(".statement", has_text="Is it learning?").get_by_role("link").click()
        page.wait_for_url("**/rewards?*")
        parts = page.locator("section", has_text="Parts of the reward")
        # The size has risen, and the relevance has not: the reward is hacked.
        expect(parts.get_by_role("img", name="Size: value from 0 to 0.242")).to_be_visible()
        expect(parts).to_contain_text("The same in all of the run: Relevance 0.400")
        chart = page.locator("section", has_text="How rewards are spread").locator(".u-over")
        box = chart.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
        page.wait_for_url(f"**/examples?*step={GROUPS // 4 - 1}*")
        page.locator("table.data tbody a").first.click()
        first = page.locator("section.card").first
        expect(first.locator("tr", has_text="Relevance")).to_contain_text("0.400")
        expect(first.locator("tr", has_text="Size")).to_contain_text("0.242")
        page.locator("summary", has_text="Results beside the raw ones").first.click()
        expect(page.locator(".results").first).to_be_visible()
        page.context.close()
    assert watched.trouble == []


def test_which_queries_lost_most_with_this_version(watched: Watched) -> None:
    means: dict[str, tuple[list[float], list[float]]] = {}
    for number in range(GROUPS):
        step, judged = number // 4, reward(number, step=number // 4)
        side = 0 if step <= 14 else 1 if step >= 16 else None
        if side is not None:
            scores = [each.reward for each in judged.outcomes if each.reward is not None]
            means.setdefault(judged.generation.request.query_id, ([], []))[side].append(sum(scores) / len(scores))
    changes = {query: fmean(after) - fmean(before) for query, (before, after) in means.items()}
    lost, change = min(changes.items(), key=lambda each: each[1])
    page = watched.show("/")
    follow(page, "Versions")
    table = page.locator("section", has_text="Queries that two versions both answered")
    table.get_by_role("button", name="change").click()
    table.get_by_role("button", name="change").click()
    worst = table.locator("tbody tr").first
    assert (worst.locator("td").last.inner_text(), worst.locator("td").nth(3).inner_text()) == (lost, f"{change:.3f}")
    worst.get_by_role("link").click()
    page.wait_for_url(f"**/examples?*query={lost}*")
    rows = page.locator("table.data tbody tr")
    expect(rows).to_have_count(len(range(int(lost[1:]), GROUPS, 7)))
    rows.first.get_by_role("link").click()
    expect(page.locator(".notice")).to_contain_text("It gave a gradient to version")


def test_is_someone_clicking_fraudulently(browser: Browser, tmp_path: Path) -> None:
    seen = [impression_outcome(number) for number in range(40)]
    outcomes = [
        msgspec.structs.replace(
            each,
            impression=msgspec.structs.replace(each.impression, client="fraud" if number < 10 else f"person-{number}"),
            actions=each.actions * (9 if number < 10 else 1),
        )
        for number, each in enumerate(seen)
    ]
    write_run(tmp_path, in_log_order(list(outcomes)), run="live")
    with shown(tmp_path) as address:
        watched = Watched(browser.new_context().new_page(), address)
        follow(watched.page, "Live")
        first = watched.page.locator("section", has_text="Clients with the most clicks").locator("tbody tr").first
        expect(first).to_contain_text("fraud")
        assert float(first.locator("td").last.inner_text()) == 0.75  # 90 of 120 clicks.
        first.get_by_role("link").click()
        searches = watched.page.locator("section", has_text="Newest searches").locator("tbody tr")
        expect(searches).to_have_count(10)
        assert {row.locator("td").nth(7).inner_text() for row in searches.all()} == {"fraud"}
        watched.page.context.close()
    assert watched.trouble == []


def test_why_did_this_group_give_no_gradient(browser: Browser, tmp_path: Path) -> None:
    records = whole_run(8)
    flat = reward(2)
    same = tuple(msgspec.structs.replace(each, reward=0.5) for each in flat.outcomes)
    first = update(1, [0, 1, 3], parent=policy(0))
    changed = {
        flat.group_id: msgspec.structs.replace(flat, outcomes=same),
        1: msgspec.structs.replace(first, flat=(flat.group_id,)),
    }
    events = [decode(each.value) for each in records]
    events = [changed.get(event.group_id, event) if isinstance(event, Reward) else event for event in events]
    events = [changed.get(event.policy.step, event) if isinstance(event, Update) else event for event in events]
    write_run(tmp_path, in_log_order(events))
    with shown(tmp_path) as address:
        page = browser.new_context().new_page()
        page.goto(f"{address}/?token={TOKEN}")
        page.locator(".statement", has_text="Can it learn?").get_by_role("link").click()
        rows = page.locator("table.data tbody tr")
        expect(rows).to_have_count(1)
        rows.get_by_role("link").click()
        expect(page.locator(".notice")).to_contain_text("It gave no gradient: all its rewards are equal")
        page.context.close()


def test_which_weights_answered_this_request(watched: Watched) -> None:
    page = watched.show("/")
    follow(page, "Examples")
    page.get_by_label("Query, or an id").fill("request-6")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("table.data tbody tr")).to_have_count(1)
    page.locator("table.data tbody a").click()
    expect(page.locator("main")).to_contain_text(policy(1).sha256)
    # Each stage leads to its record, which is shown at once.
    page.get_by_role("link", name="rewards[0]@6").click()
    page.wait_for_url("**/sql?*")
    expect(page.locator("main")).to_contain_text("1 rows in")
    expect(page.locator("table.data tbody")).to_contain_text(policy(1).sha256)


def test_an_alert_leads_to_its_rows_and_a_sentence_shows_its_commands(browser: Browser, tmp_path: Path) -> None:
    flat = [reward(number, step=number // 4) for number in range(40)]
    empty = [
        msgspec.structs.replace(
            each, outcomes=tuple(msgspec.structs.replace(one, expansions=()) for one in each.outcomes)
        )
        for each in flat
    ]
    write_run(tmp_path, in_log_order(list(empty)))
    with shown(tmp_path) as address:
        watched = Watched(browser.new_context().new_page(), address)
        page = watched.page
        expect(page.locator("code", has_text="searchloop verify")).to_be_visible()
        assert "`" not in page.locator("main").inner_text()
        page.locator(".notice", has_text="no-op collapse").get_by_role("link", name="The rows behind it").click()
        page.wait_for_url("**/sql?*")
        expect(page.locator("table.data tbody tr").first).to_be_visible()
        page.context.close()
    assert watched.trouble == []


def test_a_part_of_a_stack_says_its_own_value(browser: Browser, tmp_path: Path) -> None:
    records = [decode(each.value) for each in whole_run(24)]
    made = {
        each.policy.step: msgspec.structs.replace(each, trained=each.trained[1:], flat=each.trained[:1])
        for each in records
        if isinstance(each, Update)
    }
    write_run(
        tmp_path, in_log_order([made[each.policy.step] if isinstance(each, Update) else each for each in records])
    )
    with shown(tmp_path) as address:
        watched = Watched(browser.new_context().new_page(), address)
        page = watched.show("/learning")
        fates = page.locator("section", has_text="Groups by fate")
        expect(fates.locator(".u-legend tr", has_text="trained").locator(".u-value")).to_have_text("3")
        expect(fates.locator(".u-legend tr", has_text="flat").locator(".u-value")).to_have_text("1")
        expect(fates.get_by_role("img")).to_have_attribute("aria-label", re.compile("trained from 3 to 3"))
        page.context.close()
    assert watched.trouble == []


def test_a_held_out_query_that_lost_leads_to_search(browser: Browser, tmp_path: Path) -> None:
    folder = write_run(tmp_path, whole_run(4))
    (folder / "evaluation.json").write_bytes(msgspec.json.encode(compared(hits("0-3"), hits("1-17"))))
    with shown(tmp_path) as address:
        watched = Watched(browser.new_context().new_page(), address)
        page = watched.page
        statement = page.locator(".statement", has_text="Is it learning?")
        expect(statement).to_contain_text("By held-out queries: search got better: +0.650")
        statement.get_by_role("link").click()
        card = page.locator("section", has_text="Held-out queries, one by one")
        expect(card).to_contain_text("14 queries better, 1 worse, 5 the same")
        expect(page.locator("section", has_text="Queries that two versions")).to_contain_text(
            "No query has groups on both"
        )
        for _ in range(2):
            card.get_by_role("button", name="change").click()
        expect(card.locator("tbody tr").first.locator("td").nth(3)).to_have_text("-1")
        card.locator("tbody tr").first.get_by_role("link").click()
        page.wait_for_url("**/search?*")
        expect(page.get_by_label("Query")).to_have_value("q0")
        page.context.close()
    assert watched.trouble == []
