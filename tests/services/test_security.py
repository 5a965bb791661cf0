"""The doors with security switched on: who is let in, who is not and what is said, and that no secret is left about."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import aiokafka
import aiokafka.errors
import msgspec
import psutil
import pytest
from elasticsearch import ApiError
from kafka import TopicPartition
from kafka.admin import NewTopic
from kafka.errors import AuthorizationError, KafkaError
from kafka.structs import OffsetAndMetadata

from infra.app.app import App
from infra.app.home import Home
from infra.app.indexing import index_corpus
from infra.app.settings import TrainSettings
from infra.runs.rights import give_rights
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.engine.rights import RightsError
from search_env.models.training_pairs import GbdtSettings
from search_env.queries.intents import IntentSettings
from services.errors import ServiceError
from services.local import Endpoints
from services.security import SecurityFolder, write_private
from streams.acls import ROLES, WORKERS, allowed
from streams.clients import committed_offsets, connect_admin, create_topics, partitions_of
from streams.doors import kafka_context
from streams.errors import DeliveryError
from streams.kafka_settings import KafkaSettings
from streams.secrets import reveal
from streams.topics import KINDS, topic_name
from tests import commands
from tests.loop.conftest import SMALL, quiet
from tests.secure_services import as_role, secrets_of, secure_home

REFUSED_SECONDS = 5.0
SECONDS = 8.0  # "Within seconds", on a machine that is busy with other tests.


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with secure_home() as home:
        yield home


@pytest.fixture(scope="module")
def operator(home: Home) -> App:
    return as_role(home)


@pytest.fixture(scope="module")
def run(operator: App) -> str:
    """A run whose topics are there and whose roles have their rights."""
    name = f"doors-{time.time_ns()}"
    create_topics(operator.connections.kafka, name)
    assert give_rights(operator, name) > len(WORKERS)
    return name


async def doors_opened(kafka: KafkaSettings, topics: list[str]) -> tuple[set[str], set[str]]:
    """Return the topics that these settings may write, and those that they may read; each holds a record.

    By aiokafka, which hands on a refusal; kafka-python 3.0 asks again instead.
    """
    options = {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": kafka.security_protocol,
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": reveal(kafka.sasl_password),
        "ssl_context": kafka_context(kafka),
    }
    written, read = set(), set()
    async with aiokafka.AIOKafkaProducer(**options, acks=1) as producer:
        for topic in topics:
            with contextlib.suppress(aiokafka.errors.TopicAuthorizationFailedError):
                await producer.send_and_wait(topic, b"x", key=b"k", partition=0)
                written.add(topic)

    async def look(topic: str) -> None:
        consumer = aiokafka.AIOKafkaConsumer(**options, group_id=None, auto_offset_reset="earliest")
        await consumer.start()
        try:
            place = aiokafka.TopicPartition(topic, 0)
            consumer.assign([place])
            await asyncio.wait_for(consumer.seek_to_beginning(place), REFUSED_SECONDS)
            if await asyncio.wait_for(consumer.getmany(timeout_ms=5000), 10):
                read.add(topic)
        except (TimeoutError, aiokafka.errors.KafkaError):
            pass  # Refused; of a topic that it may not even see, it hears nothing.
        finally:
            await consumer.stop()

    await asyncio.gather(*map(look, topics))
    return written, read


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_and_writes_what_the_table_says_and_nothing_else(
    home: Home, operator: App, run: str, role: str
) -> None:
    topics = {topic_name(run, kind): kind for kind in sorted(KINDS)}
    filled = asyncio.run(doors_opened(operator.connections.kafka, sorted(topics)))
    assert filled == (set(topics), set(topics))
    kafka = as_role(home, role).connections.kafka
    assert kafka.sasl_username == role
    written, read = asyncio.run(doors_opened(kafka, sorted(topics)))
    assert written == {topic for topic, kind in topics.items() if allowed(role, kind, "WRITE")}
    assert read == {topic for topic, kind in topics.items() if allowed(role, kind, "READ")}


@pytest.mark.parametrize("role", WORKERS)
def test_no_worker_makes_or_removes_a_topic_or_gives_itself_a_right(home: Home, run: str, role: str) -> None:
    admin = connect_admin(as_role(home, role).connections.kafka)
    try:
        with pytest.raises(AuthorizationError):
            admin.create_topics([NewTopic(f"{run}.of-{role}", 1, 1)])
        topic = topic_name(run, "requests")
        with pytest.raises(KafkaError):
            admin.delete_topics([topic])
    finally:
        admin.close()


def commit_the_beginning(settings: KafkaSettings, topic: str, *, group: str) -> None:
    admin = connect_admin(settings)
    try:
        committed_offsets(admin, group)  # Waits for the coordinator, which a new cluster has only now.
        admin.alter_group_offsets(group, {TopicPartition(topic, 0): OffsetAndMetadata(0, "", -1)})
    finally:
        admin.close()


def test_a_worker_commits_to_its_own_group_alone_and_the_learner_looks_at_both(home: Home, run: str) -> None:
    for role, kind in (("generator", "requests"), ("environment", "generations")):
        commit_the_beginning(as_role(home, role).connections.kafka, topic_name(run, kind), group=f"{run}.{role}")
    learner = as_role(home, "learner").connections.kafka
    admin = connect_admin(learner)
    try:
        for group in ("generator", "environment"):
            assert committed_offsets(admin, f"{run}.{group}")
        followed = partitions_of(learner, [topic_name(run, "requests"), topic_name(run, "generations")])
        assert len(followed) == 2 * learner.partitions
    finally:
        admin.close()
    with pytest.raises((DeliveryError, KafkaError)):
        commit_the_beginning(learner, topic_name(run, "rewards"), group=f"{run}.environment-2")


def test_the_brokers_inner_port_takes_nobody_without_the_brokers_certificate(home: Home) -> None:
    properties = (home.root / "services" / "kafka" / "server.properties").read_text()
    port = int(properties.split("controller.quorum.voters=1@127.0.0.1:")[1].split("\n")[0])
    context = ssl.create_default_context(cafile=str(SecurityFolder(home.root).authority))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
        context.wrap_socket(plain, server_hostname="127.0.0.1") as door,
    ):
        door.sendall(b"\0" * 64)
        assert door.recv(1) == b"", "it answers"
        raise ConnectionResetError


DOORS = {
    "wrong password": ({"credentials": "", "sasl_password": "falsches-passwort"}, "refuses the user 'operator'"),
    "unknown user": ({"credentials": "", "sasl_username": "niemand"}, "refuses the user 'niemand'"),
    "mechanism": ({"sasl_mechanism": "PLAIN"}, "expected kafka.sasl_mechanism to be one of SCRAM-SHA-512, got PLAIN"),
    "no authority": ({"ssl_cafile": ""}, "not trusted by the system's authorities"),
    "another authority": ({"ssl_cafile": "OTHER"}, "not trusted by kafka.ssl_cafile"),
    "no TLS": ({"security_protocol": "PLAINTEXT"}, "it speaks TLS on this port, but we do not"),
    "a password without TLS": ({"security_protocol": "SASL_PLAINTEXT"}, "it speaks TLS on this port, but we do not"),
    "no user": ({"security_protocol": "SSL"}, "it asks for a user name (it takes SCRAM-SHA-512)"),
    "another host": ({"bootstrap": "HOSTNAME"}, "its certificate is for another host"),
    "an unknown host": (
        {"bootstrap": "kein-rechner.invalid:9092"},
        "the host name 'kein-rechner.invalid' is not known",
    ),
    "nobody": ({"bootstrap": "127.0.0.1:1", "connect_seconds": 2.0}, "connection refused"),
    "no Kafka": ({"bootstrap": "ENGINE", "security_protocol": "PLAINTEXT"}, "it speaks TLS on this port"),
}


@pytest.mark.parametrize("name", DOORS)
def test_a_kafka_that_does_not_let_us_in_is_told_within_seconds_by_its_reason(
    operator: App, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, said = DOORS[name]
    kafka, engine = operator.connections.kafka, operator.connections.elasticsearch
    port = kafka.bootstrap.rpartition(":")[2]
    other = tmp_path / "other.pem"
    other.write_text(OTHER_AUTHORITY)
    values = {
        "OTHER": str(other),
        "HOSTNAME": f"ein-anderer.test:{port}",
        "ENGINE": engine.url.removeprefix("https://"),
    }
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: resolve("127.0.0.1" if host == "ein-anderer.test" else host, *more, **named),
    )
    changes = {key: values.get(value, value) if isinstance(value, str) else value for key, value in changes.items()}
    began = time.monotonic()
    with pytest.raises(DeliveryError) as error:
        connect_admin(msgspec.structs.replace(kafka, **changes))
    assert said in str(error.value)
    assert "falsches-passwort" not in str(error.value)
    assert time.monotonic() - began < SECONDS


def test_tls_to_a_plain_kafka_is_told_as_such(operator: App, local_services: Endpoints) -> None:
    kafka = msgspec.structs.replace(operator.connections.kafka, bootstrap=local_services.kafka)
    with pytest.raises(DeliveryError, match=r"does not speak TLS on this port.*SASL_PLAINTEXT"):
        connect_admin(kafka)
    plain = msgspec.structs.replace(kafka, security_protocol="SASL_PLAINTEXT")
    with pytest.raises(DeliveryError, match="it takes no user name on this port"):
        connect_admin(plain)


ENGINE_DOORS = {
    "wrong key": ({"credentials": "", "api_key": "ZmFsc2NoOmZhbHNjaA=="}, r"\(401\) rejects our API key"),
    "no key": ({"credentials": "", "api_key": ""}, r"\(401\)"),
    "no authority": ({"ca_certs": ""}, "not trusted by the system's authorities"),
    "another authority": ({"ca_certs": "OTHER"}, "not trusted by elasticsearch.ca_certs"),
    "http": ({"url": "http://"}, "it speaks TLS on this port"),
    "unknown host": ({"url": "https://kein-rechner.invalid:9200"}, "is not known"),
}


@pytest.mark.parametrize("name", ENGINE_DOORS)
def test_an_elasticsearch_that_does_not_let_us_in_is_told_within_seconds(
    operator: App, name: str, tmp_path: Path
) -> None:
    changes, said = ENGINE_DOORS[name]
    other = tmp_path / "other.pem"
    other.write_text(OTHER_AUTHORITY)
    engine = operator.connections.elasticsearch
    values = {"OTHER": str(other), "http://": engine.url.replace("https", "http")}
    changed = {key: values.get(value, value) for key, value in changes.items()}
    settings = msgspec.structs.replace(SMALL, elasticsearch=msgspec.structs.replace(engine, **changed))
    began = time.monotonic()
    with pytest.raises(ServiceError, match=said):
        App(operator.home, settings=settings).engine()
    assert time.monotonic() - began < SECONDS


def test_https_to_an_open_elasticsearch_is_told_as_such(operator: App, local_services: Endpoints) -> None:
    url = local_services.elasticsearch.replace("http:", "https:")
    engine = msgspec.structs.replace(operator.connections.elasticsearch, url=url)
    with pytest.raises(ServiceError, match="does not speak TLS"):
        App(operator.home, settings=msgspec.structs.replace(SMALL, elasticsearch=engine)).engine()


def test_a_key_that_only_reads_makes_no_index_and_that_is_told_before_anything_is_made(
    home: Home, operator: App, unique_name: str
) -> None:
    reader = as_role(home, "environment")
    reading = 0

    def documents() -> Iterator[object]:
        nonlocal reading
        reading += 1
        yield from demo_catalogue(SMALL.demo)

    with pytest.raises(RightsError, match=r"\(403\): the API key may not .*create_index.* on "):
        index_corpus(reader, name=unique_name, documents=documents(), report=quiet)  # type: ignore[arg-type]
    assert reading == 0
    assert not home.index(unique_name).exists()
    assert not operator.engine().indices.exists(index=f"{unique_name}-1")
    with pytest.raises(ApiError) as refused:
        reader.engine().indices.create(index=f"{unique_name}-1")
    assert refused.value.meta.status == 403


def seen(process: psutil.Process, secrets: dict[str, str]) -> set[str]:
    """Return which secrets stand on a command line of a process or its children, or in a child's environment.

    A child between fork and exec is still its parent to the kernel, and shows what the user gave that one.
    """
    try:
        own = process.cmdline()
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return set()
    shown = [(own, "\n".join(own))]
    for child in children:
        with contextlib.suppress(psutil.Error):
            environment = "\n".join(child.environ().values())
            command = child.cmdline()  # After the environment: what is no copy of ours now, may have been one then.
            if command not in ([], own):
                shown.append((command, "\n".join(command)))
                if child.environ() and "\n".join(child.environ().values()) == environment:
                    shown.append((command, environment))
    return {f"{name} in {command}" for command, text in shown for name, secret in secrets.items() if secret in text}


def train(home: Home, variables: dict[str, str], secrets: dict[str, str], *arguments: str) -> tuple[int, str, set[str]]:
    """Run a verb, and look at its processes all the while; return its status, what it said, and the secrets seen."""
    process = subprocess.Popen(
        commands.command(home.root, *arguments),
        cwd=commands.ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found: set[str] = set()
    while process.poll() is None:
        found |= seen(psutil.Process(process.pid), secrets)
        time.sleep(0.2)
    assert process.stdout is not None
    return process.returncode, process.stdout.read(), found


def in_files(root: Path, secrets: dict[str, str], *, but: Path) -> list[str]:
    """Return where secrets stand in files below root."""
    found = []
    for path in root.rglob("*"):
        if path.is_file() and not path.is_relative_to(but):
            content = path.read_bytes()
            found += [f"{name} in {path}" for name, secret in secrets.items() if secret.encode() in content]
    return found


def test_a_loop_runs_with_users_by_role_and_with_one_user_and_leaves_no_secret_about(
    home: Home, operator: App, tmp_path: Path, unique_name: str
) -> None:
    secrets = secrets_of(home) | {"of vllm": "schluessel-fuer-vllm"}
    corpus = tmp_path / "corpus.jsonl"
    lines = [
        {"_id": each.id, "title": each.title, "text": each.text, "metadata": each.metadata}
        for each in demo_catalogue(DemoSettings(products=150))
    ]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = msgspec.structs.replace(
        SMALL,
        demo=DemoSettings(products=150),
        intents=IntentSettings(queries=60),
        gbdt=GbdtSettings(trees=5, queries_max=20),
        train=TrainSettings(warm_up=False),
    )
    kept = commands.environment(Endpoints(kafka="", elasticsearch=""), settings)
    kept = {name: value for name, value in kept.items() if not name.endswith(("__BOOTSTRAP", "__URL"))}
    kept["SEARCHLOOP_VLLM__API_KEY"] = secrets["of vllm"]
    options = ["--index", unique_name, "--run", unique_name, "--json"]

    # By role: nobody names a user or a password; each worker finds its own.
    status, said, found = train(home, kept, secrets, "index", str(corpus), "--name", unique_name)
    assert (status, found) == (0, set()), said
    status, said, found = train(home, kept, secrets, "--verbose", "train", *options, "--updates", "1")
    assert (status, found) == (0, set()), said
    assert not [name for name, secret in secrets.items() if secret in said]
    assert in_files(home.root, secrets, but=home.root / "services" / "security") == []
    # What every role wrote was let through, and the ledger holds all of it.
    status, said, found = train(home, kept, secrets, "verify", "--run", unique_name)
    assert (status, found) == (0, set()), said
    status, said, found = train(home, kept, secrets, "watch", "--run", unique_name, "--once", "--json")
    assert (status, found) == (0, set()), said

    # One user for all, named by variables and in a URL, as on anybody's own cluster.
    other = Home(tmp_path / "other")
    shutil.copytree(home.runs / unique_name, other.run(unique_name))
    shutil.copytree(home.index(unique_name), other.index(unique_name))
    connections = operator.connections
    named = {
        "KAFKA__BOOTSTRAP": connections.kafka.bootstrap,
        "KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA__SASL_USERNAME": "operator",
        "KAFKA__SASL_PASSWORD": secrets["kafka/operator"],
        "KAFKA__SSL_CAFILE": connections.kafka.ssl_cafile,
        "ELASTICSEARCH__URL": connections.elasticsearch.url.replace(
            "https://", f"https://elastic:{secrets['elastic']}@"
        ),
        "ELASTICSEARCH__CA_CERTS": connections.elasticsearch.ca_certs,
    }
    variables = kept | {f"SEARCHLOOP_{name}": value for name, value in named.items()}
    status, said, found = train(other, variables, secrets, "--verbose", "train", *options, "--updates", "2")
    assert (status, found) == (0, set()), said
    assert not [name for name, secret in secrets.items() if secret in said]

    # A key that only reads is enough to search; it comes from a file here.
    key = tmp_path / "key"
    write_private(key, secrets["elasticsearch/environment"])
    for name in ("SEARCHLOOP_ELASTICSEARCH__URL", "SEARCHLOOP_KAFKA__SASL_PASSWORD"):
        variables.pop(name)
    password = tmp_path / "password"
    write_private(password, secrets["kafka/operator"])
    variables |= {
        "SEARCHLOOP_ELASTICSEARCH__URL": connections.elasticsearch.url,
        "SEARCHLOOP_ELASTICSEARCH__API_KEY_FILE": str(key),
        "SEARCHLOOP_KAFKA__SASL_PASSWORD_FILE": str(password),
    }
    trec = str(tmp_path / "helped.run")
    asked = ["--queries", "running shoes", "--policy", "latest", "--run", unique_name, "--run-file", trec]
    status, said, found = train(other, variables, secrets, "search", "--index", unique_name, *asked)
    assert (status, found) == (0, set()), said
    assert in_files(other.root, secrets, but=Path("/nowhere")) == []


# A certificate of nobody's authority, made once by `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1
# -nodes -subj "/CN=somebody else" -days 36500`; its key was thrown away.
OTHER_AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBiDCCAS2gAwIBAgIUJ15Ty/ImzFzEQ/IlXCKsmDTwyewwCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNc29tZWJvZHkgZWxzZTAgFw0yNjExMjgxNzQ2MDlaGA8yMTI2
MTEwNDE3NDYwOVowGDEWMBQGA1UEAwwNc29tZWJvZHkgZWxzZTBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABH0QnZePyhYIra9pjBfrzd/dc631VGD1dPYF83uUvo4m
qw3EZBGNKejp21yq95jdDQBHsLYzXOliQFhbPaqEsgmjUzBRMB0GA1UdDgQWBBRm
HRx/x9vYWAkmRGOe3yv62YErjzAfBgNVHSMEGDAWgBRmHRx/x9vYWAkmRGOe3yv6
2YErjzAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQCIiTZwr0q5
hYIZPy3a9BwqY0HA/yk44sVKjtV02mBg8QIhAJo/GAdfkhhF+CtS2ivPevQOfVuh
qNeejMN0KQB9zDER
-----END CERTIFICATE-----
"""
