"""The pages over HTTP: who is let in, what they answer, and a stream that loses and repeats nothing."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from infra.app.app import App
from infra.app.home import Home
from infra.ui.answers import LEDGERS
from infra.ui.guarding import COOKIE, POLICY, cookie_name
from infra.ui.ledgers import Ledgers
from infra.ui.pages import HIDDEN, PAGES, files, frame
from infra.ui.server import make_pages
from storage.ledger import LEDGER
from storage.questions.asking import connect_reading
from storage.questions.question import saved_questions
from storage.questions.settings import UiSettings
from storage.questions.stream import ROWS_AT_ONCE, ends, news, read_cursor, show_cursor
from storage.questions.words import WORDS
from storage.sink import Sink
from streams.events import Outcome
from streams.records import Received
from tests.shown_pages import TOKEN, VILE, whole_run, write_run
from tests.stored_events import dev_score, generation, policy, record, reward

BEARER = {"authorization": f"Bearer {TOKEN}"}
SCRIPT_AND_STYLE_KB_MAX = 60

Ask = Callable[[TestClient], Awaitable[Any]]


@asynccontextmanager
async def client(home: Path, **settings: Any) -> AsyncIterator[TestClient]:
    given = UiSettings(**settings)
    ledgers = Ledgers(App(Home(home)), given)
    async with TestClient(TestServer(make_pages(ledgers, given, TOKEN))) as found:
        yield found
    ledgers.close()


def asked(home: Path, question: Ask, **settings: Any) -> Any:
    async def run() -> Any:
        async with client(home, **settings) as found:
            return await question(found)

    return asyncio.run(run())


def get(home: Path, path: str, **given: Any) -> tuple[int, Any, ClientResponse]:
    async def run(found: TestClient) -> Any:
        answer = await found.get(path, headers={**BEARER, **given.pop("headers", {})}, allow_redirects=False, **given)
        text = await answer.text()
        return answer.status, json.loads(text) if answer.content_type == "application/json" else text, answer

    return asked(home, run)  # type: ignore[no-any-return]


def post(home: Path, path: str, body: Any, **settings: Any) -> tuple[int, Any]:
    async def run(found: TestClient) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await found.post(path, headers=BEARER, data=data)
        return answer.status, await answer.json()

    return asked(home, run, **settings)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    found = tmp_path_factory.mktemp("home")
    write_run(found, whole_run(12))
    write_run(found, whole_run(4, query=VILE), run="vile")
    yield found


@pytest.mark.parametrize("path", [*PAGES, *HIDDEN, "/api/runs", "/api/sql", "/api/stream?run=demo", "/static/main.js"])
@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN[:-1]}, {"cookie": f"{COOKIE}=wrong"}]
)
def test_without_the_token_nothing_is_told(path: str, headers: dict[str, str], home: Path) -> None:
    async def run(found: TestClient) -> tuple[int, str]:
        answer = await found.get(path, headers=headers)
        return answer.status, await answer.text()

    status, said = asked(home, run)
    assert status == 401
    assert "searchloop ui" in said and "demo" not in said and TOKEN not in said


def test_the_printed_address_sets_a_cookie_and_leaves_no_token_in_the_address(home: Path) -> None:
    async def run(found: TestClient) -> None:
        answer = await found.get(f"/rewards?token={TOKEN}&run=demo", allow_redirects=False)
        assert (answer.status, answer.headers["location"]) == (303, "/rewards?run=demo")
        name = cookie_name(f"{found.host}:{found.port}")
        cookie = answer.cookies[name]
        assert (cookie["httponly"], cookie["samesite"]) == (True, "Strict")
        assert (await found.get("/api/runs", cookies={name: cookie.value})).status == 200

    asked(home, run)


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:8700", "127.0.0.1.attacker.example", ""])
def test_a_page_that_points_its_own_name_at_this_machine_is_told_nothing(host: str, home: Path) -> None:
    status, said, _ = get(home, "/api/runs", headers={"host": host})
    assert status in (400, 421)
    assert "demo" not in str(said)


def test_a_name_of_the_settings_is_answered(home: Path) -> None:
    async def run(found: TestClient) -> int:
        return (await found.get("/api/runs", headers={**BEARER, "host": "loop.example"})).status

    assert asked(home, run, names=("loop.example",)) == 200


def test_a_page_of_another_origin_cannot_ask(home: Path) -> None:
    status, _, _ = get(home, "/api/runs", headers={"origin": "https://attacker.example"})
    assert status == 403


@pytest.mark.parametrize("path", [*PAGES, *HIDDEN])
def test_a_page_has_a_strict_policy_and_no_script_in_it(path: str, home: Path) -> None:
    status, text, answer = get(home, path)
    assert (status, text) == (200, frame(path))
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY and "default-src 'none'" in POLICY
    assert text.count("<script") == text.count("<script src=") and "style=" not in text and "onclick" not in text
    assert "http://" not in text and "https://" not in text


def test_only_the_packages_own_files_are_given(home: Path) -> None:
    assert get(home, "/static/main.js")[0] == 200
    for path in ("/static/../server.py", "/static/..%2fserver.py", "/static/vendor/../../api.py", "/static/none.js"):
        assert get(home, path)[0] == 404


def test_script_and_style_are_small() -> None:
    sent = b"".join(content for name, (content, _) in sorted(files().items()) if name.endswith((".js", ".css")))
    assert len(gzip.compress(sent)) <= SCRIPT_AND_STYLE_KB_MAX * 1024
    assert "vendor/uplot.LICENSE" in files()


def test_an_empty_installation_says_how_to_begin(tmp_path: Path) -> None:
    assert get(tmp_path, "/api/runs")[:2] == (200, {"runs": []})
    status, said, _ = get(tmp_path, "/api/overview?run=demo")
    assert status == 404 and "searchloop demo" in said["error"]


@pytest.mark.parametrize("run", ["", "..", "../demo", "none", "a/b", "x" * 500, VILE])
def test_a_run_that_is_not_there_is_named_with_those_that_are(run: str, home: Path) -> None:
    async def question(found: TestClient) -> Any:
        answer = await found.get("/api/overview", params={"run": run}, headers=BEARER)
        return answer.status, await answer.json()

    status, said = asked(home, question)
    assert status == 404 and "demo" in said["error"] and len(said["error"]) < 1000


@pytest.mark.parametrize("name", saved_questions())
def test_every_saved_question_is_answered_as_json_and_as_csv(name: str, home: Path) -> None:
    status, found, _ = get(home, f"/api/ask/{name}?run=demo")
    assert status == 200 and found["state"] == "" and not found["cut"]
    status, text, answer = get(home, f"/api/ask/{name}.csv?run=demo")
    assert status == 200 and answer.headers["content-disposition"].startswith("attachment")
    read = list(csv.reader(io.StringIO(text)))
    assert (read[0], len(read) - 1) == (found["columns"], len(found["rows"]))


def test_a_text_that_a_spreadsheet_would_run_is_no_formula_in_csv(tmp_path: Path) -> None:
    write_run(tmp_path, whole_run(4, query='=HYPERLINK("http://attacker.example")'))
    _, text, _ = get(tmp_path, "/api/ask/groups.csv?run=demo")
    assert {row[0] for row in csv.reader(io.StringIO(text))} == {"query", '\'=HYPERLINK("http://attacker.example")'}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/api/ask/none?run=demo", "expected a saved question"),
        ("/api/ask/groups?run=demo&step=x", "step: expected a whole number"),
        ("/api/ask/groups?run=demo&step=9999999999999999999", "step: expected a whole number"),
        ("/api/ask/groups?run=demo&sort=sideways", "sort: expected one of"),
        ("/api/group?run=demo&group=none", "expected the id of a group"),
        ("/api/search?run=demo&query=", "query: expected a text"),
        ("/api/search?run=demo&query=mug", "searchloop serve"),
        ("/nowhere", ""),
    ],
)
def test_what_cannot_be_answered_is_explained(path: str, said: str, home: Path) -> None:
    status, found, _ = get(home, path)
    assert 400 <= status < 500 and said in found["error"]


def test_hostile_text_is_data_and_never_markup(home: Path) -> None:
    _, found, answer = get(home, "/api/ask/groups?run=vile")
    assert answer.content_type == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    assert {row[0] for row in found["rows"]} == {VILE}
    script = "".join(
        content.decode() for name, (content, _) in files().items() if name.endswith(".js") and "/" not in name
    )
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "document.write" not in script


def test_sql_is_read_only_and_bounded(home: Path) -> None:
    status, found = post(home, "/api/sql", {"run": "demo", "sql": "SELECT count(*) AS n FROM rewards"})
    assert (status, found["columns"], found["rows"]) == (200, ["n"], [[12]])
    status, found = post(
        home, "/api/sql", {"run": "demo", "sql": "SELECT 'nan'::DOUBLE, now(), 1::DECIMAL(9,3), {'a': [1]}"}
    )
    assert status == 200 and found["rows"][0][0] is None
    for body in (
        {"run": "demo", "sql": "DROP TABLE rewards"},
        {"run": "demo"},
        [],
        b"{",
        b"[" * 100_000,
        b"x" * 70_000,
    ):
        status, found = post(home, "/api/sql", body)
        assert status == 400 and "expected" in found["error"]
    slow = {"run": "demo", "sql": "SELECT max(hash(a.range, b.range)) FROM range(100000) a, range(1000000) b"}
    status, found = post(home, "/api/sql", slow, seconds_max=0.3)
    assert status == 400 and "within 0.3 s" in found["error"]


def test_the_overview_says_what_it_knows_and_what_it_does_not(home: Path) -> None:
    status, found, _ = get(home, "/api/overview?run=demo")
    statements = {each["question"]: each for each in found["health"]["statements"]}
    assert status == 200 and found["health"]["updates"] == 3 and found["health"]["groups"] == 12
    assert statements["Is it learning?"]["level"] == "unknown"
    assert statements["What became of the candidates?"]["level"] == "good"
    assert {each["link"].partition("?")[0] for each in statements.values()} <= set(PAGES)


def test_a_damaged_ledger_says_how_it_is_mended(tmp_path: Path) -> None:
    folder = write_run(tmp_path, whole_run(4))
    (folder / LEDGER).write_bytes(b"not a database" * 1000)
    status, found, _ = get(tmp_path, "/api/overview?run=demo")
    assert status == 503 and "searchloop rebuild --run demo" in found["error"]


def test_words_have_a_title_and_a_sentence() -> None:
    assert set(WORDS) <= set(saved_questions())
    for kinds in WORDS.values():
        for title, says in kinds.values():
            assert title[0].isupper() and says.endswith(".")


def test_a_cursor_is_read_back_and_a_wrong_one_is_none() -> None:
    cursor = {("rewards", 0): 12, ("dev-scores", 3): 1}
    assert read_cursor(show_cursor(cursor)) == cursor
    for text in ("", "rewards", "rewards.0:x", "none.0:1", "rewards.0:1,", "rewards.0:1;DROP", "rewards.0:" + "9" * 40):
        assert read_cursor(text) is None


@pytest.mark.parametrize("cut", [0, 1, 5, 12])
def test_from_any_cursor_on_each_row_comes_once(cut: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    records = whole_run(12)
    seen: list[tuple[str, int]] = []
    cursor: dict[tuple[str, int], int] = {}
    for part in (records[: len(records) * cut // 12], records[len(records) * cut // 12 :]):
        with Sink(folder / LEDGER) as sink:
            sink.write(part)
        with connect_reading(folder / LEDGER) as connection:
            for each in news(connection.cursor(), cursor):
                cursor = read_cursor(show_cursor(each.cursor)) or {}
                seen += [(each.kind, row["record_offset"]) for row in each.rows]
            assert cursor == ends(connection.cursor())
            assert news(connection.cursor(), cursor) == []
    assert sorted(seen) == sorted([("rewards", n) for n in range(12)] + [("updates", n) for n in range(3)])


def test_a_long_absence_is_made_up_in_parts(tmp_path: Path) -> None:
    groups = ROWS_AT_ONCE + 40
    folder = write_run(tmp_path, whole_run(groups))
    seen = []
    cursor: dict[tuple[str, int], int] = {}
    with connect_reading(folder / LEDGER) as connection:
        while found := news(connection.cursor(), cursor):
            assert all(len(each.rows) <= ROWS_AT_ONCE for each in found)
            seen += [row["group_id"] for each in found if each.kind == "rewards" for row in each.rows]
            cursor = found[-1].cursor
    assert seen == [generation(n).group_id for n in range(groups)]


async def told(answer: ClientResponse, count: int) -> list[dict[str, str]]:
    """Return the next events of a stream, at most so many. Comments, which keep a quiet stream open, are none."""
    found: list[dict[str, str]] = []
    event: dict[str, str] = {}
    async for line in answer.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            event[name] = value
            continue
        if event:  # Else, a comment and the line after it.
            found.append(event)
            event = {}
        if len(found) == count:
            break
    return found


def test_the_stream_goes_on_after_the_last_event_that_a_page_got(home: Path) -> None:
    async def read(found: TestClient, headers: dict[str, str], wanted: int) -> list[dict[str, str]]:
        async with found.get("/api/stream?run=demo", headers={**BEARER, **headers}) as answer:
            assert answer.content_type == "text/event-stream"
            return await told(answer, wanted)

    async def run(found: TestClient) -> None:
        (now,) = await read(found, {}, 1)
        assert (now["event"], now["id"]) == ("state", "rewards.0:12,updates.0:3")
        state, rewards, updates = await read(found, {"last-event-id": "rewards.0:7,updates.0:2"}, 3)
        assert state["event"] == "state"
        assert [row["record_offset"] for row in json.loads(rewards["data"])["rows"]] == [7, 8, 9, 10, 11]
        assert [row["record_offset"] for row in json.loads(updates["data"])["rows"]] == [2]
        assert updates["id"] == "rewards.0:12,updates.0:3"

    asked(home, run)


def test_prometheus_gets_the_metrics_of_every_run(tmp_path: Path) -> None:
    (write_run(tmp_path, whole_run(12)) / "settings.json").write_text('{"recipe": "leser"}')
    _, text, answer = get(tmp_path, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'searchloop_run_groups_total{run="demo"} 12.0' in text
    assert 'searchloop_run_updates_total{run="demo"} 3.0' in text
    assert get(tmp_path, "/api/runs")[1]["runs"][0]["recipe"] == "leser"


def test_alerts_say_which_rules_fire_with_a_query_for_the_rows_behind(tmp_path: Path) -> None:
    flat = [
        record(msgspec.structs.replace(each, outcomes=tuple(unchanged(outcome) for outcome in each.outcomes)), number)
        for number, each in enumerate(reward(number, step=number // 4) for number in range(40))
    ]
    write_run(tmp_path, flat)
    status, found, _ = get(tmp_path, "/api/alerts?run=demo")
    first = found["alerts"][0]
    assert (status, first["rule"], first["state"], first["severity"]) == (200, "no-op collapse", "firing", "critical")
    status, rows = post(tmp_path, "/api/sql", {"run": "demo", "sql": first["sql"]})
    assert status == 200 and rows["rows"]
    assert {each["state"] for each in found["alerts"]} <= {"ok", "firing", "recovered", "no data", "silenced"}


def unchanged(outcome: Outcome) -> Outcome:
    return msgspec.structs.replace(outcome, expansions=())


def overview_of(home: Path, records: list[Received]) -> dict[str, dict[str, str]]:
    write_run(home, records)
    found = get(home, "/api/overview?run=demo")[1]["health"]
    return {each["question"]: each for each in found["statements"]}


def test_a_run_whose_texts_all_fail_can_learn_nothing(tmp_path: Path) -> None:
    failed = Outcome(status="failed", valid=True, error="down")
    events = [msgspec.structs.replace(reward(n), outcomes=(failed,) * 8) for n in range(4)]
    found = overview_of(tmp_path, [record(each, n) for n, each in enumerate(events)])
    assert (found["Can it learn?"]["level"], found["What became of the candidates?"]["level"]) == ("bad", "warn")


def test_groups_with_one_scored_text_teach_nothing(tmp_path: Path) -> None:
    failed = Outcome(status="failed", valid=True, error="down")
    events = [
        msgspec.structs.replace(each, outcomes=(each.outcomes[0], *[failed] * 7)) for each in map(reward, range(4))
    ]
    found = overview_of(tmp_path, [record(each, n) for n, each in enumerate(events)])["Can it learn?"]
    assert found["level"] == "bad" and found["says"].startswith("100% of the newest groups teach nothing")


@pytest.mark.parametrize(
    ("values", "level", "said"),
    [
        ([0.20, 0.40], "good", "0.200 (version 0), now 0.400 (version 1)"),
        ([0.40, 0.20], "warn", "0.400 (version 0), now 0.200 (version 1)"),
        ([0.2500, 0.2501], "unknown", "No clear change"),
        ([0.2500, 0.2499], "unknown", "No clear change"),
    ],
)
def test_a_change_within_the_noise_of_dev_queries_is_no_verdict(
    values: list[float], level: str, said: str, tmp_path: Path
) -> None:
    scores = [msgspec.structs.replace(dev_score(n), value=value) for n, value in enumerate(values)]
    found = overview_of(tmp_path, [*whole_run(8), *(record(each, n) for n, each in enumerate(scores))])
    assert found["Is it learning?"]["level"] == level and said in found["Is it learning?"]["says"]


def test_a_score_of_a_lineage_that_did_not_survive_counts_for_nothing(tmp_path: Path) -> None:
    dead = msgspec.structs.replace(dev_score(1), policy=policy(1, lineage="gone"), value=0.9)
    scores = [msgspec.structs.replace(dev_score(0), value=0.4), dead, msgspec.structs.replace(dev_score(2), value=0.1)]
    found = overview_of(tmp_path, [*whole_run(8), *(record(each, n) for n, each in enumerate(scores))])
    assert found["Is it learning?"]["level"] == "warn" and "0.900" not in found["Is it learning?"]["says"]


def test_a_question_that_cannot_be_stopped_holds_only_other_sql(home: Path) -> None:
    slow = "SELECT levenshtein(repeat('a', 40000), repeat('b', 40000))"

    async def run(found: TestClient) -> None:
        async def sql(text: str) -> tuple[int, Any]:
            answer = await found.post("/api/sql", headers=BEARER, data=json.dumps({"run": "demo", "sql": text}))
            return answer.status, await answer.json()

        first = asyncio.ensure_future(sql(slow))
        await asyncio.sleep(0.2)
        status, said = await sql("SELECT 1")
        assert status == 400 and "an earlier one still runs" in said["error"]
        assert (await found.get("/api/overview?run=demo", headers=BEARER)).status == 200
        await first
        status, _ = await sql("SELECT 1")
        assert status == 200

    asked(home, run)


def test_a_body_in_two_parts_is_one_body_and_parameters_are_an_object(home: Path) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b'{"run": "demo", "sql": "SEL'
        await asyncio.sleep(0.3)
        yield b'ECT 1 AS a, 2 AS a"}'

    async def run(found: TestClient) -> Any:
        answer = await found.post("/api/sql", headers=BEARER, data=parts())
        return answer.status, await answer.json()

    status, said = asked(home, run)
    assert (status, said["columns"], said["rows"]) == (200, ["a", "a"], [[1, 2]])
    for parameters in (5, [1, 2], "abc"):
        status, said = post(home, "/api/sql", {"run": "demo", "sql": "SELECT 1", "parameters": parameters})
        assert status == 400 and "parameters: expected an object" in said["error"]


@pytest.mark.parametrize(
    "headers", [{"sec-fetch-site": "same-site"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}]
)
def test_what_another_page_fetches_is_refused(headers: dict[str, str], home: Path) -> None:
    assert get(home, "/api/search?query=mug", headers=headers)[0] == 403


def test_an_answer_is_made_anew_when_the_log_has_more_and_not_before(tmp_path: Path) -> None:
    records = whole_run(24)
    folder = write_run(tmp_path, records[: len(records) // 2])

    async def run(found: TestClient) -> None:
        async def ask(path: str) -> Any:
            return await (await found.get(f"{path}?run=demo", headers=BEARER)).json()

        ledgers = found.app[LEDGERS]
        before, asked = await ask("/api/overview"), ledgers.answers_made
        assert await ask("/api/overview") | {"rest": 0} == before | {"rest": 0} and ledgers.answers_made == asked
        with Sink(folder / LEDGER) as sink:
            sink.write(records)
        while (now := await ask("/api/overview"))["health"]["groups"] != 24:
            assert now["health"] == before["health"], "an answer is whole, of before or of now"
            await asyncio.sleep(min(now["rest"], 0.2))
        assert ledgers.answers_made > asked

    asked(tmp_path, run)
