"""Simulated people on a real server: their clicks lie in Kafka, the better ranking gets more of them, bots are told."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from pathlib import Path

import pytest

from infra.simulating.driving import Crowd, SimulationError, drive
from search_env.catalogue.corpora import Query, write_qrels, write_queries
from search_env.clicks.published import EYE_TRACKED
from search_env.clicks.users import SimulatedUsers
from services.local import Endpoints
from tests.commands import ROOT, command, environment
from tests.kafka_cluster import wait_until
from tests.loop.conftest import quiet
from tests.services.test_serving import VERSION, in_kafka, serving, shop  # noqa: F401 - a fixture.

CROWD = Crowd(impressions=200, rate=25, clients=40, bots=0.1, size=6, seed=3)
ASKED = [Query(id="q1", text="mug"), Query(id="q2", text="oak")]
# The version's word finds p1, p4 and p7, which raw results lack; so they are what simulated people want.
GRADES = {"q1": {"p1": 1, "p4": 1, "p7": 1}, "q2": {"p2": 1}}


def test_simulated_people_click_more_where_hidden_relevance_is_and_everything_is_logged(
    shop: tuple[Path, str],  # noqa: F811
    local_services: Endpoints,
) -> None:
    home, index = shop
    with serving(home, index, local_services) as server:
        users = SimulatedUsers(EYE_TRACKED, GRADES, seed=3)
        found = asyncio.run(drive(server.url, ASKED, GRADES, users, CROWD, report=quiet))
    raw, helped = found.by_policy[""], found.by_policy[VERSION]
    assert (found.searches, found.failed) == (CROWD.impressions, 0)
    assert found.bots + raw.impressions + helped.impressions == found.searches
    assert 10 < found.bots < 60
    assert helped.quality > raw.quality
    assert helped.clicks / helped.impressions > raw.clicks / raw.impressions
    impressions, actions = (in_kafka(local_services, index, kind) for kind in ("impressions", "actions"))
    assert len(impressions) == found.searches
    assert len(actions) > raw.clicks + helped.clicks, "the bots' clicks are there, too"


def test_the_same_seed_draws_the_same_clicks() -> None:
    first, second = (SimulatedUsers(EYE_TRACKED, GRADES, seed=5) for _ in range(2))
    shown = [f"p{n}" for n in range(10)]
    assert [first.clicks("q1", shown) for _ in range(50)] == [second.clicks("q1", shown) for _ in range(50)]
    assert first.clicks("q1", []) == []


def test_a_server_that_is_gone_ends_the_simulation_with_the_reason() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        users = SimulatedUsers(EYE_TRACKED, GRADES, seed=0)
        with pytest.raises(SimulationError, match="searches in a row failed"):
            asyncio.run(drive(base, ASKED, GRADES, users, CROWD, report=quiet))


def test_a_killed_simulation_leaves_a_server_that_answers_and_one_outcome_for_each_search(
    shop: tuple[Path, str],  # noqa: F811
    local_services: Endpoints,
) -> None:
    home, index = shop
    queries, qrels = home / "queries.jsonl", home / "qrels.tsv"
    write_queries(queries, ASKED)
    write_qrels(qrels, GRADES)
    crowd = ("--queries", str(queries), "--qrels", str(qrels), "--impressions", "100000", "--rate", "30")
    with serving(home, index, local_services) as server:
        people = subprocess.Popen(
            command(home, "simulate", server.url, *crowd),
            cwd=ROOT,
            env=environment(local_services),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: len(in_kafka(local_services, index, "actions")) >= 20, "people's clicks")
        people.kill()
        people.wait()
        assert server.get("/search?query=mug")[0] == 200
    seen = {each.impression_id for each in in_kafka(local_services, index, "impressions")}
    joined = subprocess.run(
        command(home, "listen", "--run", index, "--until-read", "--json"),
        cwd=ROOT,
        env=environment(local_services),
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(joined.stdout)
    assert (counts["impressions"], counts["final"], counts["open"]) == (len(seen), len(seen), 0)
    final = [each for each in in_kafka(local_services, index, "impression-outcomes") if each.final]
    assert sorted(each.impression.impression_id for each in final) == sorted(seen)
