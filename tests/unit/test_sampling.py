"""The sampler: its log-probabilities, its independence of company, and the rule it keeps."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import msgspec
import pytest
import torch

from learner.generation import GenerationSettings
from learner.policy import Policy, build_tiny
from learner.policy_settings import TinySettings
from learner.sampling import SamplerSettings, SamplingError, TransformersSampler, choose
from streams.events import Completion, PolicyRef, Sampling

REFERENCE = PolicyRef(lineage="test", step=0, sha256="0")
HOT = Sampling(candidates=6, temperature=0.9, tokens_max=10)


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = build_tiny(
        ["red patch cable", "blue toner cartridge"] * 4,
        TinySettings(vocabulary_size=300, hidden_size=16, layers=2, heads=2, feedforward_size=32, positions_max=64),
    )
    with torch.no_grad():  # Wider logits, so that it matters which token comes next.
        policy.model.get_input_embeddings().weight.mul_(8)
    return policy


PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16], [8, 3]]
SEEDS = [1, 2, 3, 4]


def alone(policy: Policy, prompt: list[int], completion: Completion, temperature: float) -> list[float]:
    """The oracle: one plain forward, no cache, no padding, the rule applied by hand."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    logits = policy.model(ids).logits[0, len(prompt) - 1 : -1].float()
    starts: list[int] = []
    for position, token in enumerate(completion.token_ids):
        if position and completion.token_ids[position - 1] in policy.opener_ids:
            logits[position, starts] = -torch.inf
            if token not in policy.opener_ids:
                starts.append(token)
    chosen = torch.tensor(completion.token_ids)
    return torch.log_softmax(logits / temperature, -1).gather(1, chosen[:, None]).squeeze(1).tolist()


def test_logprobs_are_those_of_a_plain_forward(policy: Policy) -> None:
    groups = TransformersSampler(policy, REFERENCE).sample(PROMPTS, HOT, SEEDS)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            assert completion.logprobs == pytest.approx(alone(policy, prompt, completion, 0.9), abs=1e-4)


