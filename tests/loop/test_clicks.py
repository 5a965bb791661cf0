"""Learning from clicks alone, through everything: a server, simulated people, the joiner, and a run."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.recipes.leser.preparation import prepare
from infra.recipes.recipe import NewRun, Prepared
from infra.runs.listening import begin_live
from infra.runs.training import stream
from infra.runs.verification import verify_run
from infra.simulating.driving import Crowd, SimulationError, drive
from search_env.catalogue.analysis import plain_words
from search_env.catalogue.corpora import Query
from search_env.clicks.published import EYE_TRACKED
from search_env.clicks.users import SimulatedUsers
from search_env.feedback.attribution import JoinSettings
from search_env.feedback.bots import BotSettings
from search_env.leser.environment import LeserEnvironmentSettings
from search_env.serving.candidates import read_open_groups
from services.local import Endpoints
from streams.click_rewards import ClickRewardSettings
from streams.events import Reward, Update
from tests.commands import ROOT, command, environment
from tests.faults.progress import signal_role
from tests.loop.conftest import SMALL, quiet
from tests.loop.test_streaming import events_of
from tests.services.test_serving import serving

UPDATES = 3
JOIN = JoinSettings(
    window_ms=1_500,
    lateness_ms=500,
    early_ms=500,
    memory_ms=5_000,
    settle_seconds=0.2,
    provisional_seconds=600,
    bots=BotSettings(window_ms=1_000, dwell_ms=0, everything_share=0, impressions_max=0),
)


def settings_for(live: str) -> Settings:
    clicks = ClickRewardSettings(live=live, impressions_min=5, wait_seconds=300, client_share_max=0.5)
    leser = LeserEnvironmentSettings(
        reward=SMALL.leser.reward, expansions=SMALL.leser.expansions, rewards="clicks", clicks=clicks
    )
    return msgspec.structs.replace(SMALL, leser=leser, join=JOIN)


class People:
    """Simulated people who ask the queries of open groups, and want what the catalogue's attributes say."""

    def __init__(self, app: App, live: str, url: str) -> None:
        from search_env.queries.intents import load_intents

        queries, self.grades = load_intents(app.home.index("small").intents, "train")
        self._ids = {plain_words(query.text): query.id for query in queries}
        self._folder = app.home.run(live)
        self._url = url
        self._random = random.Random(7)
        self._users = SimulatedUsers(EYE_TRACKED, self.grades, seed=7)
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
                open_now = sorted({group.query for group in read_open_groups(self._folder)})
                # Events move the watermark, so somebody asks something also while no group is open.
                asked = [Query(id=self._ids.get(plain_words(text), text), text=text) for text in open_now or ["mug"]]
                self._random.shuffle(asked)
                crowd = Crowd(
                    impressions=60, rate=60, clients=5_000, bots=0.0, size=6, seed=self._random.randrange(2**30)
                )
                found = asyncio.run(drive(self._url, asked, self.grades, self._users, crowd, report=quiet))
                self.searches += found.searches
        except SimulationError as error:
            self.failed.append(error)


@contextmanager
def listening(app: App, services: Endpoints, live: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `listen` as a process, until the end of the block."""
    process = subprocess.Popen(
        command(app.home.root, "listen", "--run", live, *arguments),
        cwd=ROOT,
        env=environment(services, app.settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.poll() is None and "--until-read" not in arguments:
            process.send_signal(signal.SIGINT)
        process.wait(120)


def prepared_run(app: App, run: str) -> Prepared:
    """Make a run from the small world's warmed-up policy, rewarded by clicks."""
    folder = app.home.run(run)
    shutil.copytree(app.home.run("first"), folder)
    prepared = prepare(app, NewRun(run=run, index="small"), quiet)
    kept = RunSettings(
        run=run,
        recipe="leser",
        index="small",
        index_version=prepared.index,
        seed=0,
        updates=UPDATES,
        settings=app.settings,
    )
    write_run_settings(folder, kept)
    return prepared


def until(what: str, condition: object, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def clicked(small_world: App, local_services: Endpoints) -> Iterator[tuple[App, str, str]]:
    """Give an app, a run that learned from clicks, and the live run; its environment was killed while groups waited."""
    name = f"clicks-{time.time_ns() % 10**9}"
    live, run = f"{name}-live", f"{name}-run"
    app = small_world.with_settings(settings_for(live))
    begin_live(app, live)
    prepared = prepared_run(app, run)
    killed: list[int] = []

    def kill_once() -> None:
        until("groups are open", lambda: len(read_open_groups(app.home.run(live))) >= 2)
        until("people came", lambda: people.searches >= 60)
        signal_role(app, run, "environment", signal.SIGKILL)
        killed.append(len(read_open_groups(app.home.run(live))))

    with (
        serving(
            app.home.root, "small", local_services, "--run", live, SEARCHLOOP_SERVE__CANDIDATES_SHARE="1"
        ) as server,
        listening(app, local_services, live),
        People(app, live, server.url) as people,
    ):
        killer = threading.Thread(target=kill_once, daemon=True)
        killer.start()
        summary = stream(app, prepared, updates=UPDATES, seed=0, report=quiet)
        killer.join(60)
    assert not people.failed and killed and killed[0] >= 2
    assert (summary.updates, summary.restarts) == (UPDATES, 1)
    with listening(app, local_services, live, "--until-read"):
        pass
    yield app, run, live
    for each in (run, live):
        shutil.rmtree(app.home.run(each), ignore_errors=True)


def rewards_of(app: App, run: str) -> list[Reward]:
    return [event for event in events_of(app, run, "rewards") if isinstance(event, Reward)]


def test_a_policy_learns_from_clicks_alone_and_the_log_is_sound_after_a_kill(clicked: tuple[App, str, str]) -> None:
    app, run, live = clicked
    rewards = rewards_of(app, run)
    updates = [event for event in events_of(app, run, "updates") if isinstance(event, Update)]
    assert sum(len(update.trained) for update in updates) >= 2, "some groups gave a gradient"
    scored = [outcome for reward in rewards for outcome in reward.outcomes if outcome.status == "scored"]
    people = [outcome for outcome in scored if outcome.components.get("impressions", 0) > 0]
    assert len({outcome.reward for outcome in people}) > 2
    assert all(outcome.components["clients"] >= 5 for outcome in people)
    assert {reward.relevance_model for reward in rewards} == {f"clicks of {live}"}
    assert len({reward.group_id for reward in rewards}) == len(rewards)
    assert verify_run(app, run, rebuild=True, offline=False).findings == ()
    assert verify_run(app, live, rebuild=True, offline=False).findings == ()


def test_closed_groups_are_withdrawn(clicked: tuple[App, str, str]) -> None:
    app, run, live = clicked
    answered = {reward.group_id for reward in rewards_of(app, run)}
    assert not answered & {group.group_id for group in read_open_groups(Path(app.home.run(live)))}
