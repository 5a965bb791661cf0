"""DPO on logged groups: the pairs are the groups' best and worst texts, and the policy comes to prefer the best."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from learner.policy import build_tiny
from learner.policy_settings import TinySettings
from learner.preference import Preference, PreferenceError, PreferenceSettings, prefer, preferences
from streams.events import Completion, Generation, Outcome, PolicyRef, Position, Request, Reward, Sampling


def group(rewards: list[float | None], finishes: str = "stop") -> Reward:
    completions = tuple(
        Completion(text=str(n), token_ids=(10 + n, 4), logprobs=(-1.0, -1.0), finish=finishes)
        for n in range(len(rewards))
    )
    generation = Generation(
        group_id="g",
        request=Request(request_id="r", run="run", query_id="q", query="", index="i"),
        source=Position(topic="run.requests", partition=0, offset=0),
        policy=PolicyRef(lineage="1-a", step=0, sha256=""),
        tokenizer_sha256="",
        prompt_sha256="",
        sampling=Sampling(candidates=len(rewards), temperature=0.9, tokens_max=4),
        prompt_token_ids=(1, 2),
        completions=completions,
    )
    outcomes = tuple(
        Outcome(status="failed" if reward is None else "scored", valid=True, reward=reward) for reward in rewards
    )
    return Reward(
        group_id="g",
        generation=generation,
        source=generation.source,
        content_sha256="",
        outcomes=outcomes,
        index="i",
        relevance_model="m",
        reward_sha256="",
    )


def test_a_pair_is_the_best_and_the_worst_scored_text_of_a_group() -> None:
    [pair] = preferences([group([0.2, None, 0.9, -0.5, 0.9])], PreferenceSettings())
    assert pair == Preference(prompt_ids=(1, 2), chosen_ids=(12, 4), rejected_ids=(13, 4))


@pytest.mark.parametrize(
    "reward", [group([0.5, 0.5]), group([0.5, 0.505]), group([0.5, None]), group([0.1, 0.9], "length")]
)
def test_a_group_without_a_clear_best_gives_no_pair(reward: Reward) -> None:
    assert preferences([reward], PreferenceSettings()) == []


def test_no_more_pairs_than_asked_for() -> None:
    rewards = [group([0.0, 1.0])] * 5
    assert len(preferences(rewards, msgspec.structs.replace(PreferenceSettings(), pairs_max=3))) == 3


def test_the_policy_comes_to_prefer_the_better_text(tmp_path: Path) -> None:
    tiny = TinySettings(vocabulary_size=300, hidden_size=32, layers=1, heads=2, feedforward_size=64)
    policy = build_tiny(["lamp red blue"], tiny, pointers=4)
    selector = policy.selector
    assert selector is not None
    one, other = selector.pointer_ids[:2]
    pair = Preference(
        prompt_ids=(1, one, 2, other), chosen_ids=(one, selector.end_id), rejected_ids=(other, selector.end_id)
    )

    def margin() -> float:
        with torch.inference_mode():
            logits = policy.model(input_ids=torch.tensor([pair.prompt_ids])).logits[0, -1].log_softmax(-1)
        return float(logits[one] - logits[other])

    before = margin()
    settings = PreferenceSettings(learning_rate=1e-3, batch_size=4, epochs=2)
    saved = prefer(policy, [pair] * 32, settings, tmp_path / "preferred")
    assert margin() > before + 0.5
    assert saved.path == tmp_path / "preferred"


def test_nothing_to_prefer_is_said(tmp_path: Path) -> None:
    tiny = TinySettings(vocabulary_size=300, hidden_size=32, layers=1, heads=2, feedforward_size=64)
    with pytest.raises(PreferenceError, match="margin_min"):
        prefer(build_tiny(["lamp"], tiny), [], PreferenceSettings(), tmp_path)
