"""The first hour of infra/LIVE.md: attach, serve, listen, train on what people asked, compare, promote, take back."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from elasticsearch import Elasticsearch

from infra.app.home import Home
from search_env.engine.index import load_manifest
from search_env.leser.expansion_cache import Expanded, ExpansionCache
from services.local import Endpoints
from storage.log import open_log
from streams.secrets import reveal
from tests.browser.test_snippet import PAGE, pages, visit
from tests.commands import ROOT, command, environment
from tests.kafka_cluster import wait_until
from tests.loop.conftest import SMALL
from tests.secure_services import as_role
from tests.services.test_attach import KINDS, made_key, owner, rows, secure, template, winkel
from tests.services.test_serving import Server

__all__ = ["owner", "secure", "winkel"]

CUSTOMERS = 30
LEARNED = "learned-in-the-first-hour"  # Other tests on this Kafka have runs of their own.


class Engineer:
    """Somebody with a home, the address of a Kafka, and a key that may read one shop."""

    def __init__(self, home: Path, variables: dict[str, str]) -> None:
        self.home = home
        self.variables = variables

    def calls(self, *arguments: str) -> str:
        """Call the command, and return its output; it must succeed."""
        ended = subprocess.run(
            command(self.home, *arguments), cwd=ROOT, env=self.variables, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stdout

    @contextlib.contextmanager
    def serves(self, *arguments: str, **variables: str) -> Iterator[Server]:
        """Serve the shop on a free port until the end of the block."""
        process = subprocess.Popen(
            command(self.home, "serve", "--index", "shop", "--port", "0", *arguments),
            cwd=ROOT,
            env=self.variables | variables,
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
            process.terminate()
            assert process.wait(60) == 0


@pytest.fixture
def engineer(secure: Home, winkel: str, local_services: Endpoints, tmp_path: Path) -> Engineer:
    engine = as_role(secure).connections.elasticsearch
    key = made_key(secure, {"r": {"cluster": [], "indices": [{"names": [winkel, "winkel-*"], "privileges": ["read"]}]}})
    settings = msgspec.structs.replace(
        SMALL,
        intents=msgspec.structs.replace(SMALL.intents, queries=100),
        dev=msgspec.structs.replace(SMALL.dev, every=0),
    )
    variables = environment(Endpoints(kafka=local_services.kafka, elasticsearch=engine.url), settings)
    doors = {"API_KEY": reveal(key), "CA_CERTS": engine.ca_certs}
    # Simulated people click at once. Without this, those who find more would be bots, and the ramp would be held.
    variables["SEARCHLOOP_JOIN__BOTS__DWELL_MS"] = "0"
    return Engineer(tmp_path / "home", variables | {f"SEARCHLOOP_ELASTICSEARCH__{k}": v for k, v in doors.items()})


def everything(owner: Elasticsearch) -> Any:
    """Return what the owner's cluster holds: indexes with their mappings, aliases, and the number of documents."""
    count = owner.count(index="winkel")["count"]
    return owner.indices.get(index="*").body, owner.indices.get_alias(index="*").body, count


