"""What people get and do, in the pages: a version's ramp, versions with intervals, drift, judging in random order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.serving.guarding import origin_guard, token_guard
from infra.serving.server import require_pages
from infra.ui.answers import explain_errors
from infra.ui.guarding import HEADERS, cookie_name
from infra.ui.judging import GivenJudgment, events_of
from infra.ui.ledgers import Ledgers
from infra.ui.pages import HIDDEN, PAGES
from infra.ui.server import make_pages
from search_env.feedback.joining import Joiner
from search_env.serving.settings import ServeSettings
from storage.monitor.drift import drift_lines
from storage.monitor.figures import Point
from storage.monitor.rules import built_in_rules
from storage.online.judgments import version_is_left
from storage.questions.settings import UiSettings
from streams.errors import SettingsError
from streams.events import Event, Position
from streams.traffic_events import Impression, ImpressionOutcome, UserAction
from tests.fake_shop import VERSION, FakeShop, fake_shop
from tests.shown_pages import TOKEN, VILE, in_log_order, whole_run, write_run
from tests.stored_events import RUN, decision, impression, impression_outcome
from tests.unit.test_ui import BEARER, asked

HOUR_MS = 3_600_000


def ask(home: Path, path: str, **settings: Any) -> tuple[int, Any]:
    async def run(found: TestClient) -> Any:
        answer = await found.get(path, headers=BEARER)
        return answer.status, await answer.json()

    return asked(home, run, **settings)  # type: ignore[no-any-return]


def send(home: Path, body: Any, **settings: Any) -> tuple[int, Any]:
    async def run(found: TestClient) -> Any:
        answer = await found.post("/api/judge", headers=BEARER, data=json.dumps(body))
        return answer.status, await answer.json()

    return asked(home, run, **settings)  # type: ignore[no-any-return]


@pytest.fixture
def shop() -> Iterator[FakeShop]:
    with fake_shop() as found:
        yield found


def stage(home: Path, share: float, kind: str, *, searches: int, harm: int = 0) -> dict[str, Any]:
    """Ask for a ramp's state after people searched at a share; every `harm`-th search with the version has no click."""
    began = decision(0).at_ms
    events: list[Event] = [msgspec.structs.replace(decision(0), kind=kind, share=share, reason="the log speaks for it")]
    for number in range(searches):
        policy = VERSION if number % 10 < 10 * share else ""
        shown = msgspec.structs.replace(
            impression(number),
            client=f"c{number}",
            at_ms=began + 1 + number,
            policy=policy,
            action_propensity=share if policy else 1 - share,
            offered={"": 1 - share, VERSION: share},
        )
        clicked = number % 2 == 0 if not (policy and harm and number % harm) else False
        actions = impression_outcome(number).actions if clicked else ()
        events += [shown, ImpressionOutcome(impression=shown, actions=actions, final=True)]
    write_run(home, in_log_order(events), run=RUN)
    return ask(home, f"/api/ramp?run={RUN}")[1]["ramp"]  # type: ignore[no-any-return]


def test_a_ramp_shows_its_stage_its_searches_and_what_it_waits_for(tmp_path: Path) -> None:
    found = stage(tmp_path, 0.1, "advance", searches=1_000)
    assert (found["version"], found["status"], found["share"]) == (VERSION, "ramping", 0.1)
    assert (found["stage"], found["stages"][2]) == (3, 0.1)
    assert (found["seen"]["treated"], found["seen"]["others"]) == (100, 900)
    assert found["seen"]["low"] < found["seen"]["difference"] < found["seen"]["high"]
    assert found["waits"] == "stage 3 waits for data: 100 of 200 searches"
    assert (found["last"]["kind"], found["last"]["reason"]) == ("advance", "the log speaks for it")


def test_a_ramp_that_harms_says_so_before_anybody_has_rolled_it_back(tmp_path: Path) -> None:
    found = stage(tmp_path, 0.5, "advance", searches=1_000, harm=1_001)
    assert found["waits"].startswith("people are worse off")
    assert found["seen"]["high"] < 0


@pytest.mark.parametrize(
    ("kind", "share", "status", "number"),
    [
        ("hold", 0.25, "held", 4),
        ("finish", 1.0, "serves", 6),
        ("roll back", 0.0, "rolled back", 0),
        ("admit", 0.05, "explored", 0),
        ("refuse", 0.0, "refused", 0),
    ],
)
def test_what_is_on_no_ramp_shows_its_last_decision_alone(
    kind: str, share: float, status: str, number: int, tmp_path: Path
) -> None:
    found = stage(tmp_path, share, kind, searches=10)
    assert (found["status"], found["stage"], found["seen"], found["waits"]) == (status, number, None, "")


