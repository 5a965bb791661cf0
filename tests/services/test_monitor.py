"""The monitor on a real broker: its windows are what SQL says, whatever lies in the log and however often it dies."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from kafka import KafkaProducer, TopicPartition

from infra.app.app import App
from infra.app.home import Home
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.monitoring.alert_files import read_transitions
from infra.monitoring.lock import monitor_is_running, only_monitor
from infra.monitoring.watching import Watcher, monitor_log, wait_until_read
from services.local import Endpoints
from storage.ledger import LEDGER
from storage.sink import Sink, SinkSettings
from streams.clients import connect_admin, connect_consumer, connection_options, create_topics
from streams.delivery import DeliverySettings, poll
from streams.errors import DeliveryError
from streams.events import MonitorState, WindowEvent
from streams.kafka_settings import KafkaSettings
from streams.lag import end_offsets
from streams.records import Received
from streams.topics import kind_of, topic_name
from tests.commands import command, environment, interrupt, start
from tests.monitored_log import as_rows, expected_windows, messy_log, watched
from tests.stored_events import raw_record
from tests.webhook_receiver import Receiver, until

PARTITIONS = 2
BOMB = b"[" * (10 * 1024 * 1024)


@pytest.fixture
def world(local_services: Endpoints, tmp_path: Path, unique_name: str) -> tuple[App, str]:
    """Give an app, and a run with topics of its own and nothing in them."""
    app = App(Home(tmp_path), settings=Settings(kafka=KafkaSettings(partitions=PARTITIONS))).at(local_services)
    kept = RunSettings(
        run=unique_name, recipe="leser", index="i", index_version="i-1", seed=0, updates=50, settings=app.settings
    )
    write_run_settings(app.home.run(unique_name), kept)
    create_topics(app.settings.kafka, unique_name)
    return app, unique_name


def produce(app: App, run: str, records: list[Received]) -> None:
    """Write records to the run's topics; those of one group stay in one partition, as in a real run."""
    options = connection_options(app.settings.kafka, "test")
    # Compressed, a record larger than any reader wants is small enough for the broker.
    producer = KafkaProducer(**options, compression_type="gzip", max_request_size=64 * 1024 * 1024)
    for item in records:
        kind = kind_of(item.position.topic)
        partition = sum(item.key or b"") % PARTITIONS if kind == "rewards" else 0
        producer.send(topic_name(run, kind), key=item.key, value=item.value, partition=partition)
    producer.flush()
    producer.close()


def store(app: App, run: str) -> Path:
    """Write what the log holds into a ledger, as the sink does, and return its file."""
    kinds = {"rewards": PARTITIONS, "updates": 1, "dead-letters": 1}
    partitions = [TopicPartition(topic_name(run, kind), n) for kind, count in kinds.items() for n in range(count)]
    ends = end_offsets(app.settings.kafka, partitions)
    consumer = connect_consumer(app.settings.kafka, dict.fromkeys(partitions), client_id="test", records_max=500)
    path = app.home.run(run) / LEDGER
    with Sink(path, SinkSettings(open_timeout_seconds=0)) as sink:
        while any(consumer.position(item) < end for item, end in ends.items()):
            sink.write(poll(consumer, DeliverySettings(), records_max=500))
    consumer.close()
    return path


def windows(events: list[WindowEvent]) -> list[WindowEvent]:
    return [event for event in events if not isinstance(event, MonitorState)]


