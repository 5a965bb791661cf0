"""Decoding outside the loop: a policy version writes texts for requests, decoded as it is served or sampled."""

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
    """Yield one group for each request, in order, decoded `CHUNK_GROUPS` at a time. Only so many are asked for at once.

    name: of the task, for the report. It also stands in each position in place of the log's topic, so that samples
    differ from those of the loop.
    """
    for start in range(0, len(requests), CHUNK_GROUPS):
        report(name, start, len(requests))
        some = enumerate(requests[start : start + CHUNK_GROUPS], start=start)
        yield from generate_groups(
            [(Position(topic=name, partition=0, offset=number), request) for number, request in some],
            sampler=version.sampler,
            tokenizer=version.tokenizer,
            tokenizer_sha256=version.tokenizer_sha256,
            encode_prompt=encode,
            sampling=sampling,
            seed=seed,
            made_at_ms=0,
        )
    report(name, len(requests), len(requests))


def served(run: RunSettings, *, temperature: float = 0.0) -> Sampling:
    """Return the sampling of a served policy: one text, decoded greedily; a temperature above 0 samples it."""
    generation = run.settings.generation
    if temperature > 0:
        return msgspec.structs.replace(generation.sampling(), candidates=1, temperature=temperature)
    return generation.greedy()