def test_a_run_without_decisions_has_no_ramp(tmp_path: Path) -> None:
    write_run(tmp_path, whole_run(4))
    status, found = ask(tmp_path, "/api/ramp?run=demo")
    assert (status, found["ramp"]) == (200, None)


def test_versions_comparisons_and_drift_come_in_one_answer(tmp_path: Path) -> None:
    events: list[Event] = []
    for number in range(80):
        shown = msgspec.structs.replace(impression(number), client=f"c{number}", policy="" if number % 2 else VERSION)
        if number % 4 == 3:
            shown = msgspec.structs.replace(shown, teams=("", VERSION), policy="", action_propensity=None)
        events += [shown, msgspec.structs.replace(impression_outcome(number), impression=shown)]
    write_run(tmp_path, in_log_order(events), run=RUN)
    status, found = ask(tmp_path, f"/api/people?run={RUN}")
    people = found["people"]
    assert status == 200
    assert [(arm["version"], arm["searches"]) for arm in people["arms"]] == [("", 20), (VERSION, 40)]
    # Every search has a click, so nothing varies, and nothing is said.
    assert people["arms"][1]["click_rate"] == {"value": 1.0, "low": 0.0, "high": 1.0}
    (duel,) = people["duels"]
    assert (duel["one"], duel["other"], duel["wins"], duel["losses"]) == ("", VERSION, 0, 20)  # They click d2.
    assert duel["low"] < -0.5
    assert {line["figure"] for line in people["drift"]} == {"click_ranks", "click_rate"}
    assert all(line["says"] and not line["points"] for line in people["drift"])


def test_drift_is_the_alerts_own_figure_at_each_hour() -> None:
    same, moved = {"1": 600, "2": 300, "3": 100}, {"1": 100, "2": 300, "3": 600}
    points = [Point(at_ms=n * HOUR_MS, value=0.5, counts=same if n < 60 else moved) for n in range(84)]
    (line,) = [each for each in drift_lines({"click_ranks": points}, built_in_rules()) if each.figure == "click_ranks"]
    assert [at for at, _ in line.points] == [n * HOUR_MS for n in range(47, 84)]
    values = dict(line.points)
    assert abs(values[50 * HOUR_MS]) < 0.01 < line.limit < values[83 * HOUR_MS]
    assert list(values.values())[13:] == sorted(list(values.values())[13:])
    # Σ (p − q) ln(p / q) by hand: 2 · (.6 − .1) · ln 6.
    assert values[83 * HOUR_MS] == pytest.approx(1.792, abs=0.01)


def test_queries_to_judge_come_in_random_order_and_never_again_once_judged(tmp_path: Path, shop: FakeShop) -> None:
    events: list[Event] = [msgspec.structs.replace(impression(n), query=f"query {n}") for n in range(40)]
    write_run(tmp_path, in_log_order(events), run=RUN)
    orders = []
    for _ in range(2):
        status, found = ask(tmp_path, f"/api/judging?run={RUN}", server=shop.address)
        assert (status, found["run"], found["version"], found["judged"]) == (200, RUN, VERSION, [])
        orders.append(found["queries"])
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(f"query {n}" for n in range(40))
    assert orders[0] != orders[1]

    async def judge(found: TestClient) -> None:
        for query in orders[0][:3]:
            answer = await found.get("/api/pair", params={"query": query, "version": VERSION}, headers=BEARER)
            pair = await answer.json()
            side = "left" if version_is_left(pair["judgment"]) else "right"
            body = {
                **{name: pair[name] for name in ("judgment", "query", "version")},
                "side": side,
                "left": [hit["document_id"] for hit in pair["left"]],
                "right": [hit["document_id"] for hit in pair["right"]],
            }
            for _ in range(2):  # A page that was reloaded before the answer came sends it again.
                assert (await found.post("/api/judge", headers=BEARER, data=json.dumps(body))).status == 200

    asked(tmp_path, judge, server=shop.address)
    assert all(each["log"] is False for each in shop.searches)
    write_run(tmp_path, in_log_order([*events, *shop.logged()]), run=RUN)
    _, found = ask(tmp_path, f"/api/judging?run={RUN}", server=shop.address)
    assert sorted(found["queries"]) == sorted(orders[0][3:])
    (judged,) = found["judged"]
    assert (judged["version"], judged["duel"]["wins"], judged["share"]) == (VERSION, 3, 1.0)
    assert judged["low"] < judged["share"]


