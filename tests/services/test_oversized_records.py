"""Requests and generations that are sound and too large to be answered: a dead letter each, and the stream moves on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import pytest

from learner.batches import BatchSettings
from learner.checkpoints import read_manifest
from learner.generation import GenerationSettings
from learner.learning import write_first_checkpoint
from learner.policy import build_tiny
from learner.policy_settings import TinySettings
from learner.prompts import PromptSettings, tokenize_request
from learner.workers import run_generator
from search_env.environments import Inputs
from search_env.workers import run_environment
from services.local import Endpoints
from streams.codec import RECORD_BYTES_MAX, encode_event
from streams.events import Context, DeadLetter, Generation, Outcome, PolicyVersion, Request, Reward
from streams.kafka_settings import KafkaSettings
from tests.hand_fed import Run
from tests.stored_events import generation

NEEDS_BYTES = 400  # What a request holds beside its query, at most.


@pytest.fixture
def run(local_services: Endpoints, unique_name: str) -> Run:
    return Run(KafkaSettings(bootstrap=local_services.kafka, partitions=1), unique_name)


def asked(run: str, name: str, *, query: str = "red cable", choices: int = 0) -> Request:
    context = Context(choices=tuple(f"word{n}" for n in range(choices))) if choices else Context()
    return Request(request_id=name, run=run, query_id=name, query=query, index="i-1", split="live", context=context)


def test_a_request_that_fits_no_prompt_or_no_record_is_a_dead_letter_and_the_next_one_is_answered(
    run: Run, tmp_path: Path
) -> None:
    shape = TinySettings(vocabulary_size=300, hidden_size=16, layers=1, heads=2, feedforward_size=32)
    folder = write_first_checkpoint(tmp_path / "checkpoints", build_tiny(["red patch cable"] * 4, shape))
    policy = read_manifest(folder, verify=True).policy
    run.outbox.send(PolicyVersion(run=run.name, policy=policy, parent=None, path=f"checkpoints/{folder.name}"))
    many_bytes = asked(run.name, "emoji", query="\U0001f600" * 160)  # As long as a prompt shows: 640 tokens of a byte.
    largest = asked(run.name, "huge", query="x" * (RECORD_BYTES_MAX - NEEDS_BYTES))
    sound = [asked(run.name, f"sound-{number}") for number in range(3)]
    for request in (sound[0], many_bytes, sound[1], asked(run.name, "choices", choices=5000), largest, sound[2]):
        run.outbox.send(request)
    run.outbox.flush()
    generate = partial(
        run_generator,
        checkpoints=tmp_path / "checkpoints",
        seed=0,
        generation=GenerationSettings(candidates=2, tokens_max=6, linger_seconds=0),
        encode_prompt=partial(tokenize_request, settings=PromptSettings()),
        batch=BatchSettings(groups=3, staleness_max=1),
    )
    groups = run.until(lambda stop: generate(run.post("generator-1", stop)), "generations", 3)
    assert [group.request for group in groups if isinstance(group, Generation)] == sound
    letters = [letter for letter in run.events("dead-letters") if isinstance(letter, DeadLetter)]
    assert [letter.source.offset for letter in letters] == [1, 3, 4]
    assert "tokens" in letters[0].error and "bytes" in letters[2].error


class Everything:
    """Scores every group with 1."""

    def score_many(self, generations: Inputs) -> list[Reward]:
        return [
            Reward(
                group_id=event.group_id,
                generation=event,
                source=source,
                content_sha256=digest,
                outcomes=tuple(Outcome(status="scored", valid=True, reward=1.0) for _ in event.completions),
                index="i-1",
                relevance_model="none",
                reward_sha256="r",
            )
            for event, source, digest in generations
        ]

    def failed_many(self, generations: Inputs, *, error: str) -> list[Reward]:
        raise AssertionError(error)


def test_a_generation_whose_reward_would_be_too_large_is_a_dead_letter_and_the_next_one_is_scored(run: Run) -> None:
    large = generation(1)
    room = RECORD_BYTES_MAX - len(encode_event(large))
    query = large.request.query + "x" * (room - 100)
    large = msgspec.structs.replace(large, request=msgspec.structs.replace(large.request, query=query))
    for event in (generation(0), large, generation(2)):
        run.outbox.send(event)
    run.outbox.flush()
    rewards = run.until(lambda stop: run_environment(run.post("one", stop), Everything()), "rewards", 2)
    assert [reward.source.offset for reward in rewards if isinstance(reward, Reward)] == [0, 2]
    (letter,) = run.events("dead-letters")
    assert isinstance(letter, DeadLetter) and letter.source.offset == 1 and letter.value == encode_event(large)
