"""The server as a process over real Elasticsearch and Kafka: what it answers, what it keeps, and whom it lets in."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import TopicPartition

from infra.app.home import Home
from search_env.catalogue.corpora import Document
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.index import build_index
from search_env.leser.expansion_cache import Expanded, ExpansionCache
from search_env.serving.team_draft import interleave
from services.local import Endpoints
from streams.clients import create_topics, existing_topics, partitions_of
from streams.codec import decode
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.topics import topic_name
from streams.traffic_events import Impression, UserAction
from tests.commands import ROOT, command, environment
from tests.kafka_cluster import wait_until

DOCUMENTS = [
    Document(id=f"p{n}", title=f"{colour} {kind}", text="")
    for n, (colour, kind) in enumerate((c, k) for c in ("red", "blue", "green") for k in ("mug", "cup", "lamp"))
]
VERSION = "1-abcdef-000004"
DEAD = "127.0.0.1:1"


class Server:
    """A server's process and its address."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self._answer(urllib.request.Request(self.url + path, headers=headers))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._answer(urllib.request.Request(self.url + path, data=content, headers=headers))

    def _answer(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")


@pytest.fixture
def shop(tmp_path: Path, local_services: Endpoints, unique_name: str) -> Iterator[tuple[Path, str]]:
    """Give a home with an index and one ready answer, and the index's name."""
    with contextlib.closing(connect(ElasticsearchSettings(url=local_services.elasticsearch))) as client:
        version = build_index(
            client, unique_name, DOCUMENTS, installation="test", directory=Home(tmp_path).index(unique_name)
        )
        keep_answer(tmp_path, unique_name, version.name, "mug", "cup")
        yield tmp_path, unique_name
        client.indices.delete(index=version.name)


def keep_answer(home: Path, run: str, index_version: str, query: str, *words: str) -> None:
    cache = ExpansionCache(Home(home).run(run), policy=VERSION, index_version=index_version)
    cache.keep([Expanded(query_id="q", query=query, expansions=words, valid=True, text="", policy=VERSION)])


@contextlib.contextmanager
def serving(
    home: Path, index: str, services: Endpoints, *arguments: str, ended: int | None = 0, **variables: str
) -> Iterator[Server]:
    """Start a server on a free port, and end it with SIGTERM; it must end with this status."""
    given = environment(services) | {
        "SEARCHLOOP_SERVE__RELOAD_SECONDS": "0.2",
        "SEARCHLOOP_SERVE__UNGATED": "true",
        **variables,
    }
    process = subprocess.Popen(
        command(home, "serve", "--index", index, "--run", index, "--policy", "none", "--port", "0", *arguments),
        cwd=ROOT,
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http"), line
    try:
        yield Server(process, line.split()[0])
    finally:
        if process.poll() is None:
            process.terminate()
        status = process.wait(60)
    assert ended is None or status == ended


def in_kafka(services: Endpoints, run: str, kind: str) -> list[Any]:
    kafka = KafkaSettings(bootstrap=services.kafka, partitions=1)
    if not existing_topics(kafka, [topic_name(run, kind)]):
        return []
    bounds = log_bounds(kafka, partitions_of(kafka, [topic_name(run, kind)]))
    return [
        decode(record.value)
        for item, (start, end) in bounds.items()
        for record in read_range(kafka, TopicPartition(*item), start, end, client_id="test")
    ]


def click(impression: str, document: str = "p0", event: str = "") -> dict[str, Any]:
    named = {"event_id": event} if event else {}
    return {
        "action_name": "click",
        "query_id": impression,
        "event_attributes": {"object": {"object_id": document}, **named},
    }


def test_a_search_is_answered_and_logged_with_its_propensity_and_its_clicks_follow(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    with serving(home, index, local_services) as server:
        raw = server.get("/search?query=mug&size=5&helped=raw&client_id=c1")[1]
        helped = server.get(f"/search?query=mug&size=9&helped={VERSION}")[1]
        drawn = [server.post("/search", {"query": "Mug", "size": 3})[1] for _ in range(40)]
        words = server.get("/expand?query=mug")[1]
        answered = server.post("/events", [click(raw["query_id"]), click(raw["query_id"]), {"nothing": 1}])
        assert server.get("/ready")[1]["ready_answers"] == 1
    assert {hit["id"] for hit in raw["hits"]} == {"p0", "p3", "p6"}
    assert {hit["id"] for hit in helped["hits"]} == {"p0", "p3", "p6", "p1", "p4", "p7"}
    assert (raw["policy"], raw["action_propensity"], helped["expansions"]) == ("", 1.0, ["cup"])
    assert Counter(each["policy"] for each in drawn).keys() == {"", VERSION}
    assert words["offered"].keys() == {"", VERSION}
    assert answered == (200, {"accepted": 2, "refused": [{"event": 2, "reason": answered[1]["refused"][0]["reason"]}]})
    logged = {each.impression_id: each for each in in_kafka(local_services, index, "impressions")}
    assert set(logged) == {each["query_id"] for each in [raw, helped, *drawn]}
    for each in drawn:
        impression = logged[each["query_id"]]
        assert (impression.policy, impression.action_propensity) == (each["policy"], each["action_propensity"])
        assert impression.offered == words["offered"]
        assert [shown.document_id for shown in impression.shown] == [hit["id"] for hit in each["hits"]]
    clicks = in_kafka(local_services, index, "actions")
    assert len(clicks) == 2
    assert len({each.action_id for each in clicks}) == 1, "the same click twice has one id"


def test_interleaved_results_are_two_rankings_in_one_list_and_logged_with_their_teams(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    with serving(home, index, local_services, SEARCHLOOP_SERVE__INTERLEAVE="1") as server:
        raw, helped = (server.get(f"/search?query=mug&size=4&helped={name}")[1] for name in ("raw", VERSION))
        mixed = [server.get("/search?query=mug&size=4")[1] for _ in range(20)]
        alone = server.get("/search?query=oak&size=4")[1]
    assert (raw["interleaved"], alone["interleaved"]) == ([], []), "no version has an answer for the last one"
    rankings = {name: [hit["id"] for hit in each["hits"]] for name, each in (("", raw), (VERSION, helped))}
    logged = {each.impression_id: each for each in in_kafka(local_services, index, "impressions")}
    for each in mixed:
        impression = logged[each["query_id"]]
        assert (each["interleaved"], each["action_propensity"]) == (["", VERSION], None)
        again = interleave(rankings, size=4, impression_id=each["query_id"])
        assert ([shown.document_id for shown in impression.shown], list(impression.teams)) == again
    assert len({logged[each["query_id"]].teams for each in mixed}) > 1


def test_no_id_of_a_person_is_kept_anywhere_and_who_is_forgotten_is_somebody_new_at_once(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    secret = {"client_id": "anna@example.org", "session_id": "tour-of-anna"}
    query = {**UBI_QUERY, **secret}

    def once(server: Server) -> None:
        assert server.post("/search", {"query": "mug", **secret})[0] == 200
        number = len(list(home.rglob("*")))  # Another query id each time.
        assert server.post("/events", {**query, "query_id": f"i{number}-{time.monotonic_ns()}"})[0] == 200
        for _ in range(2):
            assert server.post("/events", {**click("i"), **secret, "timestamp": "2025-11-24T16:00:00Z"})[0] == 200

    with serving(home, index, local_services) as server:
        once(server)
        forgotten = subprocess.run(
            command(home, "listen", "--forget", "-", "--json"),
            env=environment(local_services),
            cwd=ROOT,
            input=secret["client_id"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(forgotten.stdout) == {"asked": 1, "forgotten": 1}
        once(server)
        raw = [path for path in home.rglob("*") if path.is_file()]
        assert not [path for path in raw if b"anna" in path.read_bytes()]
    seen = in_kafka(local_services, index, "impressions")
    pairs = Counter((each.client, each.session) for each in seen)
    assert sorted(pairs.values()) == [2, 2], "served and sent impressions of one person agree, before and after"
    assert all(len(name) == 32 for pair in pairs for name in pair)
    acts = Counter(each.action_id for each in in_kafka(local_services, index, "actions"))
    assert sorted(acts.values()) == [2, 2], "an action sent twice has one id, and none after the secret is gone"


UBI_QUERY = {"user_query": "mug", "query_response_hit_ids": ["p0"], "application": "shop"}

HOSTILE = [
    '"}}, "query": {"match_all": {}}',
    "*:*",
    "mug~ OR /.*/",
    "{{query}}",
    "<script>alert(1)</script>",
    "mug\u0000\u202e",
]


def test_hostile_requests_get_an_answer_that_says_what_was_expected(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    limits = {
        "SEARCHLOOP_SERVE__BODY_KIB_MAX": "64",
        "SEARCHLOOP_SERVE__EVENTS_MAX": "50",
        "SEARCHLOOP_SERVE__READ_SECONDS": "1",
    }
    with serving(home, index, local_services, **limits) as server:
        for query in HOSTILE:
            status, answer = server.post("/search", {"query": query, "helped": "raw"})
            assert status == 200
            assert {hit["id"] for hit in answer["hits"]} <= {"p0", "p3", "p6"}, "words are matched, nothing else"
        for path, body, code, said in [
            ("/search", {"query": "x" * 10_000}, 400, "at most 512 characters"),
            ("/search", {"query": ""}, 400, "visible characters"),
            ("/search", {"query": 7}, 400, "query: a text"),
            ("/search", {"query": "mug", "size": 10**9}, 400, "size: a whole number"),
            ("/search", {"query": "mug", "size": "x"}, 400, "size: a whole number"),
            ("/search", {"query": "mug", "helped": "v9"}, 404, "helped: auto, raw, or a version"),
            ("/search", b"[" * 60_000, 400, "a JSON object"),
            ("/search", b"[1]", 400, "a JSON object"),
            ("/search", b'{"query": "\xff"}', 400, "a JSON object"),
            ("/events", b"x" * 10_000_000, 413, "a body of at most"),
            ("/events", [click("i")] * 51, 413, "at most 50 events"),
            ("/events", b"\xff", 400, "JSON"),
            ("/events", b'{"action_name": "\xff"}', 400, "JSON"),
            ("/summaries", {"ids": ["x" * 600]}, 400, "ids: a list"),
        ]:
            try:
                status, answer = server.post(path, body)
            except (ConnectionError, urllib.error.URLError):
                assert code == 413, "only a body that is too large may be cut off while it comes"
                continue
            assert (status, said in answer["expected"]) == (code, True), (path, answer)
        assert server.get("/nothing")[0] == 404
        assert server.get("/events")[0] == 405
        host, port = server.url.removeprefix("http://").split(":")
        for head in (b"", b"POST /events HTTP/1.1\r\nhost: x\r\n", b"GET /search?query=mug HTTP/1.1\r\n"):
            with socket.create_connection((host, int(port))) as slow:
                slow.sendall(head)
                slow.settimeout(20)
                with contextlib.suppress(ConnectionResetError):
                    assert slow.recv(100) == b"", "a client that sends no whole head is closed"
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /events HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            slow.settimeout(20)
            assert b"408" in slow.recv(1000)
        assert server.get("/search?query=mug")[0] == 200


def test_a_token_and_an_origin_are_asked_for(shop: tuple[Path, str], local_services: Endpoints) -> None:
    home, index = shop
    given = {"SEARCHLOOP_SERVE__TOKEN": "geheim-token", "SEARCHLOOP_SERVE__ORIGINS": '["https://shop.example"]'}
    with serving(home, index, local_services, **given) as server:
        assert server.get("/search?query=mug")[0] == 401
        assert server.get("/search?query=mug", authorization="Bearer geheim-tokem")[0] == 401
        assert server.get("/search?query=mug", authorization="Bearer geheim-token")[0] == 200
        assert server.get("/health") == (200, {"status": "alive"})
        # A page cannot keep a token: its origin lets it in, for events alone.
        assert server.post("/events", click("i"), origin="https://shop.example")[0] == 200
        assert server.post("/events", click("i"), origin="https://evil.example")[0] == 403
        assert server.post("/search", {"query": "mug"}, origin="https://shop.example")[0] == 401
        assert server.post("/events", click("i"))[0] == 401
    refused = subprocess.run(
        command(home, "serve", "--index", index, "--policy", "none"),
        env=environment(local_services) | {"SEARCHLOOP_SERVE__HOST": "0.0.0.0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "expected a token for an address beyond this machine" in refused.stderr


def test_without_kafka_answers_go_on_and_a_killed_server_has_lost_no_event(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    told: list[str] = []
    with serving(
        home, index, local_services, ended=None, SEARCHLOOP_KAFKA__BOOTSTRAP=DEAD, SEARCHLOOP_KAFKA__CONNECT_SECONDS="1"
    ) as server:
        for number in range(30):
            status, answer = server.get("/search?query=mug")
            assert (status, answer["logged"]) == (200, True)
            told.append(answer["query_id"])
            assert server.post("/events", click(answer["query_id"], event=f"e{number}"))[0] == 200
        assert server.get("/ready")[1]["events_waiting_bytes"] > 0
        server.process.send_signal(signal.SIGKILL)
    with serving(home, index, local_services) as server:
        wait_until(lambda: server.get("/ready")[1]["events_waiting_bytes"] == 0, "the events of the killed server")
    impressions, actions = (in_kafka(local_services, index, kind) for kind in ("impressions", "actions"))
    assert [type(each) for each in (impressions[0], actions[0])] == [Impression, UserAction]
    assert {each.impression_id for each in impressions} == set(told)
    assert {each.action_id for each in actions} == {f"e{number}" for number in range(30)}


def test_without_elasticsearch_a_search_says_so_and_words_and_events_go_on(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    with serving(home, index, local_services) as server:
        assert server.get("/search?query=mug")[0] == 200
    # The engine that `serve` found at its start goes away afterwards: a proxy that is closed stands for it.
    with proxy(local_services.elasticsearch) as (url, close):
        services = Endpoints(kafka=local_services.kafka, elasticsearch=url)
        with serving(home, index, services) as server:
            assert server.get("/search?query=mug")[0] == 200
            close()
            status, answer = server.get("/search?query=mug")
            assert (status, answer["error"]) == (503, "the search engine is away")
            assert server.get("/expand?query=mug")[0] == 200
            assert server.post("/events", click("i"))[0] == 200


def test_new_answers_are_taken_over_under_load_without_a_failed_request(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    statuses: Counter[int] = Counter()
    stop = threading.Event()
    with serving(home, index, local_services, "--workers", "1") as server:

        def load() -> None:
            while not stop.is_set():
                statuses[server.get("/expand?query=lamp&helped=auto")[0]] += 1

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        version = json.loads((Home(home).index(index) / "manifest.json").read_text())["name"]
        for number in range(20):
            keep_answer(home, index, version, "lamp", f"word{number}")
            time.sleep(0.05)
        wait_until(lambda: server.get(f"/expand?query=lamp&helped={VERSION}")[1].get("expansions") == ["word19"], "it")
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert statuses[200] > 50


def test_a_request_under_way_is_answered_when_the_server_ends(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    with proxy(local_services.elasticsearch, delay=1.0) as (url, _):
        services = Endpoints(kafka=local_services.kafka, elasticsearch=url)
        with serving(home, index, services) as server:
            found: list[tuple[int, Any]] = []
            thread = threading.Thread(target=lambda: found.append(server.get("/search?query=mug")))
            thread.start()
            time.sleep(0.5)
            server.process.terminate()
            thread.join()
            assert found[0][0] == 200
    assert len(in_kafka(local_services, index, "impressions")) == 1


@contextlib.contextmanager
def several(home: Path, index: str, services: Endpoints, *, count: int, **variables: str) -> Iterator[Server]:
    """Start server processes behind one port; what they say goes to the file `said` in the home."""
    with (home / "said").open("w") as said:
        process = subprocess.Popen(
            command(
                home,
                *("serve", "--index", index, "--run", index, "--policy", "none", "--port", "0"),
                "--workers",
                str(count),
            ),
            cwd=ROOT,
            env=environment(services) | variables,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http"), (home / "said").read_text()
        yield Server(process, line.split()[0])
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def server_processes(server: Server) -> dict[int, psutil.Process]:
    """Return the living processes behind a port, by number."""
    found = {}
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            line = child.cmdline()
            if "--worker" in line:
                found[int(line[line.index("--worker") + 1])] = child
    return found


def test_a_killed_server_process_starts_again_and_no_event_is_lost(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    accepted: list[str] = []
    failed: list[float] = []
    ended, searched = threading.Event(), Counter[int]()
    with several(home, index, local_services, count=2) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for reuse in (0, 1):
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
                with pytest.raises(OSError, match="in use"):
                    other.bind((host, int(port)))

        def load(thread: int) -> None:
            number = 0
            while not ended.is_set():
                name = f"e{thread}-{number}"
                try:
                    if server.post("/events", click("i", event=name))[0] == 200:
                        accepted.append(name)
                    searched[server.get("/search?query=mug")[0]] += 1
                    number += 1
                except (OSError, http.client.HTTPException):
                    failed.append(time.monotonic())  # The same event is sent again.

        threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        said = home / "said"
        again: list[float] = []
        for kill in range(1, 4):
            before = len(accepted)
            wait_until(lambda before=before: len(accepted) > before + 50, "events")  # type: ignore[misc]
            server_processes(server)[1 + kill % 2].kill()
            wait_until(lambda kill=kill: said.read_text().count("answers again") == kill, "the next life")  # type: ignore[misc]
            again.append(time.monotonic())
        before = len(accepted)
        wait_until(lambda: len(accepted) > before + 100, "events after the last restart")
        ended.set()
        for thread in threads:
            thread.join()
        assert said.read_text().count("died by signal 9; it starts again") == 3
        assert not [at for at in failed if at > again[-1]], "no request fails after the restart"
        assert set(searched) == {200}
        assert set(server_processes(server)) == {1, 2}
        server.process.terminate()
        assert server.process.wait(60) == 0
    with serving(home, index, local_services) as one, serving(home, index, local_services, "--worker", "2") as two:
        for left in (one, two):  # What a worker had no time to send, the next server sends.
            wait_until(lambda left=left: left.get("/ready")[1]["events_waiting_bytes"] == 0, "the rest")  # type: ignore[misc]
    kept = Counter(each.action_id for each in in_kafka(local_services, index, "actions"))
    assert set(accepted) - set(kept) == set(), "an event that was acknowledged is in Kafka"
    assert len(accepted) > 250


def test_topics_that_a_killed_process_made_and_did_not_write_down_are_used_by_all(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    kafka = KafkaSettings(bootstrap=local_services.kafka)
    create_topics(kafka, index)  # Without a folder: no file says whose they are.
    with serving(home, index, local_services, "--worker", "2") as two:
        assert two.post("/events", click("i", event="two"))[0] == 200
        wait_until(lambda: two.get("/ready")[1]["events_waiting_bytes"] == 0, "the second process's event")
        with serving(home, index, local_services) as one:
            assert one.post("/events", click("i", event="one"))[0] == 200
            wait_until(lambda: one.get("/ready")[1]["events_waiting_bytes"] == 0, "the first process's event")
    assert {each.action_id for each in in_kafka(local_services, index, "actions")} == {"one", "two"}


def test_sigterm_drains_every_server_process_and_so_does_the_end_of_their_parent(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    for number, ending in enumerate((signal.SIGTERM, signal.SIGKILL), start=1):
        with proxy(local_services.elasticsearch, delay=1.0) as (url, _):
            services = Endpoints(kafka=local_services.kafka, elasticsearch=url)
            with several(home, index, services, count=2) as server:
                living = list(server_processes(server).values())
                assert len(living) == 2
                found: list[int] = []

                def search(server: Server = server, found: list[int] = found) -> None:
                    found.append(server.get("/search?query=mug")[0])

                threads = [threading.Thread(target=search) for _ in range(6)]
                for thread in threads:
                    thread.start()
                time.sleep(0.5)  # The requests are with Elasticsearch, whose answers take a second.
                server.process.send_signal(ending)
                for thread in threads:
                    thread.join()
                assert found == [200] * 6
                assert psutil.wait_procs(living, timeout=30)[1] == []
        assert len(in_kafka(local_services, index, "impressions")) == 6 * number


def test_a_server_process_that_cannot_start_ends_all_with_its_reason(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, _ = shop
    ended = subprocess.run(
        command(home, "serve", "--index", "nowhere", "--policy", "none", "--port", "0", "--workers", "2"),
        env=environment(local_services),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "ended with status 1 before it answered" in ended.stderr
    assert "nowhere" in ended.stderr


@contextlib.contextmanager
def proxy(url: str, *, delay: float = 0.0) -> Iterator[tuple[str, Any]]:
    """Give an address that passes bytes on to another one, each answer `delay` seconds late, until it is closed."""
    host, port = url.removeprefix("http://").split(":")
    door = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = [door]

    def carry(source: socket.socket, target: socket.socket, wait: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if wait and b"_search" not in data and b"hits" in data:
                    time.sleep(wait)
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = door.accept()
                far = socket.create_connection((host, int(port)))
                open_sockets.extend([near, far])
                for source, target, wait in ((near, far, 0.0), (far, near, delay)):
                    threading.Thread(target=carry, args=(source, target, wait), daemon=True).start()

    def close() -> None:
        for each in open_sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}", close
    finally:
        close()
