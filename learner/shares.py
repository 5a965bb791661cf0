"""A batch in shares: which groups make a share, its micro-batches, and what a share found beside its gradient.

One process computes one share, or all of them one after the other (`learner.processes`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from learner.objectives import TokenWeights
from learner.packing import PackedGroups, PromptGroup
from learner.tally import Tally

# The tokens whose work takes as long as one more forward and backward pass does without any. On a processor a pass
# costs about 10 ms, which is 100 tokens of the tiny policy; a GPU computes thousands of tokens in that time.
FORWARD_TOKENS = {"cpu": 128}
FORWARD_TOKENS_GPU = 8192


def forward_tokens(device: str) -> int:
    """Return the tokens that one more forward and backward pass is worth on a kind of device: cpu, cuda, …"""
    return FORWARD_TOKENS.get(device, FORWARD_TOKENS_GPU)


def shares_of(costs: Sequence[int], shares: int) -> list[list[int]]:
    """Return for each share the numbers of its items, ascending, so that the shares cost about the same.

    The dearest item comes first, each to the share that costs the least so far; ties go to the lower number.
    """
    chosen: list[list[int]] = [[] for _ in range(shares)]
    totals = [0] * shares
    for item in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        least = totals.index(min(totals))
        chosen[least].append(item)
        totals[least] += costs[item]
    return [sorted(items) for items in chosen]


class ShareResult(msgspec.Struct):
    """What one share of a batch gave beside its gradient.

    refused: groups whose log-probabilities the policy does not give, with the reason. learned: there is a gradient.
    trouble: why the step must not be made; "" if it may. weights: fingerprint of the weights that gave the gradient.
    """

    tally: Tally = msgspec.field(default_factory=Tally)
    refused: dict[str, str] = {}
    learned: bool = False
    trouble: str = ""
    weights: str = ""


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return a text that is the same for equal weights, and almost never for others.

    Each tensor's bits are added up as integers, in any order, so that machines and devices agree on it. A pass over
    10⁸ weights takes 0.05 s on one core, and an optimizer step 0.2 s.
    """
    sums: list[int] = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        if flat.storage_offset() % 8:
            flat = flat.clone()
        whole = flat.numel() - flat.numel() % 8  # So many are a whole number of 64-bit integers, in any format.
        rest = flat[whole:].view(torch.uint8)
        sums += [int(flat[:whole].view(torch.int64).sum()), int.from_bytes(bytes(rest.tolist()), "little")]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]


def merged(found: Sequence[ShareResult]) -> ShareResult:
    """Return the results of all shares as those of the whole batch; one share's stay as they are.

    Shares that other weights gave are trouble: their processes no longer train one policy.
    """
    whole, *others = found
    for number, share in enumerate(others, start=1):
        if share.weights != whole.weights:
            whole.trouble = whole.trouble or (
                f"learner process {number} has weights {share.weights}, the first one {whole.weights}, where all make "
                "the same steps; look at its machine's memory and versions of torch, then start again"
            )
        whole.tally.include(share.tally)
        whole.refused |= share.refused
        whole.learned |= share.learned
        whole.trouble = whole.trouble or share.trouble
    return whole


def tokens_of(group: PromptGroup) -> tuple[int, int]:
    """Return the tokens of a group's two rows: of the prompt, and of the completions."""
    return len(group.prompt_ids) - 1, 1 + sum(len(candidate.token_ids) - 1 for candidate in group.candidates)


def cut(
    items: Sequence[tuple[str, PromptGroup]], size: int, *, tokens_max: int, forward_tokens: int
) -> list[dict[str, PromptGroup]]:
    """Return the groups in micro-batches of at most `size`, groups of similar length together.

    tokens_max: of a micro-batch of more than one group, padding included.
    forward_tokens: the tokens that one more forward and backward pass is worth; so much padding must a cut spare.
    Each micro-batch pads its prompts and its completions to the longest. The cut is the cheapest one of the groups
    sorted by length. Of recorded LESER batches, 43 % of the tokens were padding without it, and 14 % with it.
    """
    lengths = {name: tokens_of(group) for name, group in items}
    ordered = sorted(items, key=lambda item: sum(lengths[item[0]]))
    best: list[tuple[int, int]] = [(0, 0)]  # (cost, where the last micro-batch begins) of the first groups.
    for end in range(1, len(ordered) + 1):
        longest = [0, 0]
        choices: list[tuple[int, int]] = []
        for start in range(end - 1, max(end - size, 0) - 1, -1):
            longest = [max(pair) for pair in zip(longest, lengths[ordered[start][0]], strict=True)]
            if choices and (end - start) * sum(longest) > tokens_max:
                break
            choices.append((best[start][0] + (end - start) * sum(longest) + forward_tokens, start))
        best.append(min(choices))
    batches = []
    end = len(ordered)
    while end > 0:
        start = best[end][1]
        batches.append(dict(ordered[start:end]))
        end = start
    return batches[::-1]


@dataclass(kw_only=True)
class MicroBatch:
    """Some groups of a batch. learns: they can give a gradient. old_logprobs: [N, C], from the first forward."""

    groups: dict[str, PromptGroup]
    packed: PackedGroups
    weights: TokenWeights
    learns: bool
    old_logprobs: Tensor | None = None

    def differences(self, logprobs: Tensor) -> dict[str, float]:
        """Return each group's largest |log π − log μ|, in nats. logprobs: [N, C] of the policy."""
        rows = (logprobs - self.packed.behaviour_logprobs).abs().amax(dim=1).tolist()  # [N]
        return {group_id: max(rows[start:end]) for group_id, start, end in self._spans()}

    def refuse(self, refused: Collection[str]) -> None:
        """Set these groups' weight in the loss to 0; they keep their place in its denominators."""
        for group_id, start, end in self._spans():
            if group_id in refused:
                self.weights.loss[start:end] = 0
                self.weights.entropy[start:end] = 0

    def _spans(self) -> Iterator[tuple[str, int, int]]:
        start = 0
        for group_id, group in self.groups.items():
            yield group_id, start, start + len(group.candidates)
            start += len(group.candidates)
