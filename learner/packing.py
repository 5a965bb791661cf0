"""Groups packed into tensors, so that a group's shared prompt is forwarded once.

A batch has two tensors with one row per group. The first holds the prompts without their last token, which fill a
key-value cache. The second holds [last prompt token | completion 1 | … | completion G] on top of that cache. Position
ids restart at the prompt's length in every completion. A block mask lets a completion see only the prompt and itself,
so each completion gets exactly the distribution that it would get alone. Plain rows of prompt + completion forward
G·(P+C) tokens per group; packed rows forward P + G·(C−1): 4.5 times fewer at P=256, C=32, G=8.

One row with one mask would be slower than two tensors. Its attention would multiply the prompt with all completions,
only to mask the result. The last layer would be computed and differentiated for prompt tokens that predict nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.constraints import banned_positions
from learner.selecting import Selector, banned_pointer_positions, forbidden
from streams.errors import SearchloopError

PROMPT, PADDING = -1, -2  # Segments of a row; completions count from 0.
# Beyond these bounds fp32 has infinities: logits divided by a temperature, and differences of log-probabilities.
TEMPERATURE_MIN, LOGPROB_MIN = 1e-6, -1e30


class GroupError(SearchloopError, ValueError):
    """A group cannot be trained on. The message names the completion and its fault."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One scored completion: token_ids, and logprobs of the distribution sampled from; both have equal length ≥ 1."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float


@dataclass(frozen=True, kw_only=True)
class PromptGroup:
    """One prompt with the candidates to learn from.

    temperature: the sampler's, > 0. opener_ids: tokens that open an expansion (no-repeat rule); empty: no rule.
    selector: the tokens of a selector's answers; None: the policy writes text. All groups of a batch have the same.
    """

    prompt_ids: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    temperature: float = 1.0
    opener_ids: frozenset[int] = frozenset()
    selector: Selector | None = None


@dataclass(frozen=True, kw_only=True)
class PackedGroups:
    """The tensors of some groups; completions follow the groups' order, and C is the length of the longest.

    prefix_ids: [B, P − 1] the prompts without their last token, padded on the right; P is the longest prompt.
    input_ids, position_ids: [B, T] the last prompt token and the completions without their last tokens.
    attention: [B, T, P − 1 + T] bool, True = may attend; keys are those of the prefix, then those of the row.
    positions: [M] index into the flattened [B·T] hidden states that predict each completion token.
    targets: [M] the token predicted there. temperatures: [M].
    banned_rows, banned_tokens: [K] index into M and token id that the no-repeat or selector rule forbids there.
    answer_ids: [A] ascending, the only tokens that a selector writes; None: the whole vocabulary.
    mask: [N, C] True at completion tokens; its True entries, row by row, are the M tokens.
    behaviour_logprobs: [N, C], 0 at padding. advantages: [N].
    """

    prefix_ids: Tensor
    input_ids: Tensor
    position_ids: Tensor
    attention: Tensor
    positions: Tensor
    targets: Tensor
    temperatures: Tensor
    banned_rows: Tensor
    banned_tokens: Tensor
    mask: Tensor
    behaviour_logprobs: Tensor
    advantages: Tensor
    answer_ids: Tensor | None = None


def check_group(group: PromptGroup, *, vocabulary: int, positions_max: int) -> None:
    """Raise GroupError unless the group can be packed and a sampler can have given its log-probabilities.

    vocabulary: V of the policy. positions_max: the longest prompt + completion that the policy takes, in tokens.
    """
    if not group.prompt_ids:
        raise GroupError("expected a prompt of at least one token, got none")
    if not group.candidates:
        raise GroupError("expected at least one completion, got none")
    if not (group.temperature > 0 and math.isfinite(group.temperature)):
        raise GroupError(f"expected a sampling temperature > 0, got {group.temperature}: greedy text has no gradient")
    if group.temperature < TEMPERATURE_MIN:
        raise GroupError(f"expected a sampling temperature of {TEMPERATURE_MIN:g} at least, got {group.temperature:g}")
    _check_ids(group.prompt_ids, vocabulary, "prompt")
    for index, candidate in enumerate(group.candidates):
        name = f"completion {index}"
        length = len(candidate.token_ids)
        if length == 0 or length != len(candidate.logprobs):
            raise GroupError(
                f"{name}: expected one log-probability per token, got {len(candidate.logprobs)} for {length}"
            )
        if len(group.prompt_ids) + length > positions_max:
            raise GroupError(
                f"{name}: expected at most {positions_max} tokens with the prompt, got {len(group.prompt_ids) + length}"
            )
        _check_ids(candidate.token_ids, vocabulary, name)
        if not all(math.isfinite(logprob) and logprob <= 1e-4 for logprob in candidate.logprobs):
            raise GroupError(f"{name}: expected finite log-probabilities ≤ 0, got {max(candidate.logprobs)} or NaN")
        if (lowest := min(candidate.logprobs)) < LOGPROB_MIN:
            raise GroupError(f"{name}: expected log-probabilities of {LOGPROB_MIN:g} at least, got {lowest:g}")
        if not math.isfinite(candidate.advantage):
            raise GroupError(f"{name}: expected a finite advantage, got {candidate.advantage}")
        if group.selector is not None and (reason := forbidden(group.prompt_ids, candidate.token_ids, group.selector)):
            raise GroupError(f"{name}: {reason} (selector rule)")
        for position, token in banned_positions(candidate.token_ids, group.opener_ids):
            if candidate.token_ids[position] == token:
                raise GroupError(f"{name}: token {token} at {position} begins an expansion twice (no-repeat rule)")


