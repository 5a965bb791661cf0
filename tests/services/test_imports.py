"""An import makes a whole run or none: whatever ends it, the mended file goes in under the same name at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kafka import TopicPartition

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.commands.replay import replay as replay_verb
from infra.commands.search import index as index_verb
from infra.commands.search import search as search_verb
from infra.replaying.importing import import_feedback
from infra.runs.new_log import UNFINISHED
from search_env.catalogue.corpora import read_run
from search_env.engine.client import ElasticsearchSettings
from search_env.feedback.attribution import HOUR_MS
from services.local import Endpoints
from storage.archive import ARCHIVE, ArchiveSettings, find_segments
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.log import open_log
from storage.sink import Sink, SinkSettings
from streams.clients import connect_producer, create_topics, existing_topics
from streams.errors import InputError, SettingsError
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.topics import TOPICS, topic_name
from streams.traffic_events import Action, Feedback, Shown
from tests.commands import ROOT, environment
from tests.stored_events import small_run

HEADER = "session_id,query,rank0,doc_id,clicked\n"


@pytest.fixture
def app(tmp_path: Path, local_services: Endpoints) -> App:
    settings = Settings(
        kafka=KafkaSettings(bootstrap=local_services.kafka, partitions=1),
        elasticsearch=ElasticsearchSettings(url=local_services.elasticsearch),
    )
    return App(Home(tmp_path / "home"), settings=settings).at(local_services)


def call(app: App, *arguments: str) -> Result:
    return CliRunner().invoke(replay_verb, arguments, obj=app, catch_exceptions=False)


def topics(app: App, run: str) -> list[str]:
    return existing_topics(app.connections.kafka, [topic_name(run, topic.kind) for topic in TOPICS])


def searches(count: int) -> Iterator[Feedback]:
    for number in range(count):
        yield Feedback(feedback_id=f"a:{number}", query_id="q", query="red", application="a", at_ms=10**12 + number)


def test_a_file_that_is_refused_makes_nothing_and_the_mended_one_goes_in(
    app: App, unique_name: str, tmp_path: Path
) -> None:
    path = tmp_path / "sessions.csv"
    path.write_text(f"{HEADER}s1,red mug,0,p0,1\ns1,red mug,-1,p1,0\n")
    with pytest.raises(InputError, match=r"line 3: expected rank0 .* counts from 0"):
        call(app, "import-sessions", str(path), "--into", unique_name)
    (tmp_path / "queries").write_text('{"_id": "q1", "text": "mug"}\n')
    (tmp_path / "events").write_text("")
    ubi = ("--queries", str(tmp_path / "queries"), "--events", str(tmp_path / "events"))
    with pytest.raises(InputError, match="expected rows with query_id"):
        call(app, "import-ubi", *ubi, "--into", unique_name)
    assert topics(app, unique_name) == [] and not app.home.root.exists()
    path.write_text(f"{HEADER}s1,red mug,0,p0,1\ns1,red mug,1,p1,0\n")
    said = json.loads(call(app, "import-sessions", str(path), "--into", unique_name, "--json").stdout)
    assert (said["searches"], said["rows"], said["rows_read"]) == (1, 2, 2)


@pytest.mark.parametrize("error", [InputError("the file changed"), KeyboardInterrupt()])
def test_an_import_that_fails_half_way_leaves_nothing_behind(app: App, unique_name: str, error: BaseException) -> None:
    def torn() -> Iterator[Feedback]:
        yield from searches(1500)
        raise error

    for _ in range(2):
        with pytest.raises(type(error)):
            import_feedback(app, torn(), into=unique_name, index=None, report=lambda *_: None)
        assert topics(app, unique_name) == [] and not app.home.run(unique_name).exists()
    assert import_feedback(app, searches(3), into=unique_name, index=None, report=lambda *_: None) == 3
    assert not (app.home.run(unique_name) / UNFINISHED).exists()
    with pytest.raises(SettingsError, match="expected a new run"):
        import_feedback(app, searches(3), into=unique_name, index=None, report=lambda *_: None)
    with open_log(app.home.run(unique_name)) as log:
        assert log.rows("SELECT count(*) AS n FROM first_feedback") == [{"n": 3}]


KILLED = """
import os, signal, sys
from pathlib import Path
from infra.app.app import App
from infra.app.home import Home
from infra.replaying.importing import import_feedback
from tests.services.test_imports import searches

