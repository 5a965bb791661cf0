"""Decoding outside the loop: what a policy version writes for requests, some at a time, as it is served or sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from learner.generation import Encode, generate_groups
from learner.versions import LoadedVersion
from streams.events import Generation, Position, Request, Sampling

CHUNK_GROUPS = 64


def decode_requests(
    requests: Sequence[Request],
    version: LoadedVersion,
    *,
    encode: Encode,
    sampling: Sampling,
    seed: int,
    name: str,
    report: Report,
) -> Iterator[Generation]:
    """Give one group for each request, in order.

    name: of what is done; it stands where the log's topic would, so that samples differ from those of the loop.
    """
    placed = [(Position(topic=name, partition=0, offset=number), request) for number, request in enumerate(requests)]
    for start in range(0, len(placed), CHUNK_GROUPS):
        report(name, start, len(placed))
        yield from generate_groups(
            placed[start : start + CHUNK_GROUPS],
            sampler=version.sampler,
            tokenizer=version.tokenizer,
            tokenizer_sha256=version.tokenizer_sha256,
            encode_prompt=encode,
            sampling=sampling,
            seed=seed,
            made_at_ms=0,
        )
    report(name, len(placed), len(placed))


def served(run: RunSettings, *, temperature: float = 0.0) -> Sampling:
    """Return how a run's policy is decoded when it is served: one text, greedily; above 0 it is sampled."""
    generation = run.settings.generation
    if temperature > 0:
        return msgspec.structs.replace(generation.sampling(), candidates=1, temperature=temperature)
    return generation.greedy()
