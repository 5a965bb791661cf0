"""Learning from clicks alone, through everything: a server, simulated people, the joiner, and a run."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.runs.listening import begin_live
from infra.runs.training import stream
from infra.runs.verification import verify_run
from infra.simulating.driving import Crowd, SimulationError, drive
from search_env.catalogue.corpora import Document, Query
from search_env.clicks.published import EYE_TRACKED
from search_env.clicks.users import SimulatedUsers
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.index import build_index
from search_env.serving.candidates import read_open_groups
from services.local import Endpoints
from streams.events import Reward, Update
from tests.commands import ROOT, command, environment
from tests.faults.progress import signal_role
from tests.loop.conftest import quiet
from tests.loop.test_streaming import events_of
from tests.services.clicked_world import settings_for, untaught_run
from tests.services.test_serving import serving

UPDATES = 3
QUERIES = ["mug", "red", "green"]
DOCUMENTS = [
    Document(id=f"p{n}", title=f"{colour} {kind}", text="")
    for n, (colour, kind) in enumerate((c, k) for c in ("red", "blue", "green") for k in ("mug", "cup", "lamp"))
]
# People want lamps, whatever they ask for: only expansions with that word find all of them.
GRADES = {f"q-{query}": {"p2": 4, "p5": 4, "p8": 4} for query in QUERIES}


class People:
    """Simulated people who ask the queries of open groups, until the end of the block."""

    def __init__(self, app: App, live: str, url: str) -> None:
        self._folder = app.home.run(live)
        self._url = url
        self._random = random.Random(7)
        self._users = SimulatedUsers(EYE_TRACKED, GRADES, seed=7)
        self._over = threading.Event()
        self.searches = 0
        self.failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._search, daemon=True)

    def __enter__(self) -> People:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _search(self) -> None:
        try:
            while not self._over.is_set():
                # Events move the watermark, so people search also while no group is open.
                asked = sorted({group.query for group in read_open_groups(self._folder)}) or QUERIES
                self._random.shuffle(asked)
                crowd = Crowd(
                    impressions=40, rate=20, clients=50_000, bots=0.0, size=6, seed=self._random.randrange(2**30)
                )
                queries = [Query(id=f"q-{text}", text=text) for text in asked]
                found = asyncio.run(drive(self._url, queries, GRADES, self._users, crowd, report=quiet))
                self.searches += found.searches
        except SimulationError as error:
            self.failed.append(error)


@contextmanager
def listening(app: App, services: Endpoints, live: str, *arguments: str) -> Iterator[None]:
    """Run `listen` as a process, until the end of the block; with --until-read, until it ends."""
    process = subprocess.Popen(
        command(app.home.root, "listen", "--run", live, *arguments),
        cwd=ROOT,
        env=environment(services, app.settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        if process.poll() is None and not arguments:
            process.send_signal(signal.SIGINT)
        process.wait(300)


def until(what: str, condition: object, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def clicked(local_services: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, str, str]]:
    """Give an app, a run that learned from clicks, and the live run; its environment was killed while groups waited."""
    name = f"clicks-{time.time_ns() % 10**9}x"
    live, run, index = f"{name}-live", f"{name}-run", f"{name}-shop"
    home = Home(tmp_path_factory.mktemp("home"))
    app = App(home, settings=settings_for(live), endpoints=local_services)
    killed: list[int] = []
    with closing(connect(ElasticsearchSettings(url=local_services.elasticsearch))) as client:
        version = build_index(client, index, DOCUMENTS, installation="test", directory=home.index(index)).name
        begin_live(app, live)
        prepared = untaught_run(app, run, index=index, version=version, queries=QUERIES, updates=UPDATES)
        with (
            serving(home.root, index, local_services, "--run", live, SEARCHLOOP_SERVE__CANDIDATES_SHARE="1") as server,
            listening(app, local_services, live),
            People(app, live, server.url) as people,
        ):

            def kill_once() -> None:
                until("groups are open", lambda: len(read_open_groups(app.home.run(live))) >= 2)
                before = people.searches
                until("people came", lambda: people.searches >= before + 40)
                signal_role(app, run, "environment", signal.SIGKILL)
                killed.append(len(read_open_groups(app.home.run(live))))

            killer = threading.Thread(target=kill_once, daemon=True)
            killer.start()
            summary = stream(app, prepared, updates=UPDATES, seed=0, report=quiet)
            killer.join(60)
        assert not people.failed and killed
        assert (summary.updates, summary.restarts) == (UPDATES, 1)
        with listening(app, local_services, live, "--until-read"):
            pass
        yield app, run, live
        client.indices.delete(index=version)


def rewards_of(app: App, run: str) -> list[Reward]:
    return [event for event in events_of(app, run, "rewards") if isinstance(event, Reward)]


def test_a_policy_learns_from_clicks_alone_and_the_log_is_sound_after_a_kill(clicked: tuple[App, str, str]) -> None:
    app, run, live = clicked
    rewards = rewards_of(app, run)
    updates = [event for event in events_of(app, run, "updates") if isinstance(event, Update)]
    assert sum(len(update.trained) for update in updates) >= UPDATES, "groups gave gradients"
    scored = [outcome for reward in rewards for outcome in reward.outcomes if outcome.status == "scored"]
    shown = [outcome for outcome in scored if outcome.valid and outcome.expansions]
    assert len({outcome.reward for outcome in shown}) > 2
    assert all(outcome.components["clients"] >= 4 for outcome in shown)
    assert {reward.relevance_model for reward in rewards} == {f"clicks of {live}"}
    with_lamp = [each.reward or 0.0 for each in shown if "lamp" in each.expansions]
    without = [each.reward or 0.0 for each in shown if "lamp" not in each.expansions]
    if with_lamp and without:
        assert sum(with_lamp) / len(with_lamp) > sum(without) / len(without), "people's wish shows in the rewards"
    for name in (run, live):
        assert verify_run(app, name, rebuild=True, offline=False).findings == ()
    account = verify_run(app, run, rebuild=False, offline=False)
    assert not any("outcomes behind" in each for each in account.unseen), account.unseen


def test_closed_groups_are_withdrawn(clicked: tuple[App, str, str]) -> None:
    app, run, live = clicked
    answered = {reward.group_id for reward in rewards_of(app, run)}
    assert answered and not answered & {group.group_id for group in read_open_groups(app.home.run(live))}


def test_without_the_live_runs_ledger_verify_says_what_it_could_not_check(clicked: tuple[App, str, str]) -> None:
    app, run, live = clicked
    ledger = app.home.run(live)
    away = ledger.with_name(f"{live}-away")
    ledger.rename(away)
    try:
        account = verify_run(app, run, rebuild=False, offline=False)
        assert account.findings == ()
        assert any("holds no log of the live run" in each for each in account.unseen)
    finally:
        away.rename(ledger)


def test_another_clip_in_the_settings_than_the_rewards_were_made_with_is_found(clicked: tuple[App, str, str]) -> None:
    app, run, _ = clicked
    path = app.home.run(run).settings_file
    before = path.read_bytes()
    kept = msgspec.json.decode(before)
    kept["settings"]["leser"]["clicks"]["clip"] = 0.001
    path.write_bytes(msgspec.json.encode(kept))
    try:
        rules = {finding.rule for finding in verify_run(app, run, rebuild=False, offline=False).findings}
        assert rules == {"rewards follow from clicks"}
    finally:
        path.write_bytes(before)