def test_the_same_batch_gives_the_same_bits_and_company_changes_no_token(policy: Policy) -> None:
    sampler = TransformersSampler(policy, REFERENCE)
    groups = sampler.sample(PROMPTS, HOT, SEEDS)
    torch.rand(7)
    assert sampler.sample(PROMPTS, HOT, SEEDS) == groups
    small = TransformersSampler(policy, REFERENCE, SamplerSettings(rows_max=6))
    for other in (
        small.sample(PROMPTS, HOT, SEEDS),
        [sampler.sample([p], HOT, [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)],
    ):
        assert [[c.token_ids for c in group] for group in other] == [[c.token_ids for c in group] for group in groups]


def test_another_seed_gives_another_group(policy: Policy) -> None:
    sampler = TransformersSampler(policy, REFERENCE)
    assert sampler.sample(PROMPTS[:1], HOT, [1]) != sampler.sample(PROMPTS[:1], HOT, [2])


class FakeModel(torch.nn.Module):
    """Says the same of every next token: an opener, one of two words, or a stop, all equally likely."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.config = policy.model.config
        self.generation_config = policy.model.generation_config
        likely = [*policy.opener_ids, 40, 41, policy.stop_ids[0]]
        self.logits = torch.nn.Parameter(
            torch.full((len(policy.tokenizer),), -1e4).index_fill(0, torch.tensor(likely), 0)
        )

    def forward(self, input_ids: torch.Tensor, **rest: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1).clone())


def test_no_expansion_begins_like_an_earlier_one(policy: Policy) -> None:
    def beginnings(completion: Completion) -> list[int]:
        pairs = pairwise(completion.token_ids)
        return [token for opener, token in pairs if opener in policy.opener_ids and token not in policy.opener_ids]

    sampler = TransformersSampler(Policy(model=FakeModel(policy), tokenizer=policy.tokenizer), REFERENCE)
    many = Sampling(candidates=1_000, temperature=1.0, tokens_max=12)
    ruled = [beginnings(completion) for completion in sampler.sample([[1]], many, [1])[0]]
    free = Sampling(candidates=1_000, temperature=1.0, tokens_max=12, no_repeat=False)
    unruled = [beginnings(completion) for completion in sampler.sample([[1]], free, [1])[0]]
    assert all(len(set(tokens)) == len(tokens) for tokens in ruled)
    assert any(len(set(tokens)) < len(tokens) for tokens in unruled)


class OneWord(FakeModel):
    """Says one word over and over, another a little less gladly, and ends only where it may say neither."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.opener = min(policy.opener_ids)
        self.after_opener = self.logits.data.clone().index_copy(0, torch.tensor([40, 41]), torch.tensor([9.0, 8.0]))
        self.after_word = self.logits.data.clone().index_fill(0, torch.tensor([self.opener]), 9.0)
        self.after_opener[list(policy.opener_ids)] = -1e4

    def forward(self, input_ids: torch.Tensor, **rest: object) -> SimpleNamespace:
        opened = (input_ids == self.opener)[..., None]
        return SimpleNamespace(logits=torch.where(opened, self.after_opener, self.after_word))


def test_served_greedily_no_word_is_said_over_and_over_also_where_training_has_no_such_rule(policy: Policy) -> None:
    sampler = TransformersSampler(Policy(model=OneWord(policy), tokenizer=policy.tokenizer), REFERENCE)
    settings = GenerationSettings(backend="vllm", no_repeat=False, tokens_max=10)
    looping = msgspec.structs.replace(settings.sampling(), candidates=1, temperature=0.0)
    [[endless]] = sampler.sample([[1]], looping, [1])
    [[served]] = sampler.sample([[1]], settings.greedy(), [1])
    opener = min(policy.opener_ids)
    assert endless.token_ids == (opener, 40) * 5
    assert served.token_ids == (opener, 40, opener, 41, opener, policy.stop_ids[0])
    assert (endless.finish, served.finish) == ("length", "stop")


def test_greedy_takes_the_best_token_every_time(policy: Policy) -> None:
    greedy = Sampling(candidates=2, temperature=0.0, tokens_max=6, no_repeat=False)
    for prompt, group in zip(
        PROMPTS, TransformersSampler(policy, REFERENCE).sample(PROMPTS, greedy, SEEDS), strict=True
    ):
        assert group[0] == group[1]
        ids = list(prompt)
        for token in group[0].token_ids:
            assert token == int(policy.model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
        assert set(group[0].logprobs) == {0.0}


def test_a_completion_ends_with_its_first_stop_or_at_the_limit(policy: Policy) -> None:
    for group in TransformersSampler(policy, REFERENCE).sample(PROMPTS, HOT, SEEDS):
        for completion in group:
            stops = [token in policy.stop_ids for token in completion.token_ids]
            assert not any(stops[:-1])
            assert completion.finish == ("stop" if stops[-1] else "length")
            assert completion.finish == "stop" or len(completion.token_ids) == HOT.tokens_max


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([1.0, -torch.inf, 0.0, 2.0])
    uniforms = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen, logprobs = choose(logits.repeat(20_000, 1), temperature=0.7, uniforms=uniforms)
    expected = torch.softmax(logits / 0.7, -1)
    assert torch.allclose(torch.bincount(chosen, minlength=4) / 20_000, expected, atol=0.01)
    assert torch.allclose(logprobs.exp(), expected[chosen])


def test_the_largest_number_below_one_draws_a_possible_token() -> None:
    logits = torch.tensor([[0.0, 3.0, -torch.inf, -torch.inf]])
    chosen, _ = choose(logits, temperature=1.0, uniforms=torch.tensor([1 - 2**-53], dtype=torch.float64))
    assert chosen.item() == 1


def test_damaged_weights_and_long_prompts_are_errors(policy: Policy) -> None:
    with pytest.raises(SamplingError, match="not finite"):
        choose(torch.full((1, 3), torch.nan), temperature=1.0, uniforms=torch.zeros(1))
    with pytest.raises(SamplingError, match="1 to 54 tokens, got 60"):
        TransformersSampler(policy, REFERENCE).sample([[1] * 60], HOT, [1])
    with pytest.raises(SamplingError, match="one seed"):
        TransformersSampler(policy, REFERENCE).sample([[1]], HOT, [])
