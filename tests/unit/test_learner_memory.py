"""Ways to need less memory or time give the plain path's gradients: recomputed layers, bf16 products, cut batches."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.logprobs import PolicyUnfitError, completion_logprobs
from learner.objectives import ObjectiveSettings
from learner.packing import PromptGroup, pack_groups
from learner.recomputing import recompute_layers
from learner.shares import cut, tokens_of
from learner.updates import Updater, UpdateSettings
from streams.events import PolicyRef
from tests.trl_oracle import random_group, random_llama, reward_event
from tests.unit.test_updates import step_gradients

OLDER = PolicyRef(lineage="1-test", step=-1, sha256="")
SHAPES = [(30, [5, 1, 9]), (3, [4, 4]), (12, [2, 6, 3, 8]), (1, [2, 5])]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


def policy(*, lora: bool) -> nn.Module:
    """Return a random Llama; with LoRA, both halves of the adapters are random."""
    model = random_llama()
    if not lora:
        return model
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted  # type: ignore[no-any-return]


def groups(seed: int = 0) -> list[PromptGroup]:
    generator = torch.Generator().manual_seed(seed)
    return [random_group(generator, prompt=prompt, lengths=lengths) for prompt, lengths in SHAPES]


def updater(model: nn.Module, **settings: Any) -> Updater:
    objective = ObjectiveSettings(kl_weight=0.1, entropy_weight=0.01)
    return Updater(
        copy.deepcopy(model), objective=objective, settings=UpdateSettings(**settings), reference=random_llama(seed=1)
    )


def gradient(made: Updater) -> Tensor:
    rewards = [reward_event(f"g{number}", group, policy=OLDER) for number, group in enumerate(groups())]
    (found,) = step_gradients(lambda: made.update(rewards))
    return found


def saved_bytes(model: nn.Module) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, without the model's own weights."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        completion_logprobs(model, pack_groups(groups()))
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("lora", [False, True])
def test_recomputed_layers_give_the_same_bits_and_keep_less(lora: bool) -> None:
    model = policy(lora=lora)
    assert torch.equal(gradient(updater(model, recompute=True)), gradient(updater(model)))
    again = copy.deepcopy(model)
    recompute_layers(again)
    assert saved_bytes(again) < 0.5 * saved_bytes(model)


def test_a_model_without_a_list_of_layers_is_refused_with_another_way() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=10))
    with pytest.raises(PolicyUnfitError, match="micro_batch_groups lower"):
        recompute_layers(model)


def test_a_model_whose_layers_would_not_be_computed_again_is_refused_at_its_first_update() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=97, **shape)).eval()
    plain = Updater(copy.deepcopy(model), objective=ObjectiveSettings(), settings=UpdateSettings())
    rewards = [reward_event("g", groups()[0], policy=OLDER)]
    assert plain.update(rewards).stepped
    again = Updater(model, objective=ObjectiveSettings(), settings=UpdateSettings(recompute=True))
    with pytest.raises(PolicyUnfitError, match=r"past_key_values, got GPTNeoXLayer\. Set recompute to false"):
        again.update(rewards)


def test_recomputed_layers_give_the_same_bits_with_products_in_bf16() -> None:
    model = policy(lora=True)
    plain = gradient(updater(model, precision="bf16"))
    assert torch.equal(gradient(updater(model, precision="bf16", recompute=True)), plain)


@pytest.mark.parametrize("lora", [False, True])
def test_bf16_products_give_about_the_gradient_of_fp32_and_train_fp32_weights(lora: bool) -> None:
    model = policy(lora=lora)
    made = updater(model, precision="bf16")
    found, exact = gradient(made), gradient(updater(model))
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert float(torch.cosine_similarity(found, exact, dim=0)) > 0.99
    assert float((found - exact).norm() / exact.norm()) < 0.1
    formats = {parameter.requires_grad: parameter.dtype for parameter in made.model.parameters()}
    assert formats == ({True: torch.float32, False: torch.bfloat16} if lora else {True: torch.float32})
    state = {tensor.dtype for name, tensor in made.optimizer_tensors().items() if name.endswith("exp_avg")}
    assert state == {torch.float32}


@pytest.mark.parametrize("seed", range(4))
def test_a_cut_batch_holds_each_group_once_within_its_limit_and_pads_less(seed: int) -> None:
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    lengths = [(chance.randint(1, 90), [chance.randint(1, 12) for _ in range(4)]) for _ in range(23)]
    items = [
        (f"g{number}", random_group(generator, prompt=prompt, lengths=each))
        for number, (prompt, each) in enumerate(lengths)
    ]

    def padded(batches: list[dict[str, PromptGroup]]) -> int:
        sizes = [[tokens_of(group) for group in batch.values()] for batch in batches]
        return sum(len(each) * (max(p for p, _ in each) + max(c for _, c in each)) for each in sizes)

    batches = cut(items, 8, tokens_max=10**9, forward_tokens=64)
    assert sorted(name for batch in batches for name in batch) == sorted(name for name, _ in items)
    assert max(map(len, batches)) <= 8
    plain = [dict(items[start : start + 8]) for start in range(0, len(items), 8)]
    assert padded(batches) + 64 * len(batches) < padded(plain) + 64 * len(plain)
    assert cut(items, 30, tokens_max=10**9, forward_tokens=10**9) == [
        dict(sorted(items, key=lambda item: sum(tokens_of(item[1]))))
    ]
    assert cut([], 8, tokens_max=10**9, forward_tokens=64) == []


def test_long_groups_share_no_pass_that_would_have_more_tokens_than_the_limit() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [(9, [3, 3])] * 5 + [(9, [40, 40])] * 3 + [(9, [90, 90])]
    items = [
        (f"g{number}", random_group(generator, prompt=prompt, lengths=each))
        for number, (prompt, each) in enumerate(lengths)
    ]
    batches = cut(items, 16, tokens_max=180, forward_tokens=10**9)
    assert [list(batch) for batch in batches] == [["g0", "g1", "g2", "g3", "g4"], ["g5"], ["g6", "g7"], ["g8"]]
    whole = gradient(updater(policy(lora=False), micro_batch_groups=4))
    apart = gradient(updater(policy(lora=False), micro_batch_groups=4, micro_batch_tokens=1))
    torch.testing.assert_close(apart, whole, rtol=1e-4, atol=1e-6)


def test_equal_groups_stay_in_one_pass_and_in_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    items = [(f"g{number}", random_group(generator, prompt=9, lengths=[3, 3])) for number in range(6)]
    (batch,) = cut(items, 8, tokens_max=10**9, forward_tokens=1)
    assert list(batch) == [name for name, _ in items]


def test_the_gradient_does_not_depend_on_how_a_batch_is_cut() -> None:
    model = policy(lora=False)
    whole = gradient(updater(model, micro_batch_groups=4))
    for size in (1, 2, 3):
        torch.testing.assert_close(gradient(updater(model, micro_batch_groups=size)), whole, rtol=1e-4, atol=1e-6)
