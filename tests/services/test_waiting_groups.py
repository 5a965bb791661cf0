"""Groups that wait for people, over a real server, joiner and Kafka: shown, counted, answered, also after a restart."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.promotion.state import RAMP_FILE
from infra.recipes.leser.clicked import LiveOutcomes
from infra.runs.listening import begin_live, join
from search_env.leser.clicked import ClickedEnvironment
from search_env.leser.expansions import ExpansionSettings
from search_env.serving.candidates import read_open_groups
from search_env.serving.choosing import RAW
from search_env.serving.ramp import Ramp
from search_env.waiting import run_waiting_environment
from services.local import Endpoints
from streams.click_rewards import ClickRewardSettings
from streams.clients import committed_offsets, connect_admin, connect_producer, create_topics
from streams.clock import now_ms
from streams.delivery import DeliverySettings, Outbox
from streams.events import Completion, Generation, Reward
from streams.ids import is_candidate_choice
from streams.posts import Post
from streams.stopping import Stop
from streams.utility import UtilitySettings
from tests.kafka_cluster import wait_until
from tests.services.clicked_world import JOIN
from tests.services.test_serving import Server, click, in_kafka, serving, shop  # noqa: F401 - a fixture.
from tests.stored_events import generation

SETTINGS = ClickRewardSettings(impressions_min=3, wait_seconds=600, client_share_max=1.0)
# "mug" finds p0, p3 and p6; "lamp" adds p2, p5 and p8, "cup" the rest.
WANTED = "p2"
TEXTS = ('<answer>["lamp"]</answer>', '<answer>["cup"]</answer>', "<answer>[]</answer>", "no list")


def group_of(number: int, query: str) -> Generation:
    plain = generation(number)
    return msgspec.structs.replace(
        plain,
        request=msgspec.structs.replace(plain.request, query=query),
        sampling=msgspec.structs.replace(plain.sampling, candidates=len(TEXTS)),
        completions=tuple(Completion(text=text, token_ids=(1,), logprobs=(-1.0,), finish="stop") for text in TEXTS),
        made_at_ms=now_ms(),
    )


class World:
    """A training run with open groups, a live run with its joiner, and the environment between them."""

    def __init__(self, home: Path, index: str, services: Endpoints, run: str) -> None:
        self.app = App(Home(home), settings=Settings(join=JOIN), endpoints=services)
        self.kafka = self.app.connections.kafka
        self.live, self.run, self.index = index, run, index
        begin_live(self.app, index)
        create_topics(self.kafka, run)
        self.folder = self.app.home.run(index)
        self.services = services

    def write(self, *groups: Generation) -> None:
        producer = connect_producer(self.kafka, client_id="test")
        outbox = Outbox(producer, self.run, stage="generator", settings=DeliverySettings())
        for group in groups:
            outbox.send(group)
        outbox.flush()
        producer.close()

    @contextmanager
    def environment(self, version: str) -> Iterator[None]:
        outcomes = LiveOutcomes(self.kafka, self.live, member="test-outcomes")
        made = ClickedEnvironment(
            outcomes,
            self.folder,
            run=self.run,
            index=version,
            settings=msgspec.structs.replace(SETTINGS, live=self.live),
            utility=UtilitySettings(),
            expansions=ExpansionSettings(),
        )
        stop = Stop()
        post = Post(run=self.run, member="environment-1", kafka=self.kafka, delivery=DeliverySettings(), stop=stop)
        with in_thread(lambda: run_waiting_environment(post, made), stop):
            yield
        outcomes.close()

    @contextmanager
    def joiner(self) -> Iterator[None]:
        stop = Stop()
        with in_thread(lambda: join(self.app, self.live, worker=1, stop=stop), stop):
            yield

    def rewards(self) -> list[Reward]:
        return [each for each in in_kafka(self.services, self.run, "rewards") if isinstance(each, Reward)]

    def committed(self) -> int:
        admin = connect_admin(self.kafka)
        try:
            return sum(committed_offsets(admin, f"{self.run}.environment").values())
        finally:
            admin.close()


@contextmanager
def in_thread(body: object, stop: Stop) -> Iterator[None]:
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            body()  # type: ignore[operator]
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not failed, failed


def person(server: Server, number: int, query: str, seen: Counter[str]) -> None:
    """Search once, and click the wanted document if it is there."""
    _, found = server.get(f"/search?query={query}&size=9&client_id=c{number}")
    seen[found["policy"]] += 1
    if WANTED in [hit["id"] for hit in found["hits"]]:
        server.post("/events", click(found["query_id"], WANTED))


@pytest.fixture
def world(shop: tuple[Path, str], local_services: Endpoints, unique_name: str) -> Iterator[World]:  # noqa: F811
    home, index = shop
    yield World(home, index, local_services, f"{unique_name}r")


def version_of(world: World) -> str:
    from search_env.engine.index import load_manifest

    return load_manifest(world.app.home.index(world.index)).name


def test_groups_are_shown_counted_and_answered_in_order_and_a_restart_in_the_middle_changes_nothing(
    world: World, local_services: Endpoints
) -> None:
    version, seen, number = version_of(world), Counter[str](), 0
    rare, often = group_of(0, "oak"), group_of(1, "mug")
    world.write(rare, often)
    with ExitStack() as over:
        server = over.enter_context(
            serving(
                world.app.home.root,
                world.index,
                local_services,
                SEARCHLOOP_SERVE__CANDIDATES_SHARE="1",
                SEARCHLOOP_SERVE__RELOAD_SECONDS="0.1",
            )
        )
        over.enter_context(world.joiner())
        with world.environment(version):
            wait_until(lambda: len(read_open_groups(world.folder)) == 2, "both groups are open")
            # Every search counts, also the first ones. So everybody here clicks what is wanted.
            while not any(map(is_candidate_choice, seen)):
                person(server, number := number + 1, "mug", seen)
            for _ in range(10):
                person(server, number := number + 1, "mug", seen)
            assert world.committed() == 0
        assert len(read_open_groups(world.folder)) == 2, "a stopped environment leaves its groups open"
        counted_before = set(seen)
        with world.environment(version):
            deadline = time.monotonic() + 120
            while "mug" in {each.query for each in read_open_groups(world.folder)} and time.monotonic() < deadline:
                person(server, number := number + 1, "mug", seen)
            assert world.rewards() == [], "the first group of its partition still waits"
            while not world.rewards() and time.monotonic() < deadline:
                person(server, number := number + 1, "oak", seen)
            wait_until(lambda: world.committed() == 2, "both are committed")
    first, second = world.rewards()
    assert [first.group_id, second.group_id] == [rare.group_id, often.group_id]
    lamp, cup, nothing, invalid = second.outcomes
    assert lamp.reward is not None and cup.reward is not None
    assert (lamp.reward, cup.reward) == (1.2, 0.2), "everybody who sees the wanted document clicks it, nobody else can"
    assert (nothing.reward, invalid.reward) == (0.2, 0.0)
    assert min(lamp.components["clients"], lamp.components["raw_impressions"]) >= 3
    assert read_open_groups(world.folder) == []
    assert counted_before & {f"{often.group_id}.0", f"{often.group_id}.1", RAW}


def _shows_candidates(server: Server) -> bool:
    return any(is_candidate_choice(server.get("/search?query=mug&size=1")[1]["policy"]) for _ in range(10))


def test_a_ramp_is_not_disturbed_by_open_groups(world: World, local_services: Endpoints) -> None:
    version = version_of(world)
    world.write(group_of(0, "mug"))
    with (
        serving(
            world.app.home.root,
            world.index,
            local_services,
            SEARCHLOOP_SERVE__CANDIDATES_SHARE="1",
            SEARCHLOOP_SERVE__RELOAD_SECONDS="0.1",
        ) as server,
        world.environment(version),
    ):
        wait_until(lambda: _shows_candidates(server), "the server shows candidates")
        ramp = Ramp(version="1-abcdef-000004", share=0.5, since_ms=1)
        (world.folder / RAMP_FILE).write_bytes(msgspec.json.encode(ramp))
        wait_until(lambda: not _shows_candidates(server), "the ramp holds the candidates back")
        policies = {server.get(f"/search?query=mug&size=1&client_id=c{n}")[1]["policy"] for n in range(40)}
        assert policies <= {RAW, ramp.version}