def pack_groups(groups: Sequence[PromptGroup], *, pad_id: int = 0, device: torch.device | str = "cpu") -> PackedGroups:
    """Return the groups' tensors. Group sizes and lengths may vary; groups must have passed `check_group`.

    pad_id: any valid token id; padding is never attended to and never predicted.
    """
    candidates = [candidate for group in groups for candidate in group.candidates]
    longest = max(len(candidate.token_ids) for candidate in candidates)  # C
    prefix = max(len(group.prompt_ids) for group in groups) - 1  # P - 1
    # A completion's last token predicts nothing, so the row does not contain it.
    width = 1 + max(sum(len(candidate.token_ids) - 1 for candidate in group.candidates) for group in groups)  # T

    prefix_ids = torch.full((len(groups), prefix), pad_id, dtype=torch.long)
    input_ids = torch.full((len(groups), width), pad_id, dtype=torch.long)
    position_ids = torch.zeros((len(groups), width), dtype=torch.long)
    segments = torch.full((len(groups), prefix + width), PADDING, dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    temperatures: list[float] = []
    banned: list[tuple[int, int]] = []
    for row, group in enumerate(groups):
        prompt = len(group.prompt_ids)
        prefix_ids[row, : prompt - 1] = torch.tensor(group.prompt_ids[:-1])
        input_ids[row, 0], position_ids[row, 0] = group.prompt_ids[-1], prompt - 1
        segments[row, : prompt - 1] = segments[row, prefix] = PROMPT
        start = 1
        for number, candidate in enumerate(group.candidates):
            end = start + len(candidate.token_ids) - 1
            input_ids[row, start:end] = torch.tensor(candidate.token_ids[:-1])
            position_ids[row, start:end] = torch.arange(prompt, prompt + end - start)
            segments[row, prefix + start : prefix + end] = number
            banned.extend((len(targets) + position, token) for position, token in _banned(group, candidate))
            positions.append(row * width)
            positions.extend(range(row * width + start, row * width + end))
            targets.extend(candidate.token_ids)
            temperatures.extend([group.temperature] * len(candidate.token_ids))
            start = end

    selector = groups[0].selector
    lengths = torch.tensor([len(candidate.token_ids) for candidate in candidates])
    mask = torch.arange(longest)[None, :] < lengths[:, None]  # [N, C]
    behaviour = torch.zeros(mask.shape)
    behaviour[mask] = torch.tensor([logprob for candidate in candidates for logprob in candidate.logprobs])
    return PackedGroups(
        prefix_ids=prefix_ids.to(device),
        input_ids=input_ids.to(device),
        position_ids=position_ids.to(device),
        attention=_block_mask(segments, prefix).to(device),
        positions=torch.tensor(positions, device=device),
        targets=torch.tensor(targets, device=device),
        temperatures=torch.tensor(temperatures, dtype=torch.float64, device=device),
        banned_rows=torch.tensor([row for row, _ in banned], dtype=torch.long, device=device),
        banned_tokens=torch.tensor([token for _, token in banned], dtype=torch.long, device=device),
        mask=mask.to(device),
        behaviour_logprobs=behaviour.to(device),
        advantages=torch.tensor([candidate.advantage for candidate in candidates], device=device),
        answer_ids=None if selector is None else torch.tensor(selector.answer_ids, device=device),
    )


def _banned(group: PromptGroup, candidate: Candidate) -> list[tuple[int, int]]:
    if group.selector is None:
        return banned_positions(candidate.token_ids, group.opener_ids)
    return banned_pointer_positions(group.prompt_ids, candidate.token_ids, group.selector)


def _block_mask(segments: Tensor, prefix: int) -> Tensor:
    """Return [B, T, P − 1 + T]: a row's token sees the prompt and the earlier tokens of its own completion.

    segments: [B, P − 1 + T] number of the completion, PROMPT or PADDING; the first `prefix` columns are keys only.
    """
    width = segments.shape[1] - prefix
    query, key = segments[:, prefix:, None], segments[:, None, :]
    earlier = torch.ones((width, prefix + width), dtype=torch.bool).tril(diagonal=prefix)
    visible = earlier & (query != PADDING) & ((key == PROMPT) | (key == query))
    # A softmax needs at least one key: if padding did not attend to itself, it would give NaN.
    itself = torch.zeros((width, prefix + width), dtype=torch.bool)
    itself[:, prefix:].fill_diagonal_(True)
    return visible | itself


def _check_ids(token_ids: Collection[int], vocabulary: int, name: str) -> None:
    if min(token_ids) < 0 or max(token_ids) >= vocabulary:
        raise GroupError(f"{name}: expected token ids in 0…{vocabulary - 1}, got {min(token_ids)}…{max(token_ids)}")
