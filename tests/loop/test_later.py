"""A run with more queries than are prepared begins without the rest, and builds their contexts while it learns."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.run_settings import RunSettings, write_run_settings
from infra.recipes.asked_requests import AskedRequests
from infra.recipes.leser.index import open_leser_index, open_neighbours
from infra.recipes.leser.later import LATER_FILE
from infra.recipes.leser.preparation import CONTEXTS_FILE, LESSONS_FILE, prepare, read_contexts
from infra.recipes.recipe import NewRun
from infra.runs.training import stream
from infra.runs.verification import verify_run
from search_env.catalogue.corpora import Query
from search_env.leser.lessons import LessonSettings
from search_env.leser.teachers import read_lessons
from streams.clients import create_topics, partitions_of
from streams.codec import decode
from streams.errors import SettingsError
from streams.events import Context, Request
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.topics import topic_name
from tests.loop.conftest import SMALL, quiet

READY = 30
SETTINGS = msgspec.structs.replace(
    SMALL,
    lessons=LessonSettings(catalogue=100, head=10, taught_share=0.5, queries_max=READY),
)


def asked(number: int) -> Request:
    return Request(request_id="", run="r", query_id=f"q{number}", query=f"query {number}", index="i-1")


def test_waiting_requests_come_after_the_ready_ones_and_are_built_when_they_are_asked_for() -> None:
    built: list[str] = []

    def build(query: Query) -> Request:
        built.append(query.id)
        return asked(int(query.id[1:]))

    requests = AskedRequests([asked(0), asked(1)], [Query(id=f"q{n}", text="") for n in (2, 3, 4)], build)
    assert len(requests) == 5 and requests[1] == asked(1) and not built
    assert requests[3] == asked(3) and built == ["q3"]
    assert requests[-1] == asked(4) and requests[1:3] == [asked(1), asked(2)]
    with pytest.raises(IndexError, match="expected a request below 5, got 5"):
        _ = requests[5]


def test_a_run_learns_from_queries_that_were_not_prepared(small_world: App, unique_name: str, tmp_path: Path) -> None:
    app, run = small_world.with_settings(SETTINGS), unique_name
    prepared = prepare(app, NewRun(run=run, index="small"), quiet)
    folder = app.home.run(run)
    contexts = read_contexts(folder / CONTEXTS_FILE)
    later = [each for each in (prepared.asked[n] for n in range(len(prepared.asked))) if each.query_id not in contexts]
    assert len(contexts) == READY + 10 and len(later) > READY
    with open_leser_index(app.home.index("small"), prepared.settings or app.settings, app.engine, quiet) as opened:
        neighbours = open_neighbours(opened, read_lessons(folder / LESSONS_FILE))
        words = neighbours.words([later[5].query]) if neighbours else None
        assert later[5].context == opened.contexts([later[5].query], words)[0] != Context()
    kept = RunSettings(
        run=run, recipe="leser", index="small", index_version=prepared.index, seed=0, updates=6, settings=app.settings
    )
    write_run_settings(folder, kept)
    # As many partitions as a user gets; the suite's own settings say one.
    create_topics(
        msgspec.structs.replace(app.settings.kafka, partitions=KafkaSettings().partitions), run, folder=folder
    )
    stream(app, prepared, updates=6, seed=0, report=quiet)
    account = verify_run(app, run, rebuild=True, offline=False)
    assert (account.verdict, account.findings) == ("sound", ())
    kafka, published = app.connections.kafka, set[str]()
    bounds = log_bounds(kafka, partitions_of(kafka, [topic_name(run, "requests")]))
    assert len(bounds) == KafkaSettings().partitions > 1
    for place, (first, end) in bounds.items():
        for record in read_range(kafka, place, first, end, client_id="test"):
            event = decode(record.value)
            assert isinstance(event, Request)
            published.add(event.query_id)
    assert published & {each.query_id for each in later}
    # The same command goes on; with other queries it does not.
    again = prepare(app, NewRun(run=run, index="small"), quiet)
    assert len(again.asked) == len(prepared.asked) and again.asked[-1] == prepared.asked[-1]
    (folder / LATER_FILE).write_text("0000 7\n")
    with pytest.raises(SettingsError, match=r"began with other training queries \(7 beyond lessons.queries_max"):
        prepare(app, NewRun(run=run, index="small"), quiet)
