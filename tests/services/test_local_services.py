"""Kafka and Elasticsearch of our own: they start, are mended, keep what they hold, and never outlive their keeper."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from click.testing import CliRunner
from elasticsearch import Elasticsearch
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError

import services.local as local
from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.commands.services import doctor, down, status, up
from search_env.engine.client import ElasticsearchSettings
from services.errors import ServiceError
from services.launch import service_directory
from services.local import Endpoints, LocalServices
from services.processes import service_account, tagged_processes
from services.settings import LocalSettings, ServiceSettings
from streams.kafka_settings import KafkaSettings

ROOT = Path(__file__).parents[2]
LARGE = 15 * 1024 * 1024
PARENT = """
import sys, time, msgspec
from services.local import LocalServices
from services.settings import ServiceSettings
settings = msgspec.json.decode(sys.argv[2], type=ServiceSettings)
services = LocalServices(sys.argv[1], settings, attached=sys.argv[3] == "attached")
services.up(lambda what, done, total: print(what, flush=True))
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home with a name that breaks careless quoting, in a folder that the user nobody cannot enter."""
    place = tmp_path / "ein Zuhause für Käufer"
    place.mkdir()
    yield place
    elsewhere = service_directory("elasticsearch", place).parent
    LocalServices(place).remove()
    assert not elsewhere.exists()
    assert list(tagged_processes(place, local.ROLES)) == []


@pytest.fixture
def kafka_alone(local_services: Endpoints) -> ServiceSettings:
    """Kafka is ours to start, Elasticsearch somebody else's: half the time for what either would show."""
    return ServiceSettings(
        elasticsearch=ElasticsearchSettings(url=local_services.elasticsearch),
        local=LocalSettings(quick_start=True, stop_seconds=10),
    )


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


def nothing_runs(home: Path) -> bool:
    return not list(tagged_processes(home, local.ROLES))


def pids(services: LocalServices) -> dict[str, int | None]:
    return {row.role: row.pid for row in services.status()}


def start_parent(home: Path, settings: ServiceSettings, mode: str, until: str) -> subprocess.Popen[str]:
    """Run `up` in a process of its own, and return when it has said `until`."""
    command = [sys.executable, "-c", PARENT, str(home), msgspec.json.encode(settings).decode(), mode]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    for line in parent.stdout:
        if until in line:
            return parent
    raise AssertionError(f"the parent ended with {parent.wait()} before it said {until!r}")


