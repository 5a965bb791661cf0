"""The generator with its policy at a server: over a real broker, at a server that fails first and is started anew."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import msgspec
import pytest

from learner.batches import BatchSettings
from learner.checkpoints import Manifest
from learner.generation import GenerationSettings
from learner.learning import write_policy_checkpoint
from learner.policy import build_tiny, load_policy, save_policy, with_lora
from learner.policy_settings import LoraSettings, TinySettings
from learner.prompts import PromptSettings, tokenize_request
from learner.serving import ServedVersion
from learner.vllm import VllmSettings
from learner.workers import run_generator
from services.local import Endpoints
from streams.delivery import DeliverySettings
from streams.events import DeadLetter, Generation, PolicyRef, PolicyVersion, Request
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.stopping import Stop
from tests import hand_fed
from tests.fake_vllm import FakeVllm

PATIENT = DeliverySettings(retry_first_seconds=0.05, retry_pause_seconds_max=0.2)


class Run(hand_fed.Run):
    """A run with a LoRA policy on a broker: what a learner and a user do, by hand."""

    def __init__(self, kafka: KafkaSettings, name: str, folder: Path) -> None:
        super().__init__(kafka, name)
        self.folder = folder
        shape = TinySettings(vocabulary_size=300, hidden_size=16, layers=1, heads=2, feedforward_size=32)
        self.base = save_policy(build_tiny(["red patch cable"] * 4, shape), folder / "base")

    def announce(self, step: int) -> None:
        """Write a version and publish it."""
        assert self.base.path is not None
        policy = with_lora(load_policy(self.base.path), LoraSettings(rank=2))
        manifest = Manifest(policy=PolicyRef(lineage="1-aaaaaa", step=step, sha256=""), parent=None)
        folder, kept = write_policy_checkpoint(self.folder / "checkpoints", policy, manifest, None)
        path = f"checkpoints/{folder.name}"
        self.outbox.send(PolicyVersion(run=self.name, policy=kept.policy, parent=None, path=path, made_at_ms=0))
        self.outbox.flush()

    def ask(self, number: int) -> None:
        """Publish one request."""
        name = f"q{number}"
        self.outbox.send(
            Request(request_id=name, run=self.name, query_id=name, query="red cable", index="i-1", split="train")
        )
        self.outbox.flush()

    def generate(self, url: str, stop: Stop, patience_seconds: float = 60.0) -> threading.Thread:
        """Start a generator in a thread; patience_seconds: before requests become dead letters."""

        def opened(folder: Path, reference: PolicyRef) -> ServedVersion:
            settings = VllmSettings(retry_seconds_max=0, timeout_seconds=5)
            return ServedVersion(
                folder,
                reference,
                url=url,
                settings=settings,
                directory=self.folder,
                staleness_max=1,
                difference_max=0.1,
            )

        patient = msgspec.structs.replace(PATIENT, retry_seconds_max=patience_seconds)
        thread = threading.Thread(
            target=run_generator,
            args=(Post(run=self.name, member="generator-1", kafka=self.kafka, delivery=patient, stop=stop),),
            kwargs={
                "checkpoints": self.folder / "checkpoints",
                "seed": 0,
                "generation": GenerationSettings(
                    backend="vllm", no_repeat=False, candidates=2, tokens_max=6, linger_seconds=0
                ),
                "encode_prompt": partial(tokenize_request, settings=PromptSettings()),
                "batch": BatchSettings(groups=2, staleness_max=1),
                "open_version": opened,
            },
        )
        thread.start()
        return thread


@pytest.fixture
def run(local_services: Endpoints, unique_name: str, tmp_path: Path) -> Run:
    return Run(KafkaSettings(bootstrap=local_services.kafka, partitions=1), unique_name, tmp_path)


def test_groups_come_from_the_newest_version_at_a_server_that_fails_at_first_and_loses_it_later(run: Run) -> None:
    stop = Stop()
    with FakeVllm() as server:
        run.announce(0)
        run.ask(0)
        server.failures.extend([(503, {}), (429, {}), (500, {}), (503, {})])  # Loading fails, then writing.
        thread = run.generate(server.url, stop)
        try:
            run.wait_for("generations", 1)
            server.adapters.clear()
            run.ask(1)
            run.wait_for("generations", 2)
            run.announce(1)
            run.announce(2)
            while "policy-v1-aaaaaa-000002" not in server.adapters:
                assert thread.is_alive()
                time.sleep(0.05)
            run.ask(2)
            groups = run.wait_for("generations", 3)
        finally:
            stop.set()
            thread.join(30)
    assert not thread.is_alive()
    assert all(isinstance(group, Generation) for group in groups)
    assert [group.policy.step for group in groups] == [0, 0, 2]  # type: ignore[attr-defined]
    assert [len(group.completions) for group in groups] == [2, 2, 2]  # type: ignore[attr-defined]
    models = [body["model"] for body in server.asked("/v1/completions")]
    assert models[0] == "policy-v1-aaaaaa-000000" and models[-1] == "policy-v1-aaaaaa-000002"
    assert run.events("dead-letters") == []


def test_a_version_that_a_server_refuses_leaves_the_one_before_in_use_until_it_is_taken(run: Run) -> None:
    stop = Stop()
    with FakeVllm() as one, FakeVllm() as two:
        run.announce(0)
        run.ask(0)
        thread = run.generate(f"{one.url},{two.url}", stop)
        try:
            run.wait_for("generations", 1)
            two.refuses_adapters = True
            run.announce(1)
            while not any(body["lora_name"].endswith("000001") for body in two.asked("/v1/load_lora_adapter")):
                assert thread.is_alive()
                time.sleep(0.05)
            run.ask(1)
            run.wait_for("generations", 2)
            assert "policy-v1-aaaaaa-000001" not in {*one.adapters, *two.adapters}
            two.refuses_adapters = False
            while not all("policy-v1-aaaaaa-000001" in server.adapters for server in (one, two)):
                assert thread.is_alive()
                time.sleep(0.05)
            run.ask(2)
            groups = run.wait_for("generations", 3)
        finally:
            stop.set()
            thread.join(30)
    assert not thread.is_alive()
    assert [group.policy.step for group in groups] == [0, 0, 1]  # type: ignore[attr-defined]
    assert run.events("dead-letters") == []


def test_past_the_limit_the_requests_are_dead_letters_and_the_stream_moves_on(run: Run) -> None:
    stop = Stop()
    with FakeVllm() as server:
        run.announce(0)
        thread = run.generate(server.url, stop, patience_seconds=0.0)
        try:
            while "policy-v1-aaaaaa-000000" not in server.adapters:
                assert thread.is_alive()
                time.sleep(0.05)
            server.failures.append((503, {}))
            run.ask(0)
            (letter,) = run.wait_for("dead-letters", 1)
            run.ask(1)
            (group,) = run.wait_for("generations", 1)
        finally:
            stop.set()
            thread.join(30)
    assert isinstance(letter, DeadLetter) and "answers 503" in letter.error and letter.stage == "generator"
    assert isinstance(group, Generation) and group.request.query_id == "q1"