def test_a_pair_has_no_names_and_sides_that_are_tossed(tmp_path: Path, shop: FakeShop) -> None:
    write_run(tmp_path, whole_run(4))
    sides = set()

    async def pairs(found: TestClient) -> None:
        for _ in range(24):
            answer = await found.get("/api/pair", params={"query": "mug", "version": VERSION}, headers=BEARER)
            pair = await answer.json()
            assert set(pair) == {"judgment", "query", "version", "same", "left", "right"} and not pair["same"]
            first = pair["left"][0]["document_id"]
            assert (first == "mug-9") == version_is_left(pair["judgment"])  # The shop's version ranks backwards.
            sides.add(first)

    asked(tmp_path, pairs, server=shop.address)
    assert sides == {"mug-0", "mug-9"}
    assert ask(tmp_path, f"/api/pair?query=alike&version={VERSION}", server=shop.address)[1]["same"] is True
    assert ask(tmp_path, f"/api/pair?query=unanswered&version={VERSION}", server=shop.address)[0] == 404


def test_a_judgment_is_no_search_of_a_person(shop: FakeShop, tmp_path: Path) -> None:
    write_run(tmp_path, whole_run(4))
    body = {"judgment": ID, "query": VILE, "version": VERSION, "side": "tie", "left": ["a"], "right": ["b"]}
    assert send(tmp_path, body, server=shop.address) == (200, {"sent": ID})
    one, other, verdict = shop.logged()
    assert isinstance(one, Impression) and isinstance(other, Impression) and isinstance(verdict, UserAction)
    assert {one.policy, other.policy} == {"", VERSION} and one.action_propensity is None
    assert (verdict.action_id, verdict.kind) == (ID, "tie")
    joiner = Joiner()
    for offset, event in enumerate((one, other, verdict)):
        joiner.add(event, Position(topic="t", partition=0, offset=offset))
    outcomes = [each for each in joiner.finish() if isinstance(each, ImpressionOutcome)]
    assert [each.bot for each in outcomes] == ["judged", "judged"]
    assert sum(len(each.actions) for each in outcomes) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"side": "up"}, "Invalid enum value 'up'"),
        ({"left": []}, "expected two lists with results"),
        ({"judgment": None}, "judgment"),
        ({"more": 1}, "unknown field"),
        ({"query": ""}, "$.query"),
        ({"version": ""}, "$.version"),
        ({"left": ["b"]}, "that differ"),
        ({"right": ["x"] * 11}, "$.right"),
        ({"judgment": "j1"}, "$.judgment"),
        ({"judgment": "x" * 600}, "$.judgment"),
    ],
)
def test_a_judgment_that_cannot_be_kept_is_refused_with_what_was_expected(
    change: dict[str, Any], said: str, tmp_path: Path, shop: FakeShop
) -> None:
    write_run(tmp_path, whole_run(4))
    body = {"judgment": ID, "query": "mug", "version": VERSION, "side": "tie", "left": ["a"], "right": ["b"]}
    status, found = send(tmp_path, body | change, server=shop.address)
    assert status == 400 and said in found["error"]
    assert shop.events == []


def test_without_a_server_judging_says_how_to_start_one(tmp_path: Path) -> None:
    write_run(tmp_path, whole_run(4))
    status, found = ask(tmp_path, "/api/judging?run=demo")
    assert (status, found["version"], found["queries"]) == (200, "", [])
    assert "searchloop serve" in found["why"]


def test_the_events_of_a_judgment_name_both_lists_as_they_were_shown() -> None:
    given = GivenJudgment(judgment="j", query="mug", version="v", side="left", left=["a", "b"], right=["c"])
    helped, raw, verdict = events_of(given)
    left = version_is_left("j")
    assert helped["query_response_hit_ids"] == (["a", "b"] if left else ["c"])
    assert raw["query_response_hit_ids"] == (["c"] if left else ["a", "b"])
    assert verdict["event_attributes"]["object"]["object_id"] == helped["query_response_hit_ids"][0]
    assert verdict["action_name"] == ("prefers version" if left else "prefers raw")


def mounted(home: Path, question: Any) -> Any:
    """Ask the pages where `serve` mounts them: below /ui, behind the server's own guards."""

    async def run() -> Any:
        settings = UiSettings(token=TOKEN)
        ledgers = Ledgers(App(Home(home)), settings)
        inner = make_pages(ledgers, settings, TOKEN, base="/ui")

        async def search(_: web.Request) -> web.Response:
            return web.json_response({"hits": []})

        outer = web.Application(
            middlewares=[
                origin_guard(("https://shop.example",), guarded=inner),
                explain_errors,
                token_guard("shop", guarded=inner),
            ]
        )
        outer.router.add_get("/search", search)
        outer.add_subapp("/ui/", inner)
        async with TestClient(TestServer(outer)) as client:
            found = await question(client)
        ledgers.close()
        return found

    return asyncio.run(run())