def cut():
    yield from searches(1200)
    os.kill(os.getpid(), signal.SIGKILL)

app = App(Home(Path(sys.argv[1])))
import_feedback(app.at(app.local_services().endpoints()), cut(), into=sys.argv[2], index=None, report=lambda *_: None)
"""


def test_an_import_that_was_killed_is_removed_by_the_next_of_its_name(
    app: App, unique_name: str, local_services: Endpoints
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(app.home.root), unique_name],
        env=environment(local_services) | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -9
    assert topics(app, unique_name) and (app.home.run(unique_name) / UNFINISHED).exists()
    assert import_feedback(app, searches(3), into=unique_name, index=None, report=lambda *_: None) == 3
    partition = TopicPartition(topic_name(unique_name, "feedback"), 0)
    assert log_bounds(app.connections.kafka, [partition])[partition] == (0, 3)


def test_two_imports_of_one_name_never_mix(app: App, unique_name: str) -> None:
    def meanwhile() -> Iterator[Feedback]:
        yield from searches(2)
        with pytest.raises(SettingsError, match="another call is writing"):
            import_feedback(app, searches(5), into=unique_name, index=None, report=lambda *_: None)

    assert import_feedback(app, meanwhile(), into=unique_name, index=None, report=lambda *_: None) == 2
    assert topics(app, unique_name)


def test_topics_of_somebody_else_are_refused_and_stay(app: App, unique_name: str) -> None:
    kafka = app.connections.kafka
    create_topics(kafka, unique_name, retention_ms=-1)
    producer = connect_producer(kafka, client_id="test")
    producer.send(topic_name(unique_name, "feedback"), value=b"theirs").get(timeout=30)
    producer.close()
    with pytest.raises(SettingsError, match="hold"):
        import_feedback(app, searches(3), into=unique_name, index=None, report=lambda *_: None)
    assert len(topics(app, unique_name)) == len(TOPICS) and not app.home.run(unique_name).exists()


def test_a_search_without_a_time_takes_no_pause_away_from_the_others(
    app: App, unique_name: str, tmp_path: Path
) -> None:
    times = ["2025-03-01T10:00:00Z", "2025-03-01T10:00:10Z", "03/01/2025 10:00:30 AM", "2025-03-01T10:00:20Z"]
    rows = [
        {"application": "a:b" if number else "a", "query_id": f"q{number}" if number else "b:q1", "user_query": "red"}
        | {"timestamp": written}
        for number, written in enumerate(times)
    ]
    (tmp_path / "queries").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "events").write_text("")
    files = ("--queries", str(tmp_path / "queries"), "--events", str(tmp_path / "events"))
    said = json.loads(call(app, "import-ubi", *files, "--into", unique_name, "--json").stdout)
    assert [each["queries_without_time"] for each in said["applications"]] == [0, 1]
    partition = TopicPartition(topic_name(unique_name, "feedback"), 0)
    records = list(read_range(app.connections.kafka, partition, 0, 4, client_id="test"))
    first = 1740823200000
    assert [record.timestamp_ms - first for record in records] == [0, 10_000, 20_000, 20_000]
    with open_log(app.home.run(unique_name)) as log:
        # "a" with "b:q1" and "a:b" with "q1" are two searches.
        assert len(log.rows("SELECT DISTINCT feedback_id FROM first_feedback")) == 4


def test_a_click_hours_after_its_search_counts_and_applications_of_different_years_keep_their_outcomes(
    app: App, unique_name: str
) -> None:
    year = 365 * 24 * HOUR_MS

    def traffic() -> Iterator[Feedback]:
        for number in range(40):
            at = 1_700_000_000_000 + number * 60_000 + (number >= 20) * year
            clicks = tuple(
                Action(kind="click", document_id=f"d{rank}", rank=rank, at_ms=at + hours * HOUR_MS)
                for rank, hours in ((1, 0), (2, 2), (3, 23), (4, 25), (5, 900))
            )
            shown = tuple(Shown(document_id=f"d{rank}", rank=rank) for rank in range(1, 6))
            name = f"{number // 20}:{number}"
            yield Feedback(
                feedback_id=name, query_id=name, query="red", application="a", shown=shown, actions=clicks, at_ms=at
            )

    assert import_feedback(app, traffic(), into=unique_name, index=None, report=lambda *_: None) == 40
    with open_log(app.home.run(unique_name)) as log:
        outcomes = log.rows("SELECT list_transform(actions, lambda a: a.document_id) AS ids FROM final_outcomes")
        reasons = log.rows(
            "SELECT split_part(error, ':', 1) AS reason, count(*) AS n FROM dead_letters WHERE stage = 'joiner' "
            "GROUP BY 1"
        )
    assert [each["ids"] for each in outcomes] == [["d1", "d2", "d3"]] * 40
    assert {each["reason"]: each["n"] for each in reasons} == {"after_window": 40, "orphan": 40}


def test_a_copy_of_a_damaged_archive_leaves_no_topics(app: App, unique_name: str) -> None:
    folder = app.home.run(unique_name)
    create_topics(app.connections.kafka, unique_name, retention_ms=-1)
    records = [
        record.__class__(**{name: getattr(record, name) for name in record.__struct_fields__} | {"position": place})
        for record in small_run(12)
        if (place := record.position.__class__(
            topic=record.position.topic.replace("test.", f"{unique_name}."), partition=0, offset=record.position.offset
        )).topic.endswith(".requests")
    ]  # fmt: skip
    at_once = SinkSettings(open_timeout_seconds=0, archive=ArchiveSettings(segment_seconds_max=1e-9))
    with Sink(folder / LEDGER, at_once) as sink:
        for start in range(0, len(records), 4):
            sink.write(records[start : start + 4])
    last = find_segments(folder / ARCHIVE)[-1]
    whole, into = last.read_bytes(), f"{unique_name}-copy"
    last.write_bytes(whole[: len(whole) // 2])
    arguments = ("copy", "--run", unique_name, "--topic", "requests", "--into", into)
    for speed in ("max", "x1000000"):
        with pytest.raises(StorageError, match=f"{last.name}: expected a whole segment"):
            call(app, *arguments, "--speed", speed)
        assert topics(app, into) == []
    last.write_bytes(whole)
    assert json.loads(call(app, *arguments, "--json").stdout)["records"] == len(records)


def test_a_decomposed_word_is_found_and_a_cut_text_is_told(app: App, unique_name: str, tmp_path: Path) -> None:
    corpus, queries, run = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl", tmp_path / "a.run"
    documents = [{"_id": "nfd", "title": "cafe\u0301 mug"}, {"_id": "long", "title": "lamp", "text": "word " * 10_001}]
    corpus.write_text("".join(f"{json.dumps(each)}\n" for each in documents))
    queries.write_text('{"_id": "nfc", "text": "caf\u00e9"}\n')
    said = CliRunner().invoke(index_verb, [str(corpus), "--name", unique_name], obj=app, catch_exceptions=False)
    assert "1 text was cut at 50,000 characters (the first: document 'long')" in said.output
    for asked in (str(queries), "caf\u00e9", "cafe\u0301", "caf\u00e9 赤いマグ" + "赤いマグ" * 75):
        arguments = ["--index", unique_name, "--queries", asked, "--policy", "none", "--run-file", str(run)]
        CliRunner().invoke(search_verb, arguments, obj=app, catch_exceptions=False)
        (ranking,) = read_run(run).values()
        assert ranking.ids == ["nfd"]


def test_no_input_reaches_the_user_as_a_traceback(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(os.urandom(5000))
    verbs = (
        ["index", str(junk)],
        ["replay", "import-sessions", str(junk), "--into", "a"],
        ["replay", "import-ubi", "--queries", str(junk), "--events", str(junk), "--into", "a"],
        ["evaluate", str(junk), "--qrels", str(junk)],
        ["search", "--queries", str(junk), "--run-file", "a.run"],
    )
    for verb in verbs:
        ended = subprocess.run(
            [sys.executable, "-m", "infra.cli", "--home", str(tmp_path / "home"), *verb],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1), ended.stderr
        assert ended.stderr.startswith(f"error: {junk}")
    assert not (tmp_path / "home").exists()
