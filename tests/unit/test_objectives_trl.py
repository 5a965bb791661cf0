"""Our loss on packed groups equals TRL's own loss on plain rows, in value and in every gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.logprobs import completion_logprobs
from learner.objectives import ObjectiveSettings, policy_objective, token_weights
from learner.packing import PromptGroup, pack_groups
from tests.trl_oracle import gradients, random_group, random_llama, trl_inputs, trl_trainer

TEMPERATURE = 0.9


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def batch() -> list[PromptGroup]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(9, [4, 7, 1]), (5, [3, 6, 5]), (12, [7, 2, 2])]
    return [random_group(generator, prompt=p, lengths=c, temperature=TEMPERATURE) for p, c in shapes]


def our_loss(
    model: torch.nn.Module, settings: ObjectiveSettings, *, old: Tensor | None, reference: Tensor | None
) -> Tensor:
    packed = pack_groups(batch())
    logprobs, entropies = completion_logprobs(model, packed)
    return policy_objective(
        logprobs=logprobs,
        entropies=entropies,
        old_logprobs=logprobs if old is None else old,
        behaviour_logprobs=packed.behaviour_logprobs,
        reference_logprobs=reference,
        advantages=packed.advantages,
        mask=packed.mask,
        weights=token_weights(packed.mask, settings, sequences=packed.mask.shape[0], tokens=int(packed.mask.sum())),
        settings=settings,
    ).loss


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {"aggregation": "sequence"}),
    "grpo with two bounds": (
        {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.28},
        {"aggregation": "sequence", "clip_low": 0.1, "clip_high": 0.28},
    ),
    "dapo": ({"loss_type": "dapo"}, {"aggregation": "token"}),
    "bnpo": ({"loss_type": "bnpo"}, {"aggregation": "token"}),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "max_completion_length": 20},
        {"aggregation": "constant", "constant_tokens": 20},
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.05},
        {"aggregation": "sequence", "ratio_level": "sequence", "clip_low": 0.05, "clip_high": 0.05},
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.5},
        {"aggregation": "token", "surrogate": "cispo", "cispo_ratio_max": 1.5},
    ),
    "kl": ({"loss_type": "grpo"}, {"aggregation": "sequence", "kl_weight": 0.3}),
    "kl as in the GRPO paper": (
        {"loss_type": "grpo", "use_bias_correction_kl": False},
        {"aggregation": "sequence", "kl_weight": 0.3, "kl_unbiased": False},
    ),
    "entropy": ({"loss_type": "dapo", "entropy_coef": 0.5}, {"aggregation": "token", "entropy_weight": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("correction", ["none", "token", "sequence"])
def test_loss_and_gradients_equal_trl(case: str, correction: str, tmp_path: Path) -> None:
    theirs, ours = CASES[case]
    settings = ObjectiveSettings(**ours, correction=correction, correction_cap=1.5)  # type: ignore[arg-type]
    model = random_llama()
    inputs = trl_inputs(batch())
    mask = inputs["completion_mask"].bool()
    generator = torch.Generator().manual_seed(5)
    # Near the policy, so that about half of the ratios are inside the bounds.
    with torch.no_grad():
        now = completion_logprobs(model, pack_groups(batch()))[0]
    old = (now + 0.3 * torch.randn(now.shape, generator=generator)) * mask
    reference = (now + 0.5 * torch.randn(now.shape, generator=generator)) * mask
    behaviour = inputs["old_per_token_logps"]

    trainer = trl_trainer(model, str(tmp_path), temperature=TEMPERATURE, **theirs)
    # Not through GRPOConfig: with it TRL would load the reference model by its name; its log-probabilities are given.
    trainer.beta = ours.get("kl_weight", 0.0)
    inputs["ref_per_token_logps"] = reference
    # Without a correction TRL's π_old is the behaviour policy, as ours is then.
    if correction != "none":
        inputs["old_per_token_logps"] = old
        difference = (old - behaviour) * mask
        if correction == "sequence":
            difference = difference.sum(dim=1, keepdim=True)
        inputs["importance_sampling_ratio"] = difference.exp().clamp(max=1.5)
        # What use_vllm=True switches on in the loss; no vLLM is needed for it.
        trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
    expected = trainer._compute_loss(trainer.model.train(), inputs)
    expected.backward()
    expected_gradients = gradients(model)

    model.zero_grad()
    loss = our_loss(model, settings, old=old, reference=reference)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert float((gradients(model) - expected_gradients).abs().max()) < 1e-5
    assert float(expected_gradients.abs().max()) > 1e-3


def test_the_bounds_are_active_in_these_cases() -> None:
    packed = pack_groups(batch())
    model = random_llama()
    with torch.no_grad():
        logprobs, entropies = completion_logprobs(model, packed)
    generator = torch.Generator().manual_seed(5)
    settings = ObjectiveSettings(correction_cap=1.5)
    objective = policy_objective(
        logprobs=logprobs,
        entropies=entropies,
        old_logprobs=logprobs + 0.3 * torch.randn(logprobs.shape, generator=generator),
        behaviour_logprobs=packed.behaviour_logprobs,
        reference_logprobs=None,
        advantages=packed.advantages,
        mask=packed.mask,
        weights=token_weights(packed.mask, settings, sequences=9, tokens=37),
        settings=settings,
    )
    assert 0.1 < float(objective.clipped[packed.mask].float().mean()) < 0.9
    assert 0.1 < float((objective.corrections[packed.mask] == 1.5).float().mean()) < 0.9