def make_topic(bootstrap: str, name: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        admin.close()


def topics(bootstrap: str) -> set[str]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    try:
        return set(consumer.topics())
    finally:
        consumer.close()


def test_english_is_lucenes_and_answers_as_the_full_server_does(local_services: Endpoints) -> None:
    client = Elasticsearch(local_services.elasticsearch)

    def tokens(text: str, **how: object) -> list[str]:
        return [token["token"] for token in client.indices.analyze(text=text, **how)["tokens"]]  # type: ignore[arg-type]

    # The tokens of the full distribution's `english`, from the reference page of its language analyzers and by hand.
    assert tokens("The QUICK brown foxes' don't", analyzer="english") == ["quick", "brown", "fox", "don't"]
    assert tokens("John's running shoes are not in the skies", analyzer="english") == ["john", "run", "shoe", "ski"]
    assert tokens("skies", tokenizer="standard", filter=["lowercase", "porter_stem"]) == ["ski"]
    assert tokens("Crème brûlée", tokenizer="standard", filter=["lowercase", "asciifolding"]) == ["creme", "brulee"]
    possessive = {"type": "stemmer", "language": "possessive_english"}
    assert tokens("dog's", tokenizer="standard", filter=[possessive]) == ["dog"]
    kept = {"type": "keyword_marker", "keywords": ["skies"]}
    assert tokens("skies flies", tokenizer="standard", filter=[kept, "stemmer"]) == ["skies", "fli"]
    with pytest.raises(Exception, match="stemmer language"):
        tokens("x", tokenizer="standard", filter=[{"type": "stemmer", "language": "finnish"}])


def test_the_client_works_unmodified_and_bm25_is_as_set(local_services: Endpoints, unique_name: str) -> None:
    client = Elasticsearch(local_services.elasticsearch)
    assert client.info()["version"]["number"] == "9.5.3"
    assert client.ping()
    similarity = {"default": {"type": "BM25", "k1": 1.2, "b": 0.75}}
    mapping = {"properties": {"contents": {"type": "text", "analyzer": "english"}}}
    client.indices.create(index=unique_name, settings={"similarity": similarity}, mappings=mapping)
    for number, text in enumerate(["running shoes", "a shoe for runners", "hats"]):
        client.index(index=unique_name, id=str(number), document={"contents": text}, refresh=True)
    hits = client.search(index=unique_name, query={"match": {"contents": "runs"}})["hits"]["hits"]
    # By hand: N=3, df=1; lengths 2, 2 ("a" and "for" are stopped) and 1, so their mean is 5/3. Elasticsearch keeps the
    # factor k1 + 1 that Lucene has dropped.
    idf = 0.9808292530117262  # ln(1 + (3 - 1 + .5) / (1 + .5))
    assert [hit["_id"] for hit in hits] == ["0"]
    assert hits[0]["_score"] == pytest.approx(2.2 * idf / (1 + 1.2 * (0.25 + 0.75 * 2 / (5 / 3))), rel=1e-6)
    client.indices.delete(index=unique_name)


def test_a_record_of_fifteen_megabytes_travels_and_unknown_topics_are_errors(
    local_services: Endpoints, unique_name: str
) -> None:
    make_topic(local_services.kafka, unique_name)
    producer = KafkaProducer(bootstrap_servers=local_services.kafka, max_request_size=LARGE + 4096)
    assert producer.send(unique_name, os.urandom(LARGE)).get(timeout=60).offset == 0
    producer.close()
    hasty = KafkaProducer(bootstrap_servers=local_services.kafka, allow_auto_create_topics=True, max_block_ms=1000)
    with pytest.raises(KafkaError):
        hasty.send(f"{unique_name}-nobody-declared", b"x").get(timeout=5)
    hasty.close()
    assert f"{unique_name}-nobody-declared" not in topics(local_services.kafka)


def test_a_pair_starts_once_is_mended_and_keeps_what_it_holds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = LocalServices(home, LocalSettings(quick_start=True, stop_seconds=10))
    endpoints = services.up()
    assert [row.health for row in services.status()] == ["ok", "ok"]
    data = service_directory("elasticsearch", home)
    assert data.is_relative_to(home) == (service_account() is None)

    client = Elasticsearch(endpoints.elasticsearch)
    client.indices.create(index="kept")
    client.index(index="kept", id="1", document={"a": 1}, refresh=True)
    make_topic(endpoints.kafka, "kept")

    first = pids(services)
    assert LocalServices(home).up() == endpoints
    assert pids(services) == first

    # One is killed: the other is left alone, and the topic is still there, at the same address.
    assert first["kafka"] is not None
    os.kill(first["kafka"], signal.SIGKILL)
    wait_for(lambda: pids(services)["kafka"] is None)
    with pytest.raises(ServiceError, match=r"kafka of .* is not running"):
        services.endpoints()
    assert services.up() == endpoints
    assert pids(services)["elasticsearch"] == first["elasticsearch"]
    assert pids(services)["kafka"] not in (None, first["kafka"])
    assert "kept" in topics(endpoints.kafka)

    # The other hangs: it is stopped, by force since it cannot listen, and started again with its documents.
    monkeypatch.setattr(local, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(local, "PROBE_SECONDS", 1.0)
    monkeypatch.setattr(local, "STARTING_SECONDS", 0.0)
    assert first["elasticsearch"] is not None
    os.kill(first["elasticsearch"], signal.SIGSTOP)
    assert {row.role: row.health for row in services.status()}["elasticsearch"] == "unhealthy"
    services = LocalServices(home, LocalSettings(quick_start=True, stop_seconds=1))
    assert services.up() == endpoints
    assert pids(services)["elasticsearch"] not in (None, first["elasticsearch"])
    client = Elasticsearch(endpoints.elasticsearch)
    wait_for(lambda: client.count(index="kept", ignore_unavailable=True)["count"] == 1)

    stopped = LocalServices(home).down()
    assert {process.role for process in stopped} == {"kafka", "elasticsearch"}
    assert nothing_runs(home)
    assert services.down() == []


def test_what_is_attached_ends_when_its_parent_is_killed(home: Path, kafka_alone: ServiceSettings) -> None:
    parent = start_parent(home, kafka_alone, "attached", until="up")
    services = LocalServices(home, kafka_alone)
    assert services.status()[0].health == "ok"
    parent.kill()
    parent.wait()
    wait_for(lambda: nothing_runs(home) and services.status()[0].health == "down")


def test_what_is_detached_outlives_its_parent(home: Path, kafka_alone: ServiceSettings) -> None:
    parent = start_parent(home, kafka_alone, "detached", until="up")
    guardians = [
        child.pid for child in psutil.Process(parent.pid).children() if "guardian" in " ".join(child.cmdline())
    ]
    assert guardians == []
    parent.kill()
    parent.wait()
    services = LocalServices(home, kafka_alone)
    assert services.status()[0].health == "ok"
    before = pids(services)
    services.up()
    assert pids(services) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_start_that_is_broken_off_leaves_nothing_running(
    home: Path, kafka_alone: ServiceSettings, number: signal.Signals
) -> None:
    parent = start_parent(home, kafka_alone, "detached", until="waiting for kafka")
    assert pids(LocalServices(home, kafka_alone))["kafka"] is not None
    parent.send_signal(number)
    assert parent.wait(60) != 0
    wait_for(lambda: nothing_runs(home) and LocalServices(home, kafka_alone).status()[0].health == "down")


def test_services_for_the_while_stop_only_what_they_started(home: Path, kafka_alone: ServiceSettings) -> None:
    settings = Settings(elasticsearch=kafka_alone.elasticsearch, services=kafka_alone.local)
    app = App(Home(home), settings=settings)
    with app.running_services(lambda what, done, total: None) as running:
        began = pids(app.local_services())["kafka"]
        assert began is not None
        # Somebody else mends it in the meantime: theirs it is now.
        os.kill(began, signal.SIGKILL)
        wait_for(lambda: pids(app.local_services())["kafka"] is None)
        mended = app.local_services().up()
        assert running.connections.kafka.bootstrap == mended.kafka
    assert app.local_services().status()[0].health == "ok"
    app.local_services().down()
    with app.running_services(lambda what, done, total: None):
        assert app.local_services().status()[0].health == "ok"
    assert nothing_runs(home)


def test_a_new_start_does_not_lean_on_what_a_guardian_is_about_to_end(home: Path, kafka_alone: ServiceSettings) -> None:
    parent = start_parent(home, kafka_alone, "attached", until="up")
    parent.kill()
    parent.wait()
    services = LocalServices(home, kafka_alone, attached=True)
    endpoints = services.up()
    make_topic(endpoints.kafka, "still-there")
    assert services.status()[0].health == "ok"
    services.stop_started()
    assert nothing_runs(home)


def test_a_service_that_cannot_start_says_why_and_leaves_nothing(home: Path, kafka_alone: ServiceSettings) -> None:
    LocalServices(home, kafka_alone).up()
    LocalServices(home, kafka_alone).down()
    meta = home / "services" / "kafka" / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
    with pytest.raises(ServiceError, match=r"kafka ended while it started: .*node id.*Its logs are in"):
        LocalServices(home, kafka_alone).up()
    assert nothing_runs(home)


def test_a_users_own_services_are_used_and_never_stopped(home: Path, local_services: Endpoints) -> None:
    settings = ServiceSettings(
        kafka=KafkaSettings(bootstrap=local_services.kafka, partitions=1),
        elasticsearch=ElasticsearchSettings(url=local_services.elasticsearch),
    )
    services = LocalServices(home, settings)
    assert services.up() == local_services
    rows = services.status()
    assert [(row.role, row.pid, row.health) for row in rows] == [("kafka", None, "ok"), ("elasticsearch", None, "ok")]
    assert [row.port for row in rows] == [
        int(local_services.kafka.split(":")[1]),
        int(local_services.elasticsearch.split(":")[2]),
    ]
    assert services.down() == []
    assert [row.health for row in services.status()] == ["ok", "ok"]


def test_the_verbs_speak_json_and_doctor_is_content(
    home: Path, local_services: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCHLOOP_ELASTICSEARCH__URL", local_services.elasticsearch)

    def call(verb: object, *arguments: str) -> str:
        answer = CliRunner().invoke(verb, arguments, obj=App(Home(home)), catch_exceptions=False)  # type: ignore[arg-type]
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    addresses = json.loads(call(up, "--json"))
    assert addresses["elasticsearch"] == local_services.elasticsearch
    rows = json.loads(call(status, "--json"))
    assert [sorted(row) for row in rows] == [["health", "pid", "port", "role"]] * 2
    assert rows[0]["health"] == "ok" and psutil.pid_exists(rows[0]["pid"])
    assert f"127.0.0.1:{rows[0]['port']}" == addresses["kafka"]
    assert {finding["level"] for finding in json.loads(call(doctor, "--json"))} <= {"ok", "warn"}
    assert f"stopped kafka (pid {rows[0]['pid']})" in call(down)
    assert "nothing was running" in call(down)
