"""The selector rule, seen by the sampler token by token and by the learner all at once."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.logprobs import completion_logprobs
from learner.packing import Candidate, GroupError, PromptGroup, check_group, pack_groups
from learner.policy import Policy, build_tiny
from learner.policy_settings import TinySettings
from learner.product_prompts import ProductPromptSettings, render_product, tokenize_product_request
from learner.sampling import TransformersSampler
from learner.selecting import Selector, banned_pointer_positions, banned_pointers, forbidden
from learner.tokenizer import render_pointers
from streams.events import PolicyRef, Product, Request, Sampling
from streams.pointers import is_selection

SELECTOR = Selector(pointer_ids=(5, 6, 7, 8), end_id=4)
LAMP = Product(
    document_id="d", title="Desk lamp", values=(("colour", "red"), ("dimmable", "dimmable"), ("power", "9 w"))
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    tiny = TinySettings(vocabulary_size=400, hidden_size=32, layers=2, heads=2, feedforward_size=64)
    return build_tiny(["desk lamp red dimmable power 9 w colour"], tiny, pointers=5)


def request(product: Product) -> Request:
    return Request(request_id="r", run="run", query_id="q", query="", index="i", product=product)


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9), max_size=8))
def test_sampler_and_learner_agree_at_every_position(prompt: list[int], token_ids: list[int]) -> None:
    stepwise = [
        (position, token)
        for position in range(len(token_ids))
        for token in sorted(banned_pointers(prompt, token_ids[:position], SELECTOR))
    ]
    assert banned_pointer_positions(prompt, token_ids, SELECTOR) == stepwise


@given(st.integers(0, 2**32 - 1))
def test_whoever_obeys_the_rule_points_at_shown_values_once_each(seed: int) -> None:
    chance = random.Random(seed)
    prompt, written = [1, 5, 2, 7, 8], list[int]()
    while not written or written[-1] != SELECTOR.end_id:
        written.append(chance.choice(sorted({4, 5, 6, 7, 8} - banned_pointers(prompt, written, SELECTOR))))
    assert forbidden(prompt, written, SELECTOR) == ""
    assert set(written[:-1]) <= {5, 7, 8}
    assert len(written) == len(set(written))


@pytest.mark.parametrize(
    ("token_ids", "reason"),
    [((6, 4), "no pointer"), ((5, 5, 4), "second time"), ((4, 5), "before its last"), ((1,), "no pointer")],
)
def test_what_a_selector_cannot_have_written_is_refused(token_ids: tuple[int, ...], reason: str) -> None:
    assert reason in forbidden([5, 7], token_ids, SELECTOR)
    candidate = Candidate(token_ids=token_ids, logprobs=(-1.0,) * len(token_ids), advantage=1.0)
    with pytest.raises(GroupError, match=reason):
        check_group(
            PromptGroup(prompt_ids=(5, 7), candidates=(candidate,), selector=SELECTOR), vocabulary=10, positions_max=9
        )


def test_what_is_sampled_are_pointers_to_the_prompts_values_and_the_learner_finds_its_probabilities(
    policy: Policy,
) -> None:
    selector = policy.selector
    assert selector is not None
    prompt = tokenize_product_request(policy.tokenizer, request(LAMP), ProductPromptSettings(values=5))
    sampler = TransformersSampler(policy, PolicyRef(lineage="1-a", step=0, sha256=""))
    sampling = Sampling(candidates=40, temperature=0.9, tokens_max=4)
    [written] = sampler.sample([prompt], sampling, [3])
    assert all(forbidden(prompt, each.token_ids, selector) == "" for each in written)
    assert len({each.text for each in written}) > 5
    candidates = tuple(Candidate(token_ids=w.token_ids, logprobs=w.logprobs, advantage=0.0) for w in written)
    group = PromptGroup(prompt_ids=tuple(prompt), candidates=candidates, temperature=0.9, selector=selector)
    packed = pack_groups([group])
    logprobs, entropies = completion_logprobs(policy.model, packed)
    torch.testing.assert_close(logprobs, packed.behaviour_logprobs, atol=1e-5, rtol=0)
    assert float(entropies.max()) <= math.log(4) + 1e-5  # Three values and the end.


def test_the_gradient_is_that_of_the_whole_vocabulary_with_the_rest_banned(policy: Policy) -> None:
    selector = policy.selector
    assert selector is not None
    prompt = tuple(tokenize_product_request(policy.tokenizer, request(LAMP), ProductPromptSettings(values=5)))
    tokens = (selector.pointer_ids[2], selector.pointer_ids[0], selector.end_id)
    packed = pack_groups(
        [
            PromptGroup(
                prompt_ids=prompt,
                candidates=(Candidate(token_ids=tokens, logprobs=(-1.0,) * 3, advantage=1.0),),
                selector=selector,
            )
        ]
    )
    weight = policy.model.get_input_embeddings().weight
    policy.model.zero_grad()
    completion_logprobs(policy.model, packed)[0].sum().backward()
    found = weight.grad.clone()
    policy.model.zero_grad()
    ids = torch.tensor([[*prompt, *tokens]])
    logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    for position in range(3):
        allowed = {*selector.answer_ids} - banned_pointers(prompt, tokens[:position], selector)
        banned = [token for token in range(logits.shape[1]) if token not in allowed]
        logits = logits.index_put((torch.tensor(position), torch.tensor(banned)), torch.tensor(-torch.inf))
    logits.log_softmax(-1)[range(3), tokens].sum().backward()
    torch.testing.assert_close(found, weight.grad, atol=1e-4, rtol=1e-4)
    policy.model.zero_grad()


def test_a_prompt_shows_each_value_before_its_pointer_and_no_text_can_forge_one() -> None:
    forged = Product(document_id="d", title="lamp<v2><values>", values=(("colour", "<v1>red"), ("power", "9 w")))
    assert (
        render_product(forged, ProductPromptSettings(), pointers=True)
        == "<title> lamp v2 values<values> colour v1 red<v1> power 9 w<v2>"
    )
    assert render_pointers([2, 1]) == "<v2><v1><end>"
    assert (
        render_product(Product(document_id="d", title="lamp"), ProductPromptSettings(), pointers=True) == "<title> lamp"
    )


def test_pointers_are_numbered_as_the_values_are(policy: Policy) -> None:
    selector = policy.selector
    assert selector is not None
    assert [policy.tokenizer.decode([each]) for each in selector.pointer_ids] == [f"<v{n}>" for n in range(1, 6)]
    assert all(one < other for one, other in pairwise(selector.answer_ids))
    assert policy.stop_ids == (selector.end_id,)


def test_a_policy_that_writes_text_is_no_selector() -> None:
    tiny = TinySettings(vocabulary_size=300, hidden_size=32, layers=1, heads=2, feedforward_size=64)
    assert build_tiny(["lamp"], tiny).selector is None


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("", True),
        ("<v1><v12>", True),
        ("hello", False),
        ("<v1>,<v2>", False),
        ("<v>", False),
        ("<answer>[]</answer>", False),
    ],
)
def test_a_selection_is_pointers_alone(text: str, valid: bool) -> None:
    assert is_selection(text) is valid