@pytest.mark.timeout(1_800)
def test_an_engineers_first_hour(owner: Elasticsearch, engineer: Engineer, tmp_path: Path) -> None:
    before = everything(owner)
    said = engineer.calls(
        *(
            "attach",
            "winkel",
            "--name",
            "shop",
            "--template",
            str(template(tmp_path)),
            "--id",
            "sku",
            "--title",
            "naam",
        ),
        *("--text", "omschrijving", "--attributes", "kenmerken", "--sample", "300"),
    )
    assert "beside 'winkel' with 900 documents, 300 read" in said
    content: dict[str, str] = {}
    asked = [f"{row['kenmerken']['material']} {row['naam'].split()[1]}" for row in rows()][:CUSTOMERS]
    with pages(content) as origin, engineer.serves(SEARCHLOOP_SERVE__ORIGINS=f'["{origin}"]') as server:
        for query in asked:
            status, found = server.post("/search", {"query": query, "client_id": f"c{len(query)}"})
            assert (status, found["policy"], found["logged"]) == (200, "", True)
            for hit in found["hits"][:1]:
                click = {"action_name": "click", "query_id": found["query_id"]}
                click |= {"event_attributes": {"object": {"object_id": hit["id"]}}}
                assert server.post("/events", click)[0] == 200
        found = server.get("/search?query=mug")[1]
        first, second = (hit["id"] for hit in found["hits"][:2])
        page = PAGE.replace("p0", first).replace("p3&quot;<x>", second)
        content["page"] = page.format(server=server.url, query_id=found["query_id"], views="")
        visit(origin, tmp_path / "profile")
        wait_until(lambda: server.get("/ready")[1]["events_waiting_bytes"] == 0, "the events to reach Kafka")
    counts = json.loads(engineer.calls("listen", "--run", "live", "--until-read", "--json"))
    assert (counts["impressions"], counts["final"], counts["open"]) == (CUSTOMERS + 1, CUSTOMERS + 1, 0)
    with open_log(Home(engineer.home).run("live")) as log:
        rows_of = log.rows("SELECT query, len(actions) AS done, action_propensity FROM final_outcomes")
    assert sorted({row["query"] for row in rows_of}) == sorted({*asked, "mug"})
    assert {row["done"] for row in rows_of if row["query"] == "mug"} == {2}, "the snippet's click and its add_to_cart"
    assert {row["action_propensity"] for row in rows_of} == {1.0}
    (account,) = json.loads(engineer.calls("verify", "--run", "live", "--json"))
    assert (account["verdict"], account["findings"]) == ("sound", [])

    summary = json.loads(
        engineer.calls("train", "--index", "shop", "--traffic", "live", "--run", LEARNED, "--updates", "2", "--json")
    )
    assert summary["updates"] == 2
    with open_log(Home(engineer.home).run(LEARNED)) as log:
        trained_on = {row["query"] for row in log.rows("SELECT DISTINCT query FROM rewards")}
    assert trained_on & set(asked), "people's queries train"
    hour = PromotedHour(engineer, tmp_path)
    with engineer.serves(
        "--learned", LEARNED, "--policy", "latest", SEARCHLOOP_SERVE__TAIL_BUDGET_MS="10000", **EXPLORING
    ) as server:
        words = server.get("/expand?query=steel+mug")[1]
        version = server.get("/ready")[1]["policy"]
        assert (words["offered"], words["policy"]) == ({"": 1.0}, ""), "nobody is served before the gate"
        assert version.endswith("-000002")
        hour.goes_on(server, version)
    assert everything(owner) == before, "nothing is written to the owner's cluster"


SYNONYMS = {"crimson": "red", "emerald": "green", "navy": "blue", "ebony": "black", "ivory": "white"}
OPPOSITES = dict(zip(SYNONYMS, [*list(SYNONYMS.values())[1:], "red"], strict=True))
# Short stages, and a large share for exploration: so the hour ends within minutes of this machine.
EXPLORING = {
    "SEARCHLOOP_SERVE__EPSILON": "0.8",
    "SEARCHLOOP_SERVE__INTERLEAVE": "0.4",
    "SEARCHLOOP_SERVE__RELOAD_SECONDS": "0.2",
    "SEARCHLOOP_SERVE__SEARCH_TIMEOUT_MS": "9000",
}
RAMPING = {
    "SEARCHLOOP_RAMP__STAGES": "[0.5, 0.6, 1.0]",
    "SEARCHLOOP_RAMP__IMPRESSIONS_MIN": "60",
    "SEARCHLOOP_RAMP__HARM_MAX": "0.3",
}


