"""Packed groups give each completion the distribution that it has alone; our plain float64 forward is the oracle."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import learner.logprobs
from learner.constraints import banned_positions
from learner.logprobs import PolicyUnfitError, check_policy, completion_logprobs, positions_max, target_logprobs
from learner.packing import Candidate, GroupError, PromptGroup, check_group, pack_groups
from tests.trl_oracle import gradients, random_group, random_llama

OPENERS = frozenset(range(0, 97, 2))  # Many, so that the no-repeat rule bans tokens in random text.


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


def varied_groups(seed: int = 0, *, openers: frozenset[int] = OPENERS) -> list[PromptGroup]:
    """Return groups of different sizes, lengths and temperatures; one prompt and one completion are a single token."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7, [5, 1, 9], 0.9), (1, [4, 4], 1.3), (12, [2], 0.5)]
    return [
        random_group(generator, prompt=prompt, lengths=lengths, temperature=temperature, opener_ids=openers)
        for prompt, lengths, temperature in shapes
    ]


def in_float64(model: nn.Module) -> nn.Module:
    """Return a copy that computes in float64 throughout; transformers' RMSNorm goes through float32 in any dtype."""
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)  # type: ignore[arg-type]
            norm.weight = module.weight  # type: ignore[assignment]
            module.forward = norm.forward
    return exact


def plain_logprobs(model: nn.Module, groups: list[PromptGroup]) -> list[tuple[Tensor, Tensor]]:
    """Return each completion's log-probabilities and entropies from a forward of its own, without padding."""
    results = []
    for group in groups:
        for candidate in group.candidates:
            ids = torch.tensor([group.prompt_ids + candidate.token_ids])
            logits = model(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1] / group.temperature  # [C, V]
            banned = torch.zeros_like(logits, dtype=torch.bool)
            for position, token in banned_positions(candidate.token_ids, group.opener_ids):
                banned[position, token] = True
            logprobs = logits.masked_fill(banned, -torch.inf).log_softmax(dim=1)
            targets = torch.tensor(candidate.token_ids)[:, None]
            entropy = -(logprobs.exp() * logprobs.masked_fill(banned, 0.0)).sum(dim=1)
            results.append((logprobs.gather(1, targets)[:, 0], entropy))
    return results


def test_logprobs_and_entropies_equal_a_plain_float64_forward() -> None:
    model, groups = random_llama(), varied_groups()
    exact = plain_logprobs(in_float64(model), groups)
    packed = pack_groups(groups)
    assert len(packed.banned_rows) > 0
    for ours, tolerance in ((in_float64(model), 1e-12), (model, 1e-5)):
        logprobs, entropies = completion_logprobs(ours, packed)
        for row, (expected_logprobs, expected_entropies) in enumerate(exact):
            length = len(expected_logprobs)
            assert (logprobs[row, :length] - expected_logprobs).abs().max() < tolerance
            assert (entropies[row, :length] - expected_entropies).abs().max() < tolerance
            assert not logprobs[row, length:].any()
            assert not entropies[row, length:].any()


