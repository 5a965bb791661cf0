"""The whole loop in one process, synchronous, without a broker: to read, to debug, and to check streaming.

request → generation → reward → batch → update → policy version, on one page. The workers call the same parts. A
streaming run with a staleness limit of 0 on the same requests and seed gives the same weights, bit for bit; a test
shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from infra.app.home import RunFolder
from learner.batches import BatchAssembler, BatchSettings
from learner.checkpoints import load_current
from learner.generation import Encode, GenerationSettings, generate_groups
from learner.learning import Learner, LearnerSettings
from learner.versions import LoadedVersion
from search_env.environments import Environment
from streams.codec import content_sha256, encode_event
from streams.events import Position, Request, Update
from streams.topics import topic_name


def run_loop(
    requests: Sequence[Request],
    *,
    run: str,
    run_dir: RunFolder,
    environment: Environment,
    generation: GenerationSettings,
    encode_prompt: Encode,
    batch: BatchSettings,
    learner: LearnerSettings,
    seed: int,
) -> Iterator[Update]:
    """Yield the update of every full batch of requests, each after its checkpoint is durable.

    requests: from the run's first one on. Those that the newest checkpoint in run_dir has used up are skipped.
    """
    checkpoints = run_dir.checkpoints
    folder, manifest = load_current(checkpoints)
    state = Learner.resume(folder, manifest, run=run, settings=learner, no_repeat=generation.no_repeat)
    version = LoadedVersion(folder, manifest.policy)
    assembler = BatchAssembler(
        batch,
        positions=manifest.positions,
        requests_consumed=manifest.requests_consumed,
        recent_groups=manifest.recent_groups,
        low_water=manifest.low_water,
    )
    used_up = manifest.requests_consumed.get(0, 0)
    for start in range(used_up, len(requests) - batch.groups + 1, batch.groups):
        chunk = [
            (Position(topic=topic_name(run, "requests"), partition=0, offset=start + index), request)
            for index, request in enumerate(requests[start : start + batch.groups])
        ]
        generations = generate_groups(
            chunk,
            sampler=version.sampler,
            tokenizer=version.tokenizer,
            tokenizer_sha256=version.tokenizer_sha256,
            encode_prompt=encode_prompt,
            sampling=generation.sampling(),
            seed=seed,
            made_at_ms=0,
        )
        inputs = [
            (
                group,
                Position(topic=topic_name(run, "generations"), partition=0, offset=start + index),
                content_sha256(encode_event(group)),
            )
            for index, group in enumerate(generations)
        ]
        for index, reward in enumerate(environment.score_many(inputs)):
            assembler.add(Position(topic=topic_name(run, "rewards"), partition=0, offset=start + index), reward)
        folder = state.learn(assembler.take(step=state.step), checkpoints)
        version.refresh(folder, state.manifest.policy)
        if state.manifest.update is not None:
            yield state.manifest.update
