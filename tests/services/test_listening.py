"""Impressions and late, doubled, unordered actions over the real Kafka: one final outcome each, whatever is killed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from kafka import TopicPartition

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.runs.listening import begin_live, listen
from infra.runs.verification import verify_run
from search_env.feedback.attribution import DAY_MS, HOUR_MS, JoinSettings
from search_env.feedback.worker import STATE_FILE, read_positions
from services.local import Endpoints
from storage.archive import ArchiveSettings
from storage.ledger import LEDGER
from storage.log import open_log
from storage.sink import SinkSettings
from storage.verification.joins import join_findings
from storage.workers import run_sink
from streams.clients import connect_producer, partitions_of
from streams.clock import now_ms
from streams.codec import decode, encode_event
from streams.delivery import Outbox
from streams.events import DeadLetter
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.pseudonyms import Pseudonyms
from streams.ranges import log_bounds, read_range
from streams.records import Received
from streams.stopping import Stop
from streams.topics import BY_EVENT, topic_name
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from tests.commands import command, environment
from tests.kafka_cluster import wait_until

NOW = 1_760_000_000_000
COUNT = 1_200
KILLS = 3
SETTINGS = Settings(
    join=JoinSettings(settle_seconds=0.05, provisional_seconds=0.05, lateness_ms=2 * DAY_MS),
    sink=SinkSettings(archive=ArchiveSettings(segment_seconds_max=1e9, segment_mib_max=4096)),
)


def traffic(seed: int) -> tuple[list[Impression], list[UserAction]]:
    """Impressions over eight days, and for most of them clicks, some of them on nothing that was shown or too late."""
    chosen = random.Random(seed)
    impressions, actions = [], []
    for number in range(COUNT):
        at = NOW + number * 8 * DAY_MS // COUNT
        shown = tuple(Shown(document_id=f"d{chosen.randrange(50)}-{rank}", rank=rank) for rank in range(1, 6))
        impressions.append(
            Impression(impression_id=f"i{number}", query_id=f"q{number % 9}", query="mug", shown=shown, at_ms=at)
        )
        for click in range(chosen.randrange(3)):
            late = chosen.choice([1_000, HOUR_MS, 23 * HOUR_MS, 25 * HOUR_MS])
            document = chosen.choice([*(each.document_id for each in shown), "elsewhere"])
            actions.append(
                UserAction(
                    action_id=f"a{number}-{click}",
                    impression_id=f"i{number}" if chosen.random() < 0.98 else "nobody",
                    kind="click",
                    document_id=document,
                    at_ms=at + late,
                )
            )
    return impressions, actions


def expected(impressions: Sequence[Impression], actions: Sequence[UserAction]) -> dict[str, list[str]]:
    """Return the ids of the actions that count for each impression, worked out without a join."""
    found: dict[str, list[str]] = {each.impression_id: [] for each in impressions}
    by_id = {each.impression_id: each for each in impressions}
    for action in sorted(actions, key=lambda each: (each.at_ms, each.action_id)):
        seen = by_id.get(action.impression_id)
        if (
            seen is not None
            and 0 <= action.at_ms - seen.at_ms < DAY_MS
            and any(shown.document_id == action.document_id for shown in seen.shown)
        ):
            found[seen.impression_id].append(action.action_id)
    return found


def app_of(home: Path, services: Endpoints) -> App:
    kafka = KafkaSettings(bootstrap=services.kafka, partitions=3)
    return App(Home(home), settings=msgspec.structs.replace(SETTINGS, kafka=kafka)).at(services)


def write(app: App, run: str, events: Sequence[Impression | UserAction]) -> None:
    """Write events as their sources do: each on the partition of its impression, at about the time of the newest."""
    producer = connect_producer(app.connections.kafka, client_id="traffic")
    outbox = Outbox(producer, run, stage="traffic", settings=app.settings.delivery)
    for event in events:
        topic = BY_EVENT[type(event)]
        outbox.forward(
            topic=topic_name(run, topic.kind),
            partition=zlib.crc32(event.impression_id.encode()) % 3,
            key=event.impression_id.encode(),
            value=encode_event(event),
        )
    outbox.flush()
    producer.close()


def log_of(app: App, run: str, kind: str) -> list[Received]:
    kafka = app.connections.kafka
    bounds = log_bounds(kafka, partitions_of(kafka, [topic_name(run, kind)]))
    return [
        record
        for item, (start, end) in bounds.items()
        for record in read_range(kafka, TopicPartition(*item), start, end, client_id="test")
    ]


def test_killed_at_any_time_the_joiner_gives_each_impression_one_outcome_and_each_lost_event_a_reason(
    tmp_path: Path, local_services: Endpoints, unique_name: str
) -> None:
    app, run = app_of(tmp_path, local_services), unique_name
    begin_live(app, run)
    impressions, actions = traffic(seed=3)
    chosen = random.Random(1)
    # They arrive up to 40 hours later than they happen, so in another order, and every third one comes twice.
    delay = {id(each): chosen.randrange(40 * HOUR_MS) for each in [*impressions, *actions]}
    order = sorted([*impressions, *actions], key=lambda each: each.at_ms + delay[id(each)])
    doubled = [again for place, each in enumerate(order) for again in ([each, each] if place % 3 == 0 else [each])]
    variables = environment(local_services, app.settings)
    size = len(doubled) // (KILLS + 1) + 1
    parts = [doubled[start : start + size] for start in range(0, len(doubled), size)]
    for part in parts[:KILLS]:
        write(app, run, part)
        before = len(log_of(app, run, "impression-outcomes"))
        process = subprocess.Popen(
            command(tmp_path, "listen", "--run", run),
            env=variables,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda before=before: len(log_of(app, run, "impression-outcomes")) > before, "outcomes")  # type: ignore[misc]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    for part in parts[KILLS:]:
        write(app, run, part)
    counts = listen(app, run, until_read=True, stop=Stop(), report=lambda _: None)

    records = log_of(app, run, "impression-outcomes")
    final: dict[str, set[bytes]] = {}
    for record in records:
        event = decode(record.value)
        assert isinstance(event, ImpressionOutcome)
        if event.final:
            final.setdefault(event.impression.impression_id, set()).add(record.value or b"")
    assert {len(contents) for contents in final.values()} == {1}, "copies are the same bytes"
    found = {name: decode(content) for name, (content,) in final.items()}
    assert {
        name: [action.action_id for action in outcome.actions]
        for name, outcome in found.items()
        if isinstance(outcome, ImpressionOutcome)
    } == expected(impressions, actions)
    counted = {action for ids in expected(impressions, actions).values() for action in ids}
    letters = {}
    for record in log_of(app, run, "dead-letters"):
        letter = decode(record.value)
        assert isinstance(letter, DeadLetter)
        lost = decode(letter.value)
        assert isinstance(lost, UserAction)
        letters[lost.action_id] = letter.error.partition(":")[0]
    assert set(letters) == {action.action_id for action in actions} - counted, "each lost event has a reason"
    assert set(Counter(letters.values())) == {"orphan", "not_shown", "after_window"}
    assert (counts.final, counts.open, counts.waiting, counts.counted) == (COUNT, 0, 0, len(counted))
    with open_log(app.home.run(run)) as log:
        rows = log.rows(
            "SELECT impression_id, list_transform(actions, lambda a: a.action_id) AS ids FROM final_outcomes"
        )
    assert {row["impression_id"]: row["ids"] for row in rows} == expected(impressions, actions)
    changed = json.loads(
        subprocess.run(
            command(tmp_path, "listen", "--what-changed", "--run", run, "--json"),
            env=variables,
            capture_output=True,
            check=True,
        ).stdout
    )
    provisional: dict[str, ImpressionOutcome] = {}
    with open_log(app.home.run(run)) as log:
        for _, outcome in log.events(ImpressionOutcome):
            if not outcome.final:
                provisional[outcome.impression.impression_id] = outcome
    ids = {name: [action.action_id for action in outcome.actions] for name, outcome in provisional.items()}
    assert changed["altered"] == sum(expected(impressions, actions)[name] != before for name, before in ids.items())
    assert changed["altered"] + changed["unaltered"] == len(ids) > 0
    assert sum(read_positions(app.home.run(run)).values()) == len(doubled)
    assert (app.home.run(run) / STATE_FILE).exists()


def test_a_joiner_that_catches_up_takes_the_records_of_all_topics_in_the_order_of_their_times(
    tmp_path: Path, local_services: Endpoints, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reads are small against the log, and no event may be late: a topic that is read ahead would lose events.
    monkeypatch.setattr("search_env.feedback.worker.READ_AT_ONCE", 40)
    rules = msgspec.structs.replace(SETTINGS.join, lateness_ms=0)
    whole = app_of(tmp_path, local_services)
    app = App(whole.home, settings=msgspec.structs.replace(whole.settings, join=rules)).at(local_services)
    run = unique_name
    begin_live(app, run)
    impressions, actions = traffic(seed=8)
    producer = connect_producer(app.connections.kafka, client_id="traffic")
    outbox = Outbox(producer, run, stage="traffic", settings=app.settings.delivery)
    began = now_ms()
    in_order = sorted([*impressions, *actions], key=lambda each: each.at_ms)
    # Each topic by itself; the times of the records say in which order they came.
    for number, event in sorted(enumerate(in_order), key=lambda each: isinstance(each[1], UserAction)):
        topic = BY_EVENT[type(event)]
        outbox.forward(
            topic=topic_name(run, topic.kind),
            partition=zlib.crc32(event.impression_id.encode()) % 3,
            key=event.impression_id.encode(),
            value=encode_event(event),
            timestamp_ms=began + number,
        )
    outbox.flush()
    producer.close()
    counts = listen(app, run, until_read=True, stop=Stop(), report=lambda _: None)
    assert counts.actions_left_out.keys() == {"orphan", "not_shown", "after_window"}
    with open_log(app.home.run(run)) as log:
        rows = log.rows(
            "SELECT impression_id, list_transform(actions, lambda a: a.action_id) AS ids FROM final_outcomes"
        )
    assert {row["impression_id"]: row["ids"] for row in rows} == expected(impressions, actions)


def test_until_read_ends_when_everything_is_stored_however_far_the_sink_is_behind(
    tmp_path: Path, local_services: Endpoints, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, run = app_of(tmp_path, local_services), unique_name
    begin_live(app, run)
    impressions, actions = traffic(seed=9)
    write(app, run, sorted([*impressions, *actions], key=lambda each: each.at_ms))

    def late(post: Post, **given: Any) -> None:
        while not post.stop():
            time.sleep(0.01)
        run_sink(post, **given)  # The join has ended, and nothing is stored yet.

    monkeypatch.setattr("infra.runs.listening.run_sink", late)
    monkeypatch.setattr("infra.runs.listening.DRAIN_SECONDS", 0.0)
    counts = listen(app, run, until_read=True, stop=Stop(), report=lambda _: None)
    with open_log(app.home.run(run)) as log:
        (stored,) = log.rows("SELECT count(*) AS n FROM final_outcomes")
    assert stored["n"] == counts.final == COUNT


def test_bots_are_marked_and_who_is_forgotten_leaves_a_sound_run(
    tmp_path: Path, local_services: Endpoints, unique_name: str
) -> None:
    app, run = app_of(tmp_path, local_services), unique_name
    begin_live(app, run)
    impressions, actions = traffic(seed=6)
    clients = ["anna", "bert", "bot"]
    with Pseudonyms(app.home.people) as names:
        robot = names.of("bot")[0]
        named = [
            msgspec.structs.replace(each, client=names.of(clients[number % 2])[0])
            for number, each in enumerate(impressions[:60])
        ]
        shown = impressions[0].shown
        crowd = [
            Impression(
                impression_id=f"b{n}",
                query_id="q",
                query="lamp",
                client=robot,
                shown=shown,
                at_ms=NOW + HOUR_MS + 1_000 * (n // 2),
            )
            for n in range(700)
        ]
        write(app, run, sorted([*named, *crowd, *actions[:60]], key=lambda each: each.at_ms))
        counts = listen(app, run, until_read=True, stop=Stop(), report=lambda _: None)
        assert counts.bots == {"many_impressions": 700}
        assert verify_run(app, run, rebuild=True, offline=False).verdict == "sound"
        assert names.forget(["anna", "bot"]) == 2
        assert verify_run(app, run, rebuild=True, offline=False).verdict == "sound"
    with open_log(app.home.run(run)) as log:
        marked = log.rows("SELECT bot, count(*) AS n, any_value(client) AS client FROM final_outcomes GROUP BY 1")
        trusted = log.rows("SELECT count(*) AS n FROM trusted_outcomes WHERE client != ?", [robot])
    assert {each["bot"]: each["n"] for each in marked} == {"": 60, "many_impressions": 700}
    assert trusted == [{"n": 60}]


FIRST = "(SELECT min(record_offset) FROM impression_outcomes WHERE final)"
TAMPERINGS = {
    "an outcome is changed": (
        "UPDATE impression_outcomes SET actions = [] WHERE final AND record_offset = (SELECT min(record_offset) FROM "
        "impression_outcomes WHERE final AND len(actions) > 0)",
        None,
    ),
    "an outcome is doubled with another content": (
        "INSERT INTO impression_outcomes BY NAME SELECT * REPLACE (record_offset + 1000000 AS record_offset, [] AS "
        "actions) FROM impression_outcomes WHERE final AND len(actions) > 0 LIMIT 1",
        "different final outcomes",
    ),
    "a propensity is raised": (
        f"UPDATE impression_outcomes SET action_propensity = 1.0 WHERE final AND record_offset < {FIRST} + 3",
        "differs from every record of that impression",
    ),
    "a click is invented": (
        "UPDATE impression_outcomes SET actions = list_append(actions, {'action_id': 'bought', 'kind': 'click', "
        f"'document_id': shown[1].document_id, 'at_ms': at_ms}}) WHERE final AND record_offset < {FIRST} + 3",
        "no record holds it so",
    ),
    "a click counts twice": (
        "UPDATE impression_outcomes SET actions = (SELECT any_value(actions) FROM impression_outcomes WHERE final AND "
        "len(actions) > 0) WHERE final AND len(actions) = 0",
        "counts for",
    ),
    "an outcome is lost": (
        "DELETE FROM impression_outcomes WHERE at_ms = (SELECT min(at_ms) FROM impression_outcomes WHERE final)",
        "but it has no final outcome",
    ),
}


def test_a_tampered_outcome_is_found(tmp_path: Path, local_services: Endpoints, unique_name: str) -> None:
    app, run = app_of(tmp_path, local_services), unique_name
    begin_live(app, run)
    impressions, actions = traffic(seed=4)
    write(app, run, sorted([*impressions[:300], *actions[:200]], key=lambda each: each.at_ms))
    listen(app, run, until_read=True, stop=Stop(), report=lambda _: None)
    folder = app.home.run(run)
    joined = read_positions(folder)
    with open_log(folder) as log:
        assert join_findings(log, joined) == []
    for name, (sql, said) in TAMPERINGS.items():
        copy = tmp_path / "copy"
        copy.mkdir(exist_ok=True)
        shutil.copy(folder / LEDGER, copy / LEDGER)
        with duckdb.connect(str(copy / LEDGER)) as connection:
            connection.execute(sql)
        with open_log(copy) as log:
            found = [each.what for each in join_findings(log, joined)]
        if said is not None:
            assert any(said in each for each in found), (name, found)
    account = verify_run(app, run, rebuild=True, offline=False)
    assert (account.verdict, account.findings) == ("sound", ())
    with duckdb.connect(str(folder / LEDGER)) as connection:
        connection.execute(TAMPERINGS["an outcome is changed"][0])
    account = verify_run(app, run, rebuild=True, offline=False)
    assert account.verdict == "broken", "its row differs from its record"