def test_the_windows_are_what_sql_over_the_ledger_says_also_after_kill_9_and_without_their_topic(
    world: tuple[App, str],
) -> None:
    app, run = world
    bombs = [
        raw_record(kind, 0, value) for kind in ("rewards", "updates", "dead-letters") for value in (BOMB, b"", None)
    ]
    log = messy_log(400)
    half = len(log) // 2
    produce(app, run, [*bombs, *log[:half], *bombs])
    with watched(app, run) as (watcher, process):
        sockets = psutil.Process(process.pid).net_connections(kind="all")
        assert [item for item in sockets if item.status == psutil.CONN_LISTEN] == [], "it listens"
        assert any(item.status == psutil.CONN_ESTABLISHED for item in sockets)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(DeliveryError, match="the monitor ended"):
            wait_until_read_more(watcher, app, run, log[half:], process)
    assert not monitor_is_running(app.home.run(run))

    expected = expected_windows(store(app, run), window_seconds=60)
    assert len(expected[0]) > 50 and len(expected[1]) > 10
    with watched(app, run) as (watcher, _):
        events = watcher.events()
        view = watcher.view()
    assert as_rows(events) == expected
    poison = sum(kind_of(item.position.topic) == "rewards" and not good(item) for item in log)
    assert view.malformed["rewards"] == poison + 6
    assert view.late == 0 and view.duplicates > 0 and view.updates_wanted == 50

    admin = connect_admin(app.settings.kafka)
    admin.delete_topics([topic_name(run, "windows")])
    admin.close()
    with watched(app, run) as (watcher, _):
        assert windows(watcher.events()) == windows(events), "made anew from the log, they are others"


def wait_until_read_more(
    watcher: Watcher, app: App, run: str, records: list[Received], process: subprocess.Popen[bytes]
) -> None:
    """Write more, and wait for a monitor that is dead."""
    produce(app, run, records)
    wait_until_read(watcher, process, app.home.run(run))


def good(item: Received) -> bool:
    return item.value is not None and item.value.startswith(b'{"event":"reward/1","group_id"')


def test_a_second_monitor_says_so_and_stops(world: tuple[App, str], local_services: Endpoints) -> None:
    app, run = world
    with only_monitor(app.home.run(run)):
        ended = subprocess.run(
            command(app.home.root, "run", "monitor", "--run", run),
            env=environment(local_services),
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert "another monitor" in ended.stderr


def test_watch_shows_a_run_once_for_people_and_for_scripts(world: tuple[App, str], local_services: Endpoints) -> None:
    app, run = world
    produce(app, run, messy_log(80))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = command(app.home.root, "watch", "--run", *arguments)
        return subprocess.run(line, env=environment(local_services), capture_output=True, text=True, check=False)

    ended = call(run, "--once", "--json")
    assert ended.returncode == 0, ended.stderr
    view = json.loads(ended.stdout)
    assert (view["run"], view["updates_done"], len(view["versions"])) == (run, 10, 10)
    assert {lag["stage"]: lag["records"] for lag in view["lags"]}["monitor"] == 0
    assert "failed outcomes" in [alert["name"] for alert in view["alerts"]]
    ended = call(run, "--once")
    assert ended.returncode == 0, ended.stderr
    assert f"run {run}: 10 of 50 updates" in ended.stdout and "dead letters" in ended.stdout
    assert not monitor_is_running(app.home.run(run))

    ended = call("nobody", "--once")
    assert ended.returncode == 1 and run in ended.stderr and "Traceback" not in ended.stderr


def test_ctrl_c_ends_watch_and_the_monitor_that_it_started(world: tuple[App, str], local_services: Endpoints) -> None:
    app, run = world
    produce(app, run, messy_log(16))
    process = start(app.home.root, "watch", "--run", run, variables=environment(local_services), until="started a mon")
    (pid,) = [child.pid for child in psutil.Process(process.pid).children()]
    assert interrupt(process) == (130, "stopped")
    assert not psutil.pid_exists(pid)
    assert not monitor_is_running(app.home.run(run))


def test_a_monitor_tells_a_webhook_of_a_rule_that_fires_and_keeps_the_change(
    world: tuple[App, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, run = world
    produce(app, run, messy_log(80))
    receiver = Receiver()
    monkeypatch.setenv("SEARCHLOOP_ALERTS__WEBHOOK", f"{receiver.url}/hook")
    monkeypatch.setenv("SEARCHLOOP_ALERTS__WEBHOOK_SECRET", "hush-hush-hush")
    try:
        with watched(app, run) as (_, process):
            until(lambda: "failed outcomes" in [body["change"]["rule"] for body in receiver.bodies])
            assert "hush" not in str(psutil.Process(process.pid).environ())
    finally:
        receiver.close()
    assert receiver.headers["Authorization"] == "Bearer hush-hush-hush"
    kept = {each.rule: each.state for each in read_transitions(app.home.run(run))}
    assert kept["failed outcomes"] == "firing"
    assert "hush" not in monitor_log(app.home.run(run)).read_text()