ID = "0123456789abcdef" * 2
SHOP = {"authorization": "Bearer shop"}


@pytest.mark.parametrize("path", [*PAGES, *HIDDEN, "/api/runs", "/api/stream?run=demo", "/static/main.js", "/none"])
@pytest.mark.parametrize("headers", [{}, SHOP, {"origin": "https://shop.example"}, {"authorization": "Bearer"}])
def test_pages_below_a_server_tell_nothing_to_a_shop_or_to_shoppers(
    path: str, headers: dict[str, str], tmp_path: Path
) -> None:
    write_run(tmp_path, whole_run(4))

    async def run(client: TestClient) -> tuple[int, str]:
        answer = await client.get(f"/ui{path}", headers=headers)
        return answer.status, await answer.text()

    status, said = mounted(tmp_path, run)
    assert status in (401, 403) and "demo" not in said and TOKEN not in said


def test_pages_below_a_server_open_with_their_own_token_for_their_own_path(tmp_path: Path) -> None:
    write_run(tmp_path, whole_run(4))

    async def run(client: TestClient) -> None:
        answer = await client.get(f"/ui/rewards?token={TOKEN}&run=demo", allow_redirects=False)
        assert (answer.status, answer.headers["location"]) == (303, "/ui/rewards?run=demo")
        name = cookie_name(f"{client.host}:{client.port}")
        assert (answer.cookies[name]["path"], answer.cookies[name]["httponly"]) == ("/ui/", True)
        page = await client.get("/ui/rewards", headers=BEARER)
        text = await page.text()
        assert page.status == 200 and {name: page.headers[name] for name in HEADERS} == HEADERS
        addresses = [part.partition('"')[0] for part in text.replace('src="', 'href="').split('href="')[1:]]
        assert addresses and all(each.startswith("/ui/") or each == "#main" for each in addresses)
        for path in ("static/main.js", "api/runs", "health"):
            assert (await client.get(f"/ui/{path}", headers=BEARER)).status == 200
        # The token of the pages opens nothing of the shop's, and the other way round.
        assert (await client.get("/search", headers=BEARER)).status == 401
        assert (await client.get("/search", headers=SHOP)).status == 200

    mounted(tmp_path, run)


def test_pages_below_a_server_behind_a_gateway_with_tls_can_send(tmp_path: Path) -> None:
    write_run(tmp_path, whole_run(4))

    async def run(client: TestClient) -> list[int]:
        body, found = json.dumps({"run": "demo", "sql": "SELECT 1"}), []
        for origin in (
            f"https://{client.host}:{client.port}",
            "https://shop.example",
            "https://attacker.example",
            "null",
        ):
            answer = await client.post("/ui/api/sql", headers={**BEARER, "origin": origin}, data=body)
            found.append(answer.status)
        return found

    assert mounted(tmp_path, run) == [200, 403, 403, 403]


@pytest.mark.parametrize("path", ["/ui/../search", "/ui/%2e%2e/search", "/ui/..%2fsearch", "//ui/search", "/ui/search"])
def test_no_path_below_the_pages_leads_past_the_servers_token(path: str, tmp_path: Path) -> None:
    write_run(tmp_path, whole_run(4))

    async def run(client: TestClient) -> int:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
        writer.close()
        return int(line.split()[1])

    assert mounted(tmp_path, run) in (401, 404)


@pytest.mark.parametrize("host", ["shop.example", "attacker.example:8600"])
def test_the_name_under_which_people_reach_the_server_opens_no_page(host: str, tmp_path: Path) -> None:
    write_run(tmp_path, whole_run(4))

    async def run(client: TestClient) -> int:
        return (await client.get("/ui/api/runs", headers={**BEARER, "host": host})).status

    assert mounted(tmp_path, run) == 421


@pytest.mark.parametrize(
    ("token", "shop", "workers"), [("", "", 1), ("same", "same", 1), ("", "shop", 1), ("ui", "", 2)]
)
def test_pages_that_would_be_open_to_a_shop_or_be_kept_twice_are_refused(token: str, shop: str, workers: int) -> None:
    settings = Settings(serve=ServeSettings(pages=True, token=shop), ui=UiSettings(token=token))
    with pytest.raises(SettingsError, match=r"serve\.pages: expected"):
        require_pages(settings, workers=workers)
    require_pages(msgspec.structs.replace(settings, serve=ServeSettings(token=shop)), workers=workers)


def test_pages_with_a_token_of_their_own_are_allowed() -> None:
    for shop in ("shop", ""):
        settings = Settings(serve=ServeSettings(pages=True, token=shop), ui=UiSettings(token="ui"))
        assert require_pages(settings) is None
