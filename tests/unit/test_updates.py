"""One update: who teaches, who does not, and that the same batch from the same state gives the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from learner.groups import reward_metrics
from learner.logprobs import completion_logprobs
from learner.objectives import ObjectiveSettings, policy_objective, token_weights
from learner.packing import PromptGroup, pack_groups
from learner.updates import UpdateError, Updater, UpdateSettings, learning_rate_at
from streams.events import Outcome, PolicyRef, Reward
from tests.trl_oracle import POLICY, random_group, random_llama, reward_event

SHAPES = [(7, [5, 1, 9]), (3, [4, 4]), (12, [2, 6, 3, 8])]
OLDER = PolicyRef(lineage="1-test", step=-1, sha256="")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


def groups(seed: int = 0) -> list[PromptGroup]:
    generator = torch.Generator().manual_seed(seed)
    return [random_group(generator, prompt=p, lengths=lengths, temperature=0.9) for p, lengths in SHAPES]


def honest(model: nn.Module, some: Sequence[PromptGroup]) -> list[PromptGroup]:
    """Return the groups with the log-probabilities that the model gives them."""
    result = []
    for group in some:
        with torch.no_grad():
            logprobs = completion_logprobs(model, pack_groups([group]))[0]
        candidates = tuple(
            replace(candidate, logprobs=tuple(row[: len(candidate.token_ids)].tolist()))
            for candidate, row in zip(group.candidates, logprobs, strict=True)
        )
        result.append(replace(group, candidates=candidates))
    return result


def batch(some: Sequence[PromptGroup] | None = None, *, policy: PolicyRef = OLDER) -> list[Reward]:
    return [
        reward_event(f"group-{number}", group, policy=policy)
        for number, group in enumerate(groups() if some is None else some)
    ]


def updater(model: nn.Module | None = None, **settings: Any) -> Updater:
    objective = settings.pop("objective", ObjectiveSettings())
    opener_ids = settings.pop("opener_ids", ())
    reference = settings.pop("reference", None)
    return Updater(
        random_llama() if model is None else model,
        objective=objective,
        settings=UpdateSettings(**settings),
        opener_ids=opener_ids,
        reference=reference,
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def step_gradients(step: Callable[[], object]) -> list[Tensor]:
    """Return the gradient of each optimizer step that the call makes."""
    caught: list[Tensor] = []

    def catch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        caught.append(
            torch.cat([p.grad.flatten().clone() for group in optimizer.param_groups for p in group["params"]])
        )

    hook = register_optimizer_step_pre_hook(catch)
    try:
        step()
    finally:
        hook.remove()
    return caught


def test_the_same_batch_from_the_same_state_gives_bit_equal_weights() -> None:
    first, second = updater(), updater()
    for seed in range(3):
        first.update(batch(groups(seed)))
        second.update(batch(groups(seed)))
    assert torch.equal(weights(first.model), weights(second.model))
    assert not torch.equal(weights(first.model), weights(random_llama()))


def test_going_on_from_saved_optimizer_state_gives_bit_equal_weights() -> None:
    whole, before = updater(warmup_updates=5), updater(warmup_updates=5)
    for seed in range(4):
        whole.update(batch(groups(seed)))
    for seed in range(2):
        before.update(batch(groups(seed)))
    saved = {name: tensor.clone() for name, tensor in before.optimizer_tensors().items()}
    after = updater(copy.deepcopy(before.model), warmup_updates=5)
    after.load_optimizer_tensors(saved)
    for seed in range(2, 4):
        after.update(batch(groups(seed)))
    assert after.step == 4
    assert torch.equal(weights(whole.model), weights(after.model))


def test_optimizer_state_of_another_policy_is_refused() -> None:
    one = updater()
    one.update(batch())
    with pytest.raises(UpdateError, match="unknown"):
        updater().load_optimizer_tensors({"step": torch.tensor(1), "model.other/exp_avg": torch.zeros(1)})
    with pytest.raises(UpdateError, match=r"expected shape \[97, 64\], got \[97, 32\]"):
        updater(random_llama(hidden=64)).load_optimizer_tensors(one.optimizer_tensors())
    with pytest.raises(UpdateError, match="step count"):
        updater().load_optimizer_tensors({})


def test_one_step_is_torchs_adamw_on_the_objectives_gradient() -> None:
    """Oracle: the objective on one packed batch, clip_grad_norm_ and an unfused AdamW, by hand."""
    model = random_llama()
    reference = copy.deepcopy(model)
    settings = ObjectiveSettings()
    result = updater(model, grad_norm_max=0.01, weight_decay=0.1).update(batch())

    packed = pack_groups(groups())
    logprobs, entropies = completion_logprobs(reference, packed)
    policy_objective(
        logprobs=logprobs,
        entropies=entropies,
        old_logprobs=logprobs.detach(),
        behaviour_logprobs=packed.behaviour_logprobs,
        reference_logprobs=None,
        advantages=packed.advantages,
        mask=packed.mask,
        weights=token_weights(packed.mask, settings, sequences=9, tokens=42),
        settings=settings,
    ).loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
    torch.optim.AdamW(reference.parameters(), lr=1e-4, weight_decay=0.1, fused=False, foreach=False).step()
    assert result.metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert (weights(model) - weights(reference)).abs().max() < 1e-7


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(aggregation: str) -> None:
    objective = ObjectiveSettings(aggregation=aggregation, entropy_weight=0.1)  # type: ignore[arg-type]
    (whole,) = step_gradients(lambda: updater(objective=objective, grad_norm_max=1e9).update(batch()))
    (parts,) = step_gradients(
        lambda: updater(objective=objective, grad_norm_max=1e9, micro_batch_groups=1).update(batch())
    )
    assert (whole - parts).abs().max() < 1e-6 * whole.abs().max()


def test_a_failed_candidate_leaves_its_group_as_if_it_had_never_been() -> None:
    some = groups()
    rewards = [0.5, None, 0.1]
    with_failed = [reward_event("a", some[0], rewards=rewards, policy=OLDER)]
    without = replace(some[0], candidates=(some[0].candidates[0], some[0].candidates[2]))
    scored = [reward_event("a", without, rewards=[0.5, 0.1], policy=OLDER)]
    first, second = updater(), updater()
    result = first.update(with_failed)
    second.update(scored)
    assert torch.equal(weights(first.model), weights(second.model))
    assert result.metrics["failed_share"] == pytest.approx(1 / 3)
    assert result.metrics["reward_mean"] == pytest.approx(0.3)


def test_a_group_with_fewer_than_two_scored_candidates_is_reported_and_teaches_nothing() -> None:
    some = groups()
    usable = reward_event("usable", some[0], policy=OLDER)
    unusable = [
        reward_event("one", some[1], rewards=[0.5, None], policy=OLDER),
        reward_event("none", some[1], rewards=[None, None], policy=OLDER),
    ]
    first, second = updater(), updater()
    result = first.update([unusable[0], usable, unusable[1]])
    second.update([usable])
    assert (result.trained, result.failed) == (("usable",), ("one", "none"))
    assert torch.equal(weights(first.model), weights(second.model))


def test_a_flat_group_moves_nothing_but_counts_in_the_mean() -> None:
    some = groups()
    taught = reward_event("taught", some[0], policy=OLDER)
    flat = reward_event("flat", some[1], rewards=[0.7, 0.7], policy=OLDER)
    (alone,) = step_gradients(lambda: updater(grad_norm_max=1e9).update([taught]))
    model = random_llama()
    (beside,) = step_gradients(lambda: updater(model, grad_norm_max=1e9).update([flat, taught]))
    # Five completions in the mean over sequences instead of three.
    assert (beside - alone * 3 / 5).abs().max() < 1e-6

    result = updater().update([flat, taught])
    assert (result.trained, result.flat, result.metrics["flat_share"]) == (("taught",), ("flat",), 0.5)


def test_a_batch_without_spread_leaves_weights_and_optimizer_alone() -> None:
    one = updater(weight_decay=0.5)
    one.update(batch())
    before, step = weights(one.model), one.step
    flat = reward_event("flat", groups()[1], rewards=[0.7, 0.7], policy=OLDER)
    result = one.update([flat])
    assert not result.stepped
    assert (result.trained, result.flat) == ((), ("flat",))
    assert torch.equal(weights(one.model), before)
    assert one.step == step
    assert result.metrics["entropy"] > 0
    assert not one.update([]).stepped


def test_the_kl_pulls_a_flat_group_to_the_reference() -> None:
    reference = random_llama(seed=1)
    one = updater(reference=reference, objective=ObjectiveSettings(kl_weight=1.0), learning_rate=3e-3)
    flat = [reward_event("flat", groups()[2], rewards=[0.7] * 4, policy=OLDER)]
    distances = [one.update(flat).metrics["kl_reference"] for _ in range(10)]
    assert distances[-1] < distances[0] / 2


def test_a_kl_without_a_reference_is_refused() -> None:
    with pytest.raises(UpdateError, match="needs a reference policy"):
        updater(objective=ObjectiveSettings(kl_weight=0.1))


def test_updates_raise_the_probability_of_what_was_rewarded() -> None:
    model = random_llama()
    some = honest(model, groups())
    one = updater(model, learning_rate=1e-3)
    with torch.no_grad():
        before = completion_logprobs(model, pack_groups(some))[0].sum(dim=1)
        for _ in range(5):
            one.update(batch(some))
        after = completion_logprobs(model, pack_groups(some))[0].sum(dim=1)
    advantages = torch.tensor([candidate.advantage for group in some for candidate in group.candidates])
    assert torch.corrcoef(torch.stack([after - before, advantages]))[0, 1] > 0.7


def test_own_groups_match_their_log_probabilities() -> None:
    model = random_llama()
    result = updater(model).update(batch(honest(model, groups()), policy=POLICY), current=POLICY)
    assert result.rejected == {}
    assert result.metrics["logprob_difference_max"] < 1e-5
    assert result.metrics["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert result.metrics["correction_mean"] == pytest.approx(1, abs=1e-5)
    assert result.metrics["kl_behaviour"] == pytest.approx(0, abs=1e-5)


def test_a_poisoned_group_is_rejected_and_gives_no_gradient() -> None:
    model = random_llama()
    true = honest(model, groups())
    lie = replace(
        true[1],
        candidates=(
            replace(true[1].candidates[0], logprobs=(-0.01,) * 4),
            true[1].candidates[1],
        ),
    )
    poisoned = batch([true[0], lie, true[2]], policy=POLICY)
    clean = batch([true[0], true[2]], policy=POLICY)
    (with_lie,) = step_gradients(
        lambda: updater(copy.deepcopy(model), grad_norm_max=1e9).update(poisoned, current=POLICY)
    )
    (without,) = step_gradients(lambda: updater(copy.deepcopy(model), grad_norm_max=1e9).update(clean, current=POLICY))
    assert (with_lie - without * 7 / 9).abs().max() < 1e-6

    result = updater(model).update(poisoned, current=POLICY)
    assert result.trained == ("group-0", "group-2")
    assert "expected log-probabilities within 0.1 nats" in result.disputed["group-1"]


def test_a_batch_of_lies_moves_nothing() -> None:
    one = updater()
    before = weights(one.model)
    result = one.update(batch(groups(), policy=POLICY), current=POLICY)
    assert len(result.disputed) == 3
    assert not result.stepped
    assert torch.equal(weights(one.model), before)


def test_malformed_groups_are_rejected_with_a_reason_and_the_rest_is_learnt() -> None:
    good = batch()[0]
    generation = good.generation
    strange = msgspec.structs.replace(
        good, group_id="strange", generation=msgspec.structs.replace(generation, prompt_token_ids=(999,))
    )
    short = msgspec.structs.replace(good, group_id="short", outcomes=good.outcomes[:1])
    infinite = reward_event("infinite", groups()[1], rewards=[float("inf"), 0.0], policy=OLDER)
    result = updater().update([strange, good, short, infinite])
    assert result.trained == ("group-0",)
    assert result.rejected == {
        "strange": "prompt: expected token ids in 0…96, got 999…999",
        "short": "expected 3 outcomes, one a completion, got 1",
        "infinite": "expected finite rewards, got [inf, 0.0]",
    }
    assert result.metrics["rejected_share"] == 0.75


@pytest.mark.parametrize("correction", ["none", "token", "sequence"])
def test_absurd_behaviour_log_probabilities_give_no_infinity(correction: str) -> None:
    some = groups()
    absurd = replace(some[0].candidates[0], logprobs=(-1e30,) * 5)
    group = replace(some[0], candidates=(absurd, *some[0].candidates[1:]))
    one = updater(objective=ObjectiveSettings(correction=correction))  # type: ignore[arg-type]
    result = one.update(batch([group, *some[1:]]))
    assert result.stepped
    assert all(torch.isfinite(parameter).all() for parameter in one.model.parameters())


def test_damaged_weights_stop_the_update_before_a_step() -> None:
    model = random_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    one = updater(model)
    before = weights(model)
    with pytest.raises(UpdateError, match=r"update 1: log-probabilities are not finite.*did not move"):
        one.update(batch(policy=POLICY), current=POLICY)
    assert torch.equal(weights(model).nan_to_num(), before.nan_to_num())
    assert one.step == 0
    assert list(one.optimizer_tensors()) == ["step"]


def test_a_gradient_that_is_not_finite_stops_the_update_before_the_step() -> None:
    model = random_llama()
    one = updater(model)
    before = weights(model)
    hook = model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UpdateError, match="gradient's norm is nan"):
        one.update(batch())
    hook.remove()
    assert torch.equal(weights(model), before)
    assert one.update(batch()).stepped


def test_inner_epochs_step_again_against_the_first_policy() -> None:
    once, thrice = updater(learning_rate=1e-2), updater(learning_rate=1e-2, inner_epochs=3)
    once.update(batch())
    found = step_gradients(lambda: thrice.update(batch()))
    assert (once.step, thrice.step, len(found)) == (1, 3, 3)
    assert not torch.equal(found[0], found[1])


def test_only_trainable_parameters_move_under_lora() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(random_llama(), LoraConfig(r=2, lora_dropout=0.0, target_modules=["q_proj", "v_proj"]))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    one = updater(model, learning_rate=1e-2)
    one.update(batch())
    assert all(torch.equal(frozen[name], p) for name, p in model.named_parameters() if name in frozen)
    assert any(p.any() for name, p in model.named_parameters() if "lora_B" in name)
    assert all("lora" in name for name in one.optimizer_tensors() if name != "step")


def test_a_mean_over_nothing_is_no_metric() -> None:
    assert reward_metrics([]) == {}
    unscored = reward_metrics([Outcome(status="failed", valid=False, error="no answer")])
    assert unscored == {"failed_share": 1.0}
    silent = reward_metrics([Outcome(status="scored", valid=True, reward=0.5)])
    assert silent == {
        "reward_mean": 0.5,
        "reward_std": 0.0,
        "validity": 1.0,
        "failed_share": 0.0,
        "expansions_mean": 0.0,
    }


def test_metrics_describe_the_batch() -> None:
    some = groups()
    rewards = [
        reward_event("a", some[0], rewards=[1.0, 0.0, 0.5], expansions=("red shoe", "boot"), policy=OLDER),
        reward_event("b", some[1], rewards=[0.0, 0.0], valid=False, expansions=(), policy=OLDER),
    ]
    metrics = updater().update(rewards).metrics
    assert metrics["reward_mean"] == pytest.approx(0.3)
    assert metrics["reward_std"] == pytest.approx(0.4)
    assert metrics["validity"] == pytest.approx(0.6)
    assert metrics["expansions_mean"] == 2
    assert metrics["expansion_words_mean"] == 1.5
    assert metrics["tokens"] == 23
    assert metrics["completion_tokens_mean"] == pytest.approx(23 / 5)
    assert metrics["learning_rate"] == 1e-4
    assert 0 < metrics["entropy"] < torch.log(torch.tensor(97.0))
    assert metrics["ratio_max"] >= metrics["ratio_mean"]
    assert all(isinstance(value, float) for value in metrics.values())


def test_the_learning_rate_grows_then_falls() -> None:
    settings = UpdateSettings(learning_rate=1.0, warmup_updates=2, decay_updates=4)
    assert [learning_rate_at(step, settings) for step in range(8)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert learning_rate_at(10**6, UpdateSettings(learning_rate=0.3)) == 0.3
