"""Probes: token sequences with the log-probabilities that a version's own policy gives them, kept in its checkpoint.

The learner computes them when it writes a version, on groups of the batch that made it: there the version differs most
from the one before. Whoever loads the version into a server compares the server's answers with them, and needs no model
for that. So a server that answers with another adapter, or with none, is found out before it writes a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from learner.agreement import MEAN_SHARE, Agreement
from learner.logprobs import completion_logprobs
from learner.packing import Candidate, PromptGroup, pack_groups
from learner.policy import Policy
from learner.vllm import VllmClient, VllmError
from streams.events import Generation

PROBES = "probes.json"
PROMPT_TOKENS_MAX = 256
TOKENS_MAX = 1024  # Of a completion: 64 probes of this length take 2 MB.
PROBES_BYTES_MAX = 4 << 20


class AdapterError(VllmError):
    """A server does not compute a version's log-probabilities: it has loaded another adapter, or none."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, tokens that follow it, and the log-probability of each of those at temperature 1, in nats."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@torch.inference_mode()
def make_probes(policy: Policy, generations: Sequence[Generation], *, count: int) -> list[Probe]:
    """Return probes from the first completions of the first groups, at most `count`.

    generations: their tokens are of the policy's vocabulary. A long prompt keeps its end, a long completion its
    beginning. The last token of a completion is left out, so that a server whose context the group fills has room for
    the one token that it must generate.
    """
    sequences = [
        (generation.prompt_token_ids[-PROMPT_TOKENS_MAX:], completion.token_ids[:-1][:TOKENS_MAX])
        for generation in generations
        for completion in generation.completions[:1]
        if generation.prompt_token_ids and len(completion.token_ids) > 1
    ][:count]
    if not sequences:
        return []
    groups = [
        PromptGroup(
            prompt_ids=prompt,
            candidates=(Candidate(token_ids=tokens, logprobs=(0.0,) * len(tokens), advantage=0.0),),
        )
        for prompt, tokens in sequences
    ]
    packed = pack_groups(groups, pad_id=policy.pad_id, device=next(policy.model.parameters()).device)
    own, _ = completion_logprobs(policy.model, packed)  # [N, C]
    return [
        Probe(prompt_ids=prompt, token_ids=tokens, logprobs=tuple(row[: len(tokens)].tolist()))
        for (prompt, tokens), row in zip(sequences, own.float().cpu(), strict=True)
    ]


def write_probes(folder: Path, probes: Sequence[Probe]) -> None:
    """Write probes as a file of a checkpoint; nothing if there are none."""
    if probes:
        (folder / PROBES).write_bytes(msgspec.json.encode(probes))


def read_probes(folder: Path) -> list[Probe]:
    """Return a checkpoint's probes; none if it was written without.

    Raises VllmError if the file does not hold probes.
    """
    path = folder / PROBES
    if not path.exists():
        return []
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(PROBES_BYTES_MAX), type=list[Probe])
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise VllmError(f"{path}: expected the probes of a version, got: {error}") from error


def check_adapter(client: VllmClient, name: str, probes: Sequence[Probe], *, difference_max: float) -> Agreement | None:
    """Compare a server's log-probabilities under an adapter with the probes; return the differences, None without one.

    difference_max: `learner.update.logprob_difference_max`, in nats; the mean must stay within a tenth of it. Prompts'
    log-probabilities are those of temperature 1, and vLLM computes them without its prefix cache.
    Raises AdapterError if they differ by more, VllmError if the server refuses, TransientError if it is down.
    """
    differences: list[float] = []
    for probe in probes:
        answer = client.complete(_probing(name, probe))
        differences += [
            abs(theirs - ours) for theirs, ours in zip(_read(answer, probe, client.url), probe.logprobs, strict=True)
        ]
    if not differences:
        return None
    found = Agreement(
        tokens=len(differences),
        difference_mean=sum(differences) / len(differences),
        difference_max=max(differences),
    )
    if not found.within(difference_max):
        raise AdapterError(
            f"vLLM at {client.url}: adapter {name}: expected log-probabilities within {difference_max:g} nats of the "
            f"policy's own (mean {difference_max * MEAN_SHARE:g}), got up to {found.difference_max:.3g} off (mean "
            f"{found.difference_mean:.3g}, {found.tokens} tokens). The server answers with another adapter or another "
            "base, or its numbers are coarser (bf16). Restart that server, or raise "
            "learner.update.logprob_difference_max"
        )
    return found


def _probing(name: str, probe: Probe) -> dict[str, Any]:
    """Return a request for the log-probabilities of a prompt; the one token that it generates is not read."""
    return {
        "model": name,
        "prompt": [*probe.prompt_ids, *probe.token_ids],
        "n": 1,
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": 0,
        "add_special_tokens": False,
        "stream": False,
    }


def _read(answer: dict[str, Any], probe: Probe, url: str) -> list[float]:
    """Return the log-probabilities of the tokens after the probe's prompt."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    rows = choice.get("prompt_logprobs") if isinstance(choice, dict) else None
    wanted = len(probe.prompt_ids) + len(probe.token_ids)
    if not isinstance(rows, list) or len(rows) != wanted:
        raise VllmError(
            f"vLLM at {url}: expected prompt_logprobs of {wanted} tokens, got {str(rows)[:80]!r}. Is it vLLM 0.25 or "
            "newer? vllm.checked_prompts = 0 does without"
        )
    found = []
    for row, token in zip(rows[len(probe.prompt_ids) :], probe.token_ids, strict=True):
        entry = row.get(str(token)) if isinstance(row, dict) else None
        value = entry.get("logprob") if isinstance(entry, dict) else None
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise VllmError(f"vLLM at {url}: expected a finite log-probability of token {token}, got {str(row)[:80]!r}")
        found.append(float(value))
    return found
