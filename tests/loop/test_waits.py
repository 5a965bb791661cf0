"""Every verb that waits ends within seconds of Ctrl-C or SIGTERM, says one line, and leaves no process behind.

What it waits for is the worst there is: a broker and an engine that accept a connection and never answer, a file that
never comes, or a run that would go on for hours.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from infra.app.app import App
from infra.app.home import SETTINGS_FILE
from infra.cli import VERBS
from infra.recipes.recipe import Prepared
from infra.runs.living import living_workers
from services.local import Endpoints
from streams.clients import create_topics
from tests.commands import environment
from tests.loop.conftest import SMALL
from tests.verbs import ENDED_SECONDS, Silence, Verb, blocked_in_open

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SEGMENT = "00000000000000000000-00000000000000000009.parquet"
MANIFEST = "manifest.json"  # Of an index: read before its documents.


Start = Callable[..., Verb]
Make = Callable[..., Prepared]


@pytest.fixture
def silence() -> Iterator[Silence]:
    made = Silence()
    yield made
    made.close()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Verb]]:
    verbs: list[Verb] = []

    def start(home: Path, *arguments: str, variables: dict[str, str]) -> Verb:
        verbs.append(Verb(home, arguments, variables, tmp_path / f"{len(verbs)}.log"))
        return verbs[-1]

    yield start
    for verb in verbs:
        verb.kill()


@pytest.fixture
def files(tmp_path: Path, streamed: tuple[App, Prepared]) -> dict[str, str]:
    """Give files by the names that stand for them below; `never` is one to which nobody ever writes."""
    _, prepared = streamed
    os.mkfifo(tmp_path / "never")
    recipe = tmp_path / "plain.toml"
    recipe.write_text("")
    queries = tmp_path / "queries.jsonl"
    queries.write_bytes(
        msgspec.json.Encoder().encode_lines([{"_id": asked.query_id, "text": asked.query} for asked in prepared.asked])
    )
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(
        msgspec.json.Encoder().encode_lines([{"_id": f"d{n}", "title": f"red mug {n}", "text": ""} for n in range(50)])
    )
    clicks = tmp_path / "clicks.csv"
    clicks.write_text("session_id,query,rank0,doc_id,clicked\ns1,red mug,0,d1,1\n")
    names = {
        "ranking": "ranking.run",
        "never": "never",
        "recipe": "plain.toml",
        "queries": "queries.jsonl",
        "corpus": "corpus.jsonl",
    }
    return {name: str(tmp_path / path) for name, path in (names | {"clicks": "clicks.csv", "out": "out"}).items()}


# Each verb that waits for a service, with a service that never answers. {names} are those of the fixture above.
UNANSWERED = {
    "up": "up",
    "status": "status",
    "doctor": "doctor",
    "index": "index {corpus} --name other",
    "train": "train --recipe {recipe} --index small --run other --updates 2",
    "expand": "expand --index small --queries {queries} --run streamed",
    "search": "search --index small --queries {queries} --policy none --run-file {out}",
    "measure": "measure streamed:latest",
    "experiment": "experiment leser --index small",
    "watch": "watch --run streamed",
    "run generator": "run generator --run streamed",
    "run sink": "run sink --run streamed",
    "verify": "verify --run streamed",
    "replay copy": "replay copy --run streamed --into copied",
    "replay counterfactual": "replay counterfactual --run streamed --into scored",
    "replay load": "replay load --run streamed --into asked",
    "replay import-sessions": "replay import-sessions {clicks} --into clicks",
    "demo": "demo",
    "attach": "attach products --name shop",
    "listen": "listen --run heard",
    "simulate": "simulate http://127.0.0.1:{silent} --index small",
}
# Each verb that works on files alone, or reads one before anything else, with a file that never comes. The run
# `unread` has no settings yet, and the index `unread` no documents.
UNWRITTEN = {
    "search by vectors": "search --by vectors --index unread --queries {queries} --run-file {out}",
    "relevance": "relevance --index unread",
    "premise": "premise --recipe relsum --index unread",
    "summarize": "summarize --run unread",
    "loop": "loop --recipe relsum --index unread",
    "train by preference": "train --prefer-from unread --run other",
    "alternate": "alternate --recipe resume --index unread",
    "report": "report --run unread",
    "rebuild": "rebuild --run unread",
    "dead-letters": "dead-letters resend --run unread --topic requests",
    "report of a version": "report --run unread --policy 1",
    "compare": "compare --run unread",
    "alerts": "alerts list --run unread",
    "promote": "promote --why --run unread",
    "replay reproduce": "replay reproduce --run unread",
}
# What only computes, from files that the user names: those must be regular ones, so that none of them never comes.
AT_ONCE = {"down", "evaluate", "bench"}
# What answers until a signal, and then ends well, whatever its services do.
SERVERS = {"serve": "serve --index small --policy none --port 0"}
# What answers until a signal and asks services only for a page, with its address.
PAGES = {"ui": "ui --port 0"}


def test_every_verb_that_waits_is_looked_at_here() -> None:
    looked_at = {name.split()[0] for name in (*UNANSWERED, *UNWRITTEN, *SERVERS, *PAGES)}
    assert looked_at | AT_ONCE == set(VERBS)


@pytest.mark.parametrize(("number", "name"), list(enumerate(UNANSWERED)), ids=UNANSWERED)
def test_a_service_that_never_answers_holds_no_verb(
    number: int, name: str, streamed: tuple[App, Prepared], silence: Silence, files: dict[str, str], started: Start
) -> None:
    app, _ = streamed
    nowhere = Endpoints(kafka=f"127.0.0.1:{silence.port}", elasticsearch=f"http://127.0.0.1:{silence.port}")
    variables = environment(nowhere, SMALL) | {"SEARCHLOOP_VLLM__URL": nowhere.elasticsearch}
    arguments = UNANSWERED[name].format(**files, silent=silence.port).split()
    verb = started(app.home.root, *arguments, variables=variables)
    verb.await_(lambda: bool(silence.taken))
    assert verb.end(SIGNALS[number % 2]) < ENDED_SECONDS


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_ends_well_though_no_service_answers(
    name: str, number: signal.Signals, streamed: tuple[App, Prepared], silence: Silence, started: Start
) -> None:
    app, _ = streamed
    nowhere = Endpoints(kafka=f"127.0.0.1:{silence.port}", elasticsearch=f"http://127.0.0.1:{silence.port}")
    verb = started(app.home.root, *SERVERS[name].split(), variables=environment(nowhere, SMALL))
    verb.await_(lambda: bool(silence.taken) and "http://" in verb.said())
    assert verb.end(number, code=0) < ENDED_SECONDS


@pytest.mark.parametrize("number", SIGNALS)
def test_the_pages_end_well_though_no_service_answers(
    number: signal.Signals, streamed: tuple[App, Prepared], silence: Silence, started: Start
) -> None:
    app, _ = streamed
    nowhere = Endpoints(kafka=f"127.0.0.1:{silence.port}", elasticsearch=f"http://127.0.0.1:{silence.port}")
    verb = started(app.home.root, *PAGES["ui"].split(), variables=environment(nowhere, SMALL))
    verb.await_(lambda: "token=" in verb.said())
    assert verb.end(number, code=0) < ENDED_SECONDS


@pytest.mark.parametrize(("number", "name"), list(enumerate(UNWRITTEN)), ids=UNWRITTEN)
def test_a_file_that_never_comes_holds_no_verb(
    number: int, name: str, local_services: Endpoints, files: dict[str, str], started: Start, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    for folder, file in (
        (home / "runs" / "unread", SETTINGS_FILE),
        (home / "indexes" / "unread", MANIFEST),
        (home / "runs" / "unread" / "archive" / "unread.requests" / "0", SEGMENT),
    ):
        folder.mkdir(parents=True)
        os.link(files["never"], folder / file)
    variables = environment(local_services, SMALL)
    verb = started(home, *UNWRITTEN[name].format(**files).split(), variables=variables)
    verb.await_(lambda: blocked_in_open(verb.pid))
    assert verb.end(SIGNALS[number % 2]) < ENDED_SECONDS


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_learns_ends_with_all_its_workers(
    number: signal.Signals, local_services: Endpoints, small_world: App, new_run: Make, files: dict[str, str],
    started: Start,
) -> None:  # fmt: skip
    home, run = small_world.home, new_run(SMALL).run
    train = f"train --recipe {files['recipe']} --index small --run {run} --updates 5000"
    verb = started(home.root, *train.split(), variables=environment(local_services, SMALL))
    verb.await_(lambda: "updates: " in verb.said())
    mine = [psutil.Process(pid) for name, _, pid in living_workers(home.runs) if name == run]
    assert len(mine) == 4
    if number == signal.SIGTERM:  # One that cannot hear: it is not waited for.
        mine[-1].suspend()
    verb.end(number)
    _, alive = psutil.wait_procs(mine, timeout=2)
    assert not alive


def test_workers_and_watchers_that_wait_for_records_end_at_once(
    local_services: Endpoints, small_world: App, new_run: Make, started: Start
) -> None:
    home, run = small_world.home, new_run(SMALL).run
    create_topics(small_world.settings.kafka, run)
    variables = environment(local_services, SMALL)
    roles = ("generator", "environment", "learner", "sink", "monitor")
    verbs = [started(home.root, "run", role, "--run", run, variables=variables) for role in roles]
    verbs.append(started(home.root, "watch", "--run", run, "--json", variables=variables))
    for role, verb in zip(roles, verbs, strict=False):
        verb.await_(lambda role=role: (run, role) in [(name, its) for name, its, _ in living_workers(home.runs)])  # type: ignore[misc]
    verbs[-1].await_(lambda: '"state"' in verbs[-1].said())
    for number, verb in enumerate(verbs):
        verb.end(SIGNALS[number % 2])
    assert [role for name, role, _ in living_workers(home.runs) if name == run] == []


def test_load_that_is_sent_as_slowly_as_it_came_ends_with_all_its_workers(
    local_services: Endpoints, streamed: tuple[App, Prepared], started: Start, unique_name: str
) -> None:
    app, _ = streamed
    load = f"replay load --run streamed --into {unique_name} --speed x0.0001"
    verb = started(app.home.root, *load.split(), variables=environment(local_services, SMALL))
    verb.await_(lambda: len([1 for name, _, _ in living_workers(app.home.runs) if name == unique_name]) == 3)
    verb.end(signal.SIGINT)
    assert [role for name, role, _ in living_workers(app.home.runs) if name == unique_name] == []
