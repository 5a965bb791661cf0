"""The first hour of infra/LIVE.md: attach, serve, listen, and train on the queries that people asked."""

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
from services.local import Endpoints
from storage.log import open_log
from streams.secrets import reveal
from tests.browser.test_snippet import PAGE, pages, visit
from tests.commands import ROOT, command, environment
from tests.kafka_cluster import wait_until
from tests.loop.conftest import SMALL
from tests.secure_services import as_role
from tests.services.test_attach import made_key, owner, rows, secure, template, winkel
from tests.services.test_serving import Server

__all__ = ["owner", "secure", "winkel"]

CUSTOMERS = 30
LEARNED = "learned"


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
    return Engineer(tmp_path / "home", variables | {f"SEARCHLOOP_ELASTICSEARCH__{k}": v for k, v in doors.items()})


def everything(owner: Elasticsearch) -> Any:
    """Return what the owner's cluster holds: indexes with their mappings, aliases, and the number of documents."""
    count = owner.count(index="winkel")["count"]
    return owner.indices.get(index="*").body, owner.indices.get_alias(index="*").body, count


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
    with engineer.serves(
        "--learned", LEARNED, "--policy", "latest", SEARCHLOOP_SERVE__TAIL_BUDGET_MS="10000"
    ) as server:
        words = server.get("/expand?query=steel+mug")[1]
        version = server.get("/ready")[1]["policy"]
        assert set(words["offered"]) <= {"", version}
        assert version.endswith("-000002")
    assert everything(owner) == before, "nothing is written to the owner's cluster"
