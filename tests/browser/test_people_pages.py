"""Judging, a ramp and live versions in a real browser: nothing is lost or repeated, and everything is seen."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from streams.events import Event
from streams.traffic_events import ImpressionOutcome, UserAction
from tests.browser.tabs import Tab, open_browser
from tests.browser.test_pages import SCREENSHOTS, WIDTHS
from tests.fake_shop import VERSION, FakeShop, fake_shop
from tests.shown_pages import TOKEN, VILE, in_log_order, shown, write_run
from tests.stored_events import RUN, decision, impression

SEARCHES = 3_000
HOURS = 60
HOUR_MS = 3_600_000


def lively(searches: int = SEARCHES) -> list[Event]:
    """People's searches over some days, a version on its ramp, interleaved lists, and one hostile query."""
    chance = random.Random(1)
    began = 1_700_000_000_000 // HOUR_MS * HOUR_MS
    # The last stage begins before the last third of the searches.
    last_stage = began + HOURS * HOUR_MS * 2 // 3
    events: list[Event] = []
    for at, (kind, share) in ((began, ("start", 0.01)), (began + 1, ("advance", 0.1)), (last_stage, ("advance", 0.25))):
        reason = "a loss of 5.00% of 0.401 is ruled out: +0.052 [+0.002, +0.102] a search"
        made = msgspec.structs.replace(decision(at), kind=kind, share=share, at_ms=at, reason=reason)
        events.append(made)
    for number in range(searches):
        policy = VERSION if chance.random() < 0.25 else ""
        at_ms = began + 1 + number * HOURS * HOUR_MS // searches
        share = 0.25 if at_ms > last_stage else 0.1
        query = VILE if number == 7 else f"lamp {number % 60}"
        shown_there = msgspec.structs.replace(
            impression(number),
            client=f"c{number // 2}",
            at_ms=at_ms,
            query=query,
            policy=policy,
            action_propensity=share if policy else 1 - share,
            offered={"": 1 - share, VERSION: share},
        )
        if number % 9 == 0:
            shown_there = msgspec.structs.replace(
                shown_there, teams=(VERSION, ""), policy="", action_propensity=None, offered={}
            )
        clicked = chance.random() < (0.45 if policy else 0.36)
        document = "d1" if chance.random() < 0.6 else "d2"
        action = UserAction(
            action_id=f"a{number}",
            impression_id=f"i{number}",
            kind="click",
            document_id=document,
            at_ms=at_ms + 5_000,
        )
        bot = "too_fast" if number % 40 == 0 else msgspec.UNSET
        outcome = ImpressionOutcome(impression=shown_there, actions=(action,) if clicked else (), final=True, bot=bot)
        events += [shown_there, *([action] if clicked else []), outcome]
    return events


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("home")
    write_run(found, in_log_order(lively()), run=RUN)
    return found


@pytest.fixture(scope="module")
def shop() -> Iterator[FakeShop]:
    with fake_shop() as found:
        yield found


@pytest.fixture(scope="module")
def address(home: Path, shop: FakeShop) -> Iterator[str]:
    with shown(home, variables={"SEARCHLOOP_UI__SERVER": shop.address}) as found:
        yield found


def opened(browser: Browser, address: str, **given: Any) -> Tab:
    tab = Tab(browser.new_context(**given).new_page())
    tab.page.goto(f"{address}/?token={TOKEN}")
    return tab


def judged(page: Page) -> tuple[str, str]:
    """Return the query that is to be judged, and the first result on the left."""
    card = page.locator("section", has_text="Which results are better?")
    expect(card.get_by_role("button", name="Left is better")).to_be_visible()
    return card.locator("p b").inner_text(), card.locator("ol.hits li").first.inner_text()