class PromotedHour:
    """The rest of the hour: compare, promote, break the version, and see it taken back. The people are simulated."""

    def __init__(self, engineer: Engineer, folder: Path) -> None:
        self._engineer = engineer
        engineer.variables |= EXPLORING | RAMPING
        self._queries, self._qrels = folder / "judged.jsonl", folder / "judged.tsv"
        self._seed = 0
        shop = [row for row in rows() if row["voorraad"] >= 1]
        self._asked = {f"{word} {kind}": word for kind in KINDS for word in SYNONYMS}
        lines, judgments = [], ["query-id\tcorpus-id\tscore"]
        for number, (query, word) in enumerate(self._asked.items()):
            lines.append(json.dumps({"_id": f"q{number}", "text": query}))
            right = f"{SYNONYMS[word]} {query.split()[1]} "
            judgments += [f"q{number}\t{row['sku']}\t{int(row['naam'].startswith(right))}" for row in shop]
        self._queries.write_text("\n".join(lines))
        self._qrels.write_text("\n".join(judgments) + "\n")

    def goes_on(self, server: Server, version: str) -> None:
        self._answers(version, SYNONYMS)
        wait_until(lambda: server.get("/ready")[1]["ready_answers"] == len(self._asked), "the answers")
        people = self._people(server, 30)
        assert set(people) == {""}, "nobody is served before the gate"
        # The gate, with the engineer's own judged queries.
        judged = ("--queries", str(self._queries), "--qrels", str(self._qrels))
        admitted = self._promote(version, "--once", *judged)
        assert admitted["kind"] == "admit", admitted
        wait_until(lambda: version in server.get("/search?query=crimson+mug")[1]["routes"], "the routes")
        people = self._people(server, 400)
        assert {"", version, "interleaved"} <= set(people)
        assert people[version]["quality"] > people[""]["quality"]
        (duel,) = json.loads(self._engineer.calls("compare", "--run", "live", "--json"))["duels"]
        assert (duel["one"], duel["other"], duel["high"] < 0) == ("", version, True), "people prefer the version"
        assert self._promote(version, "--once")["kind"] == "start"
        wait_until(lambda: set(self._people(server, 10, stored=False)) <= {"", version}, "no list to be interleaved")
        self._people(server, 300)
        assert self._promote("--once")["step"]["kind"] == "advance"
        self._answers(version, OPPOSITES)  # It breaks: now it asks for another colour.
        people = self._people(server, 600)
        assert people[version]["quality"] < people[""]["quality"]
        taken_back = self._promote("--once")
        assert (taken_back["step"]["kind"], taken_back["ramp"]["status"]) == ("roll back", "rolled back")
        wait_until(lambda: set(self._people(server, 20, stored=False)) == {""}, "everybody to be safe")
        self._store()
        decided = json.loads(self._engineer.calls("promote", "--why", "--json"))
        assert [each["kind"] for each in decided] == ["admit", "start", "advance", "roll back"]
        assert all(each["evidence"] and each["reason"] for each in decided)

    def _answers(self, version: str, colours: dict[str, str]) -> None:
        """Keep these words as the version's ready answers."""
        home = Home(self._engineer.home)
        name = load_manifest(home.index("shop")).name
        cache = ExpansionCache(home.run(LEARNED), policy=version, index_version=name)
        cache.keep(
            Expanded(query_id="q", query=query, expansions=(colours[word],), valid=True, text="", policy=version)
            for query, word in self._asked.items()
        )

    def _people(self, server: Server, count: int, *, stored: bool = True) -> dict[str, Any]:
        """Let simulated people search, store what they did, and return the counts by policy."""
        self._seed += 1
        crowd = ("--impressions", str(count), "--rate", "25", "--clients", "2000", "--seed", str(self._seed))
        judged = ("--queries", str(self._queries), "--qrels", str(self._qrels))
        found = json.loads(self._engineer.calls("simulate", server.url, *judged, *crowd, "--json"))
        assert found["failed"] * 10 <= count, "a busy machine is slow, and no more"
        if stored:
            wait_until(lambda: server.get("/ready")[1]["events_waiting_bytes"] == 0, "the events to reach Kafka")
            self._store()
        by_policy: dict[str, Any] = found["by_policy"]
        return by_policy

    def _store(self) -> None:
        self._engineer.calls("listen", "--run", "live", "--until-read", "--json")

    def _promote(self, *arguments: str) -> Any:
        return json.loads(self._engineer.calls("promote", *arguments, "--run", "live", "--json"))
