"""The pages attacked: requests of other sites, bytes that are no text, cursors of other logs, methods of no page."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient

from infra.app.home import Home
from infra.ui.answers import LEDGERS
from infra.ui.guarding import HEADERS
from learner.groups import reward_metrics
from search_env.leser.reward import LeserSettings, Reach, SetMeasurements, leser_reward
from search_env.relsum.reward import RelsumSettings, Scored, relsum_reward
from search_env.resume.reward import ResumeSettings, resume_reward
from storage.questions.question import saved_questions
from storage.questions.stream import within
from storage.questions.words import METRICS, PARTS
from streams.codec import decode
from streams.traffic_events import ImpressionOutcome
from tests.reported import compared, hits
from tests.shown_pages import TOKEN, VILE, in_log_order, whole_run, write_run
from tests.stored_events import decision, dev_score, generation, impression_outcome, reward
from tests.unit.test_ui import BEARER, asked, get, post, told

FAR = "rewards.0:999999999999999999,updates.0:2"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_run(tmp_path, whole_run(12))
    return tmp_path


def raw(home: Path, head: bytes, body: bytes = b"") -> tuple[int, bytes]:
    """Send bytes as they are, and return status and answer."""

    async def run(client: TestClient) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        lines = head + b"\r\nhost: 127.0.0.1\r\nconnection: close\r\nauthorization: Bearer " + TOKEN.encode()
        writer.write(lines + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1]), answer

    return asked(home, run)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "body",
    [
        b'{"run": "demo", "sql": "SELECT \'\xff\'"}',
        b'{"run": "\xed\xa0\x80", "sql": "SELECT 1"}',
        b'{"\xff": 1}',
        b'{"run": "demo", "sql": "\\ud800"}',
        b"\xff\xfe",
    ],
)
def test_bytes_that_are_no_text_are_refused_with_a_sentence(body: bytes, home: Path) -> None:
    for path in ("sql", "click", "judge"):
        status, answer = raw(home, b"POST /api/%s HTTP/1.1" % path.encode(), body)
        assert status == 400 and b"expected a JSON object" in answer


@pytest.mark.parametrize(
    "path",
    [
        "/api/ask/groups?run=demo&query=%ff%fe%ed%a0%80%00",
        "/api/ask/groups?run=%ff",
        "/api/group?run=demo&group=%00%ed%a0%80",
        "/static/%ff%00",
        "/static/..%2f..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/api/page/%ff",
        "/api/stream?run=%ff",
    ],
)
def test_an_address_with_bytes_that_are_no_text_is_answered(path: str, home: Path) -> None:
    status, answer = raw(home, b"GET %s HTTP/1.1" % path.encode())
    assert status < 500 and b"async def" not in answer


@pytest.mark.parametrize("place", ["//attacker.example/", "/%5cattacker.example/", "/.//attacker.example/", "/%09/x/"])
def test_the_token_in_an_address_leads_nowhere_else(place: str, home: Path) -> None:
    status, answer = raw(home, b"GET %s?token=%s HTTP/1.1" % (place.encode(), TOKEN.encode()))
    if status == 303:
        (location,) = [line for line in answer.split(b"\r\n") if line.lower().startswith(b"location:")]
        place_to = location.partition(b": ")[2]
        assert place_to.startswith(b"/") and place_to[1:2] not in (b"/", b"\\") and TOKEN.encode() not in place_to


@pytest.mark.parametrize(("name", "content"), [("settings.json", b'{"recipe": "\xff"}'), ("settings.json", b"\x00")])
def test_a_run_whose_settings_are_damaged_hides_no_other_run(name: str, content: bytes, home: Path) -> None:
    (write_run(home, whole_run(4), run="other") / name).write_bytes(content)
    status, found, _ = get(home, "/api/runs")
    assert status == 200 and {each["run"] for each in found["runs"]} == {"demo", "other"}


def test_an_evaluation_that_is_no_text_is_named(home: Path) -> None:
    (home / "runs" / "demo" / "evaluation.json").write_bytes(b'{"queries": "\xff"}')
    status, found, _ = get(home, "/api/evaluations?run=demo")
    assert status == 503 and "evaluation.json: expected the output of" in found["error"]


@pytest.mark.parametrize("site", ["same-site", "cross-site"])
def test_a_link_of_another_site_opens_a_page_and_asks_nothing(site: str, home: Path) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
    assert get(home, "/examples?run=demo", headers=headers)[0] == 200
    # A search would log an impression, and SQL would take the processor.
    for path in ("/api/search?query=mug", "/api/ask/groups?run=demo", "/api/stream?run=demo"):
        assert get(home, path, headers=headers)[0] == 403


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS"])
def test_a_stream_is_for_readers_alone(method: str, home: Path) -> None:
    async def run(client: TestClient) -> int:
        return (await client.request(method, "/api/stream?run=demo", headers=BEARER)).status

    assert asked(home, run) == 405


def test_a_stream_has_the_headers_of_every_answer(home: Path) -> None:
    async def run(client: TestClient) -> dict[str, str]:
        async with client.get("/api/stream?run=demo", headers=BEARER) as answer:
            return dict(answer.headers)

    got = {name.lower(): value for name, value in asked(home, run).items()}
    assert {name: got.get(name) for name in HEADERS} == HEADERS


def test_a_cursor_of_another_log_waits_for_nothing_that_never_comes(home: Path) -> None:
    assert within(
        {("rewards", 0): 99, ("updates", 3): 5, ("decisions", 0): 1}, {("rewards", 0): 12, ("decisions", 0): 4}
    ) == {
        ("rewards", 0): 12,
        ("updates", 3): 0,
        ("decisions", 0): 1,
    }

    async def run(client: TestClient) -> Any:
        async with client.get(f"/api/stream?run=demo&from={FAR}", headers=BEARER) as answer:
            first = await told(answer, 3)
            # What comes from now on is told, though its offsets lie far below the cursor that was sent.
            write_run(home, whole_run(16)[len(whole_run(12)) :])
            return first, await told(answer, 2)

    (old, updates, begun), later = asked(home, run)
    assert (old["id"], begun["id"]) == (FAR, "rewards.0:12,updates.0:3")
    assert [row["record_offset"] for row in json.loads(updates["data"])["rows"]] == [2]
    offsets = {each["event"]: [row["record_offset"] for row in json.loads(each["data"])["rows"]] for each in later}
    assert offsets == {"rewards": [12, 13, 14, 15], "updates": [3]}


def test_a_run_that_is_removed_ends_its_streams_with_a_sentence(home: Path) -> None:
    async def run(client: TestClient) -> Any:
        async with client.get("/api/stream?run=demo", headers=BEARER) as answer:
            await told(answer, 1)
            shutil.rmtree(home / "runs" / "demo")
            return await told(answer, 1), await answer.content.read()

    (said,), rest = asked(home, run)
    assert str(home) in json.loads(said["data"])["state"] and rest == b""  # Or what of it was there at that moment.


def test_every_part_of_a_reward_and_every_measure_of_an_update_has_plain_words() -> None:
    outcomes = reward(0).outcomes
    measured = SetMeasurements([0.1], [0.2], raw_size=1, union_size=2, terms=1, reach=Reach([1.0], [0.0], [1.0]))
    _, leser = leser_reward(measured, LeserSettings(reach_weight=1.0))
    _, resume = resume_reward(
        positives=[0.5],
        negatives=[0.1],
        document_positives=[0.4],
        document_negatives=[0.2],
        tokens=10,
        settings=ResumeSettings(),
    )
    _, relsum = relsum_reward([Scored(logit=1.0, probability=0.7, label=1, others=[0.1])], 10, RelsumSettings())
    assert set(leser) | set(resume) | set(relsum) <= set(PARTS)
    assert set(reward_metrics(outcomes)) | {"logprob_difference_max", "grad_norm", "flat_share"} <= set(METRICS)


def compared_run(home: Path, before: str, after: str, *, rival: str | None = None) -> Path:
    """Write a run with an evaluation. before, after, rival: the queries on which a row is right, such as `3-19`."""
    others = {} if rival is None else {"shown": hits(rival)}
    folder = write_run(home, whole_run(4))
    (folder / "evaluation.json").write_bytes(msgspec.json.encode(compared(hits(before), hits(after), **others)))
    return folder


@pytest.mark.parametrize(
    ("before", "after", "rival", "level", "said"),
    [
        ("0-3", "0-17", None, "good", "search got better: +0.700 "),
        ("0-3", "0-17", "0-17", "warn", "is not shown to beat “shown”"),
        ("0-17", "0-3", None, "bad", "search got worse: -0.700 "),
        ("0-9", "1-10", None, "unknown", "no difference was shown"),
    ],
)
def test_the_overview_knows_what_held_out_queries_say(
    before: str, after: str, rival: str | None, level: str, said: str, tmp_path: Path
) -> None:
    compared_run(tmp_path, before, after, rival=rival)
    _, found, _ = get(tmp_path, "/api/overview?run=demo")
    (learns,) = [each for each in found["health"]["statements"] if each["question"] == "Is it learning?"]
    assert (learns["level"], learns["link"]) == (level, "/versions") and said in learns["says"]


def test_a_damaged_evaluation_leaves_the_overview(tmp_path: Path) -> None:
    (compared_run(tmp_path, "0-3", "0-17") / "evaluation.json").write_bytes(b"{")
    status, found, _ = get(tmp_path, "/api/overview?run=demo")
    assert status == 200 and "no dev queries are measured" in found["health"]["statements"][0]["says"]


def test_held_out_queries_are_told_one_by_one_with_their_texts(tmp_path: Path) -> None:
    folder = compared_run(tmp_path, "0-3", "1-17")
    (folder / "settings.json").write_text('{"recipe": "leser", "index": "shop"}')
    intents = Home(tmp_path).index("shop").intents
    intents.mkdir(parents=True)
    (intents / "queries.test.jsonl").write_bytes(
        b'{"_id": "q0", "text": "'
        + VILE.replace('"', '\\"').encode()
        + b'"}\nno json\n{"_id": "q4", "text": "red mug"}\n'
    )
    (found,) = get(tmp_path, "/api/evaluated?run=demo")[1]["evaluated"]
    assert (found["row"], found["baseline"], found["measure"]) == ("policy", "raw", found["measure"])
    assert (found["better"], found["worse"], found["in_all"]) == (14, 1, 20)
    changes = {each["query_id"]: each["change"] for each in found["queries"]}
    assert len(changes) == 20 and next(iter(changes)) == "q0"
    assert (changes["q0"], changes["q1"], changes["q4"], changes["q19"]) == (-1.0, 0.0, 1.0, 0.0)
    assert {each["query_id"]: each["text"] for each in found["queries"] if each["text"]} == {
        "q0": VILE,
        "q4": "red mug",
    }


@pytest.mark.parametrize("index", ["../../etc-1", "a/b-1", "\u202e-1", ""])
def test_a_group_with_an_index_name_that_is_none_is_shown(index: str, tmp_path: Path) -> None:
    judged = msgspec.structs.replace(reward(0), index=index)
    write_run(tmp_path, in_log_order([judged]))
    status, found, _ = get(tmp_path, f"/api/group?run=demo&group={judged.group_id}")
    assert (status, found["index"], len(found["candidates"])) == (200, index, 8)


def test_many_open_pages_ask_a_log_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, asked_for = 30, 0

    async def run(client: TestClient) -> list[list[int]]:
        ledgers = client.app[LEDGERS]  # type: ignore[index]
        work = ledgers.work

        async def counted(*given: Any) -> Any:
            nonlocal asked_for
            asked_for += 1
            return await work(*given)

        ready, go = asyncio.Semaphore(0), asyncio.Event()

        async def page() -> list[int]:
            async with client.get("/api/stream?run=demo", headers=BEARER) as answer:
                await told(answer, 1)
                ready.release()
                await go.wait()
                news = await told(answer, 2)
                return [row["record_offset"] for each in news for row in json.loads(each["data"])["rows"]]

        open_pages = [asyncio.ensure_future(page()) for _ in range(pages)]
        for _ in range(pages):
            await ready.acquire()
        await asyncio.sleep(1)  # Each has looked once.
        monkeypatch.setattr(ledgers, "work", counted)
        write_run(home, whole_run(16)[len(whole_run(12)) :])
        go.set()
        return await asyncio.gather(*open_pages)

    assert asked(home, run) == [[12, 13, 14, 15, 3]] * pages
    assert asked_for < pages


@pytest.mark.parametrize("text", ["=1+1", "\n=1+1", " =1+1", "\u00a0@SUM(1)", "\t=1", "+1", "-1", "\r=1"])
def test_no_cell_of_a_csv_begins_a_formula(text: str, tmp_path: Path) -> None:
    write_run(tmp_path, whole_run(4, query=text))
    _, found, _ = get(tmp_path, "/api/ask/groups.csv?run=demo")
    rows = list(csv.reader(io.StringIO(found, newline="")))
    assert {row[0] for row in rows[1:]} == {f"'{text}"}


CLOCKS = [0, -1, -(10**15), 2**53, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("clock", CLOCKS)
def test_clocks_that_are_far_off_take_no_page_away(clock: int, tmp_path: Path) -> None:
    events: list[Any] = [decode(each.value) for each in whole_run(12)]
    events += [*(impression_outcome(number) for number in range(8)), decision(0), dev_score(0), dev_score(1)]
    changed = []
    for event in events:
        times = {name: clock for name in ("made_at_ms", "at_ms") if name in event.__struct_fields__}
        if isinstance(event, ImpressionOutcome):
            times["impression"] = msgspec.structs.replace(event.impression, at_ms=clock)
        changed.append(msgspec.structs.replace(event, **times))
    write_run(tmp_path, in_log_order(changed))

    async def run(client: TestClient) -> dict[str, str]:
        asked_for = [f"ask/{name}" for name in saved_questions()] + ["overview", "alerts", "people", "ramp", "group"]
        wrong = {}
        for path in asked_for:
            given = {"run": "demo", "group": generation(1).group_id}
            answer = await client.get(f"/api/{path}", params=given, headers=BEARER)
            if answer.status != 200:
                wrong[path] = await answer.text()
        sql = "SELECT view_name FROM duckdb_views() WHERE NOT internal"
        answer = await client.post("/api/sql", json={"run": "demo", "sql": sql}, headers=BEARER)
        views = [row[0] for row in (await answer.json())["rows"]]
        assert "version_lineage" in views
        for view in views:
            given = {"run": "demo", "sql": f"SELECT * FROM {view}"}
            answer = await client.post("/api/sql", json=given, headers=BEARER)
            if answer.status != 200:
                wrong[view] = await answer.text()
        return wrong

    assert asked(tmp_path, run) == {}


def test_a_time_beyond_the_years_of_python_is_a_text(home: Path) -> None:
    far = "SELECT make_timestamp($a), make_timestamp(-1000000000000000000), [make_timestamp($a)], 1"
    far = far.replace("$a", "9007199254740992000")
    status, found = post(home, "/api/sql", {"run": "demo", "sql": far})
    assert status == 200
    assert (found["rows"][0][1], found["rows"][0][3]) == ("-29719-04-05 22:13:20.000000", 1)
    assert all(isinstance(each, str) for each in found["rows"][0][:3])