def test_a_choice_survives_a_reload_and_a_lost_server_and_is_made_once(
    browser: Browser, address: str, shop: FakeShop, home: Path
) -> None:
    tab = opened(browser, address)
    page = tab.page
    page.goto(f"{address}/versions?run={RUN}")
    page.get_by_role("button", name="Begin").click(timeout=60_000)
    seen = []
    for side in ("Left is better", "Both alike", "Right is better"):
        before = judged(page)
        page.reload()
        assert judged(page) == before, "a reload shows another pair, or other sides"
        seen.append(before[0])
        page.get_by_role("button", name=side).click()
        expect(page.locator("section", has_text="Which results are better?").locator("p b")).not_to_have_text(before[0])
    assert len(set(seen)) == 3
    assert len(shop.events) == 9
    # The server is away: the choice is kept, and comes once when it is back.
    shop.broken = True
    query, _ = judged(page)
    page.get_by_role("button", name="Left is better").click()
    expect(page.locator("main")).to_contain_text("Your choice is kept in this browser")
    page.reload()
    expect(page.locator("main")).to_contain_text("Your choice is kept in this browser")
    assert len(shop.events) == 9
    shop.broken = False
    page.reload()
    judged(page)
    expect(page.locator("main")).not_to_contain_text("Your choice is kept in this browser")
    page.reload()
    judged(page)
    assert len(shop.events) == 12
    ids = [each.action_id for each in shop.events if isinstance(each, UserAction)]
    queries = [each.query for each in shop.events if not isinstance(each, UserAction)]
    assert len(set(ids)) == 4 and queries[-1] == query
    # The log has them now, and the page counts what it holds.
    write_run(home, in_log_order([*lively(), *shop.logged()]), run=RUN)
    page.reload()
    expect(page.locator("main")).to_contain_text("of 4 judgments prefer")
    counts = page.locator("section", has_text="Which results are better?").locator(".whisker")
    expect(counts).to_have_count(1)
    expect(counts).to_be_hidden()  # What was counted just now would tell on which side the version was.
    page.locator("summary", has_text="Judgments so far").click()
    expect(counts).to_be_visible()
    page.context.close()
    # The refused events are answers with status 502, which the browser notes by itself.
    assert [each for each in tab.trouble if "502" not in each] == []


def test_the_keyboard_alone_judges(browser: Browser, address: str) -> None:
    page = opened(browser, address).page
    page.goto(f"{address}/versions?run={RUN}")
    page.get_by_role("button", name="Begin").press("Enter", timeout=60_000)
    first, _ = judged(page)
    page.get_by_role("button", name="Both alike").press("Enter")
    expect(page.locator("section", has_text="Which results are better?").locator("p b")).not_to_have_text(first)
    assert page.evaluate("document.activeElement.textContent") == "Left is better"
    page.context.close()


def test_a_ramp_is_told_in_a_sentence_with_its_stage_and_interval(browser: Browser, address: str) -> None:
    page = opened(browser, address).page
    page.goto(f"{address}/versions?run={RUN}")
    card = page.locator("section", has_text="Way to people")
    expect(card).to_contain_text(f"{VERSION} is on its ramp")
    expect(card).to_contain_text("4 of 6")
    expect(card.locator("li[aria-current=step]")).to_have_text("25 %")
    expect(card).to_contain_text("Reason: a loss of 5.00% of 0.401 is ruled out")
    page.context.close()


def test_live_versions_have_intervals_comparisons_and_drift(browser: Browser, address: str) -> None:
    page = opened(browser, address).page
    page.goto(f"{address}/live?run={RUN}")
    card = page.locator("section", has_text="Versions in front of people").first
    expect(card.locator(".whisker")).to_have_count(2)
    expect(card.locator("table").first).to_contain_text("raw results")
    expect(card).to_contain_text("Clicks by rank against the first day")
    expect(card.locator("canvas").first).to_be_visible()
    expect(page.locator("section", has_text="Bots by hour").locator("canvas")).to_be_visible()
    expect(page.locator("section", has_text="Newest searches").locator("footer, p")).not_to_have_count(0)
    expect(page.locator("main")).to_contain_text("The first 200 of")
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_these_pages_fit_each_width_in_both_themes_and_break_no_rule_of_accessibility(
    width: int, scheme: str, browser: Browser, address: str
) -> None:
    tab = opened(browser, address, viewport={"width": width, "height": 900}, color_scheme=scheme)
    for path in ("/versions", "/live"):
        tab.page.goto(f"{address}{path}?run={RUN}")
        expect(tab.page.locator("#live")).to_have_text("not running")
        expect(tab.page.get_by_text("Asking the ledger")).to_have_count(0)
        if path == "/versions":
            tab.page.get_by_role("button", name="Begin").click()
            judged(tab.page)
        assert tab.value("document.documentElement.scrollWidth") <= width, f"{path} is wider than {width}"
        assert tab.violations() == []
        assert tab.page.locator("main script, main img").count() == 0
        if folder := os.environ.get(SCREENSHOTS):
            tab.picture(Path(folder) / f"people-{path[1:]}-{scheme}-{width}.png")
    tab.page.context.close()
    assert tab.trouble == []
    assert {each.split("/")[2] for each in tab.requests} == {address.removeprefix("http://")}
