"""A generator answers what is granted, from every partition, and fetches nothing a second time."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from learner.batches import BatchSettings
from learner.checkpoints import read_manifest
from learner.generation import GenerationSettings
from learner.learning import write_first_checkpoint
from learner.policy import build_tiny
from learner.policy_settings import TinySettings
from learner.prompts import PromptSettings, tokenize_request
from learner.workers import run_generator
from services.local import Endpoints
from streams.clients import GroupConsumer
from streams.events import Generation, PolicyVersion, Request
from streams.kafka_settings import KafkaSettings
from streams.stopping import Stop
from tests.hand_fed import Run

PARTITIONS, ROUNDS, ROUND = 3, 5, 6


def test_granted_requests_of_all_partitions_are_answered_once_and_none_is_given_back(
    local_services: Endpoints, unique_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(KafkaSettings(bootstrap=local_services.kafka, partitions=PARTITIONS), unique_name)
    shape = TinySettings(vocabulary_size=300, hidden_size=16, layers=1, heads=2, feedforward_size=32)
    folder = write_first_checkpoint(tmp_path / "checkpoints", build_tiny(["red patch cable"] * 4, shape))
    policy = read_manifest(folder, verify=True).policy

    def grant(each: int) -> None:
        run.outbox.send(
            PolicyVersion(
                run=run.name,
                policy=policy,
                parent=None,
                path=f"checkpoints/{folder.name}",
                requests_admitted=dict.fromkeys(range(PARTITIONS), each),
            )
        )
        run.outbox.flush()

    for number in range(PARTITIONS * 100):
        request = Request(request_id=f"r{number}", run=run.name, query_id="q", query="red cable", index="i-1")
        run.outbox.send(request, partition=number % PARTITIONS)
    grant(0)
    sought: list[tuple[Any, int]] = []
    seek = GroupConsumer.seek

    def noted(consumer: GroupConsumer, partition: Any, offset: int) -> None:
        sought.append((partition, offset))
        seek(consumer, partition, offset)

    monkeypatch.setattr(GroupConsumer, "seek", noted)
    generate = partial(
        run_generator,
        checkpoints=tmp_path / "checkpoints",
        seed=0,
        generation=GenerationSettings(candidates=2, tokens_max=4),
        encode_prompt=partial(tokenize_request, settings=PromptSettings()),
        batch=BatchSettings(groups=PARTITIONS * ROUND, staleness_max=0),
    )
    stop = Stop()
    worker = threading.Thread(target=lambda: generate(run.post("generator-1", stop)), daemon=True)
    worker.start()
    try:
        for number in range(1, ROUNDS + 1):
            grant(number * ROUND)
            run.wait_for("generations", number * PARTITIONS * ROUND)
            if number == 1:
                sought.clear()  # A group without offsets begins by seeking its first ones.
    finally:
        stop.set()
        worker.join(30)
    answered = [event.source for event in run.events("generations") if isinstance(event, Generation)]
    granted = {(partition, offset) for partition in range(PARTITIONS) for offset in range(ROUNDS * ROUND)}
    assert sorted((place.partition, place.offset) for place in answered) == sorted(granted)
    assert not sought
