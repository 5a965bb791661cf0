"""Reward events as groups to learn from: which groups of a batch can teach, and statistics of their rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from learner.objectives import ObjectiveSettings, completion_weights
from learner.packing import Candidate, GroupError, PromptGroup, check_group
from learner.selecting import Selector
from streams.events import Outcome, Reward


@dataclass(frozen=True, kw_only=True)
class SortedGroups:
    """A batch's groups sorted by how the update can use them, each by its id and in the batch's order.

    spread: candidates differ in reward. flat: all rewards are equal, so every advantage is 0. failed: fewer than two
    scored candidates. rejected: malformed groups, with the reason.
    """

    spread: dict[str, PromptGroup]
    flat: dict[str, PromptGroup]
    failed: tuple[str, ...]
    rejected: dict[str, str]


def sort_groups(
    rewards: Sequence[Reward],
    *,
    objective: ObjectiveSettings,
    opener_ids: frozenset[int],
    vocabulary: int,
    positions_max: int,
    selector: Selector | None = None,
) -> SortedGroups:
    """Return the batch's groups, checked and with advantages; the arguments are those of the functions below."""
    spread: dict[str, PromptGroup] = {}
    flat: dict[str, PromptGroup] = {}
    failed: list[str] = []
    rejected: dict[str, str] = {}
    for reward in rewards:
        try:
            group = reward_group(reward, objective=objective, opener_ids=opener_ids, selector=selector)
            if group is None:
                failed.append(reward.group_id)
                continue
            check_group(group, vocabulary=vocabulary, positions_max=positions_max)
        except GroupError as error:
            rejected[reward.group_id] = str(error)
            continue
        has_spread = any(candidate.advantage != 0 for candidate in group.candidates)
        (spread if has_spread else flat)[reward.group_id] = group
    return SortedGroups(spread=spread, flat=flat, failed=tuple(failed), rejected=rejected)


def reward_group(
    reward: Reward, *, objective: ObjectiveSettings, opener_ids: frozenset[int], selector: Selector | None = None
) -> PromptGroup | None:
    """Return an event's scored candidates with their advantages; None if fewer than two candidates were scored.

    A failed candidate (reward None) leaves its group: it counts neither in the mean nor in the gradient.
    objective: determines the advantages. opener_ids: see `learner.constraints`; used if the sampler kept the rule.
    selector: see `learner.selecting`; its rule always holds.
    Raises GroupError if the number of outcomes differs from that of completions, or if a reward is not finite.
    """
    generation = reward.generation
    if len(reward.outcomes) != len(generation.completions):
        raise GroupError(
            f"expected {len(generation.completions)} outcomes, one a completion, got {len(reward.outcomes)}"
        )
    scored = [
        (completion, outcome.reward)
        for completion, outcome in zip(generation.completions, reward.outcomes, strict=True)
        if outcome.reward is not None
    ]
    if not all(math.isfinite(value) for _, value in scored):
        raise GroupError(f"expected finite rewards, got {[value for _, value in scored]}")
    if len(scored) < 2:
        return None
    values = torch.tensor([[value for _, value in scored]], dtype=torch.float64)  # [1, G]
    advantages = completion_weights(values, objective)[0].tolist()
    return PromptGroup(
        prompt_ids=generation.prompt_token_ids,
        candidates=tuple(
            Candidate(token_ids=completion.token_ids, logprobs=completion.logprobs, advantage=advantage)
            for (completion, _), advantage in zip(scored, advantages, strict=True)
        ),
        temperature=generation.sampling.temperature,
        opener_ids=opener_ids if generation.sampling.no_repeat else frozenset(),
        selector=selector,
    )


def reward_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return statistics of a batch's candidates; a mean without values is left out.

    reward_mean, reward_std: over the scored candidates. validity: share of valid candidates among the scored ones.
    failed_share: share of candidates without a reward. expansions_mean: expansions per valid candidate.
    expansion_words_mean: words per expansion.
    """
    rewards = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    scored = [outcome for outcome in outcomes if outcome.reward is not None]
    valid = [outcome for outcome in scored if outcome.valid]
    expansions = [expansion for outcome in valid for expansion in outcome.expansions]
    means = {
        "reward_mean": mean_or_none(rewards),
        "reward_std": float(torch.tensor(rewards, dtype=torch.float64).std(correction=0)) if rewards else None,
        "validity": mean_or_none([outcome.valid for outcome in scored]),
        "failed_share": mean_or_none([outcome.reward is None for outcome in outcomes]),
        "expansions_mean": mean_or_none([len(outcome.expansions) for outcome in valid]),
        "expansion_words_mean": mean_or_none([len(expansion.split()) for expansion in expansions]),
    }
    return {name: value for name, value in means.items() if value is not None}


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean, or None without values. NaN and infinity propagate, as in torch."""
    return float(torch.tensor(values, dtype=torch.float64).mean()) if values else None