@pytest.mark.parametrize(
    ("attention", "float64", "tolerance"),
    # transformers' eager attention takes its softmax in float32.
    [("sdpa", True, 1e-12), ("sdpa", False, 1e-5), ("eager", True, 1e-6), ("eager", False, 1e-5)],
)
def test_gradients_equal_a_plain_float64_forward(attention: str, float64: bool, tolerance: float) -> None:
    model, groups = random_llama(), varied_groups()
    exact = in_float64(model)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn((6, 9, 2), generator=generator, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for row, (logprobs, entropies) in enumerate(plain_logprobs(exact, groups)):
        length = len(logprobs)
        total = total + (logprobs * weights[row, :length, 0] + entropies * weights[row, :length, 1]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    expected = gradients(exact)

    ours = in_float64(model) if float64 else model
    ours.set_attn_implementation(attention)  # type: ignore[operator]
    logprobs, entropies = completion_logprobs(ours, pack_groups(groups))
    (torch.stack([logprobs, entropies], dim=2) * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert (gradients(ours) - expected).abs().max() < tolerance * expected.abs().max()


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=3),
    st.integers(0, 10**6),
)
def test_any_shape_of_groups_equals_plain_forwards(shapes: list[tuple[int, list[int]]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = [random_group(generator, prompt=p, lengths=lengths, opener_ids=OPENERS) for p, lengths in shapes]
    model = in_float64(random_llama(layers=1))
    with torch.no_grad():
        logprobs, entropies = completion_logprobs(model, pack_groups(groups))
        for row, (expected_logprobs, expected_entropies) in enumerate(plain_logprobs(model, groups)):
            length = len(expected_logprobs)
            # A random token may be a banned one: probability 0, here as a very negative number.
            possible = expected_logprobs.isfinite()
            assert torch.allclose(logprobs[row, :length][possible], expected_logprobs[possible], atol=1e-10)
            assert (logprobs[row, :length][~possible] < -1e20).all()
            assert torch.allclose(entropies[row, :length], expected_entropies, atol=1e-10)


def test_a_completion_does_not_depend_on_its_neighbours() -> None:
    model, (group, *_) = random_llama(), varied_groups(openers=frozenset())
    alone = PromptGroup(prompt_ids=group.prompt_ids, candidates=group.candidates[2:], temperature=group.temperature)
    with torch.no_grad():
        together = completion_logprobs(model, pack_groups(varied_groups(openers=frozenset())))[0][2]
        single = completion_logprobs(model, pack_groups([alone]))[0][0]
    assert (together - single).abs().max() < 1e-5


def test_the_shared_prompt_is_fed_once_and_last_tokens_not_at_all() -> None:
    group = random_group(torch.Generator().manual_seed(0), prompt=256, lengths=[32] * 8)
    packed = pack_groups([group])
    assert packed.prefix_ids.shape[1] + packed.input_ids.shape[1] == 256 + 8 * 31


def test_the_head_recomputes_what_it_may_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn((50, 16), generator=generator, dtype=torch.float64)
    weight = torch.randn((97, 16), generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 97, (50,), generator=generator)
    rows, tokens = torch.tensor([3, 3, 20, 49]), torch.tensor([(targets[3] + 1) % 97, (targets[3] + 2) % 97, 5, 96])

    def run() -> tuple[Tensor, ...]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logprobs, entropies = target_logprobs(h, w, targets, rows, tokens)
        (logprobs.sum() + 0.3 * entropies.square().sum()).backward()  # type: ignore[no-untyped-call]
        return logprobs.detach(), entropies.detach(), h.grad, w.grad  # type: ignore[return-value]

    kept = run()
    monkeypatch.setattr(learner.logprobs, "KEPT_BYTES_MAX", 0)
    monkeypatch.setattr(learner.logprobs, "CHUNK_ELEMENTS", 97 * 7)
    for first, second in zip(kept, run(), strict=True):
        assert torch.allclose(first, second, atol=1e-12)


def test_the_heads_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn((4, 5), generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn((7, 5), generator=generator, dtype=torch.float64, requires_grad=True)
    targets, rows, tokens = torch.tensor([0, 3, 6, 2]), torch.tensor([0, 2]), torch.tensor([4, 1])
    assert torch.autograd.gradcheck(
        lambda h, w: target_logprobs(h, w, targets, rows, tokens), (hidden, weight), eps=1e-6, atol=1e-6
    )


def test_lora_adapters_get_the_gradients_of_a_plain_forward() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = in_float64(get_peft_model(random_llama(), config))
    check_policy(model)
    groups = varied_groups()
    sum(logprobs.sum() for logprobs, _ in plain_logprobs(model, groups)).backward()  # type: ignore[union-attr]
    expected = gradients(model)
    model.zero_grad()
    completion_logprobs(model, pack_groups(groups))[0].sum().backward()  # type: ignore[no-untyped-call]
    assert len(expected) > 0
    assert torch.allclose(gradients(model), expected, atol=1e-10)


def test_dropout_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    model = random_llama()
    model.config.attention_dropout = 0.1
    with pytest.raises(PolicyUnfitError, match=r"dropout 0, got more in config.attention_dropout"):
        check_policy(model)
    adapted = get_peft_model(random_llama(), LoraConfig(r=2, lora_dropout=0.05, target_modules=["q_proj"]))
    with pytest.raises(PolicyUnfitError, match="lora_dropout"):
        check_policy(adapted)


def test_gradient_checkpointing_is_refused() -> None:
    model = random_llama()
    model.gradient_checkpointing_enable()
    with pytest.raises(PolicyUnfitError, match="gradient_checkpointing_disable"):
        check_policy(model)


def test_heads_that_are_not_plain_are_refused() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(random_llama(), LoraConfig(r=2, lora_dropout=0.0, target_modules=["lm_head"]))
    with pytest.raises(PolicyUnfitError, match="lm_head"):
        check_policy(adapted)
    capped = random_llama()
    capped.config.final_logit_softcapping = 30.0
    with pytest.raises(PolicyUnfitError, match="final_logit_softcapping"):
        check_policy(capped)


def test_a_sliding_window_bounds_the_length() -> None:
    model = random_llama()
    assert positions_max(model) == 512
    model.config.sliding_window = 128
    assert positions_max(model) == 128


def changed(**changes: object) -> PromptGroup:
    base: dict[str, object] = {"token_ids": (5, 6), "logprobs": (-1.0, -2.0), "advantage": 0.5}
    candidate = Candidate(**(base | {key: value for key, value in changes.items() if key in base}))  # type: ignore[arg-type]
    group: dict[str, object] = {"prompt_ids": (3, 4), "candidates": (candidate,)}
    return PromptGroup(**(group | {key: value for key, value in changes.items() if key not in base}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (changed(prompt_ids=()), "prompt of at least one token"),
        (changed(candidates=()), "at least one completion"),
        (changed(temperature=0.0), "temperature > 0, got 0.0"),
        (changed(temperature=float("nan")), "temperature > 0"),
        (changed(temperature=1e-300), "temperature of 1e-06 at least, got 1e-300"),
        (changed(token_ids=(), logprobs=()), "completion 0: expected one log-probability per token"),
        (changed(logprobs=(-1.0,)), "got 1 for 2"),
        (changed(token_ids=(5, 97)), "completion 0: expected token ids in 0…96, got 5…97"),
        (changed(prompt_ids=(-1, 4)), "prompt: expected token ids in 0…96, got -1…4"),
        (changed(logprobs=(-1.0, float("nan"))), "finite log-probabilities"),
        (changed(logprobs=(-1.0, -float("inf"))), "finite log-probabilities"),
        (changed(logprobs=(-1.0, 0.5)), "log-probabilities ≤ 0"),
        (
            changed(logprobs=(-1.0, -1e300)),
            r"completion 0: .* of -1e\+30 at least, got -1e\+300",
        ),
        (changed(advantage=float("inf")), "finite advantage"),
        (changed(prompt_ids=(1,) * 31), "at most 32 tokens with the prompt, got 33"),
        (
            changed(token_ids=(1, 5, 1, 5), logprobs=(-1.0,) * 4, opener_ids=frozenset({1})),
            "token 5 at 3 begins an expansion twice",
        ),
    ],
)
def test_a_group_that_no_sampler_wrote_is_named_and_refused(group: PromptGroup, message: str) -> None:
    with pytest.raises(GroupError, match=message):
        check_group(group, vocabulary=97, positions_max=32)


def test_a_good_group_passes() -> None:
    check_group(changed(), vocabulary=97, positions_max=32)
