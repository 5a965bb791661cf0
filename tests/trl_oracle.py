"""TRL's GRPOTrainer as an oracle: its own loss, on tensors that we give it, on a CPU.

`_compute_loss` is TRL's, untouched; only the batch, which TRL would sample itself, comes from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from learner.packing import Candidate, PromptGroup
from streams.events import Completion, Generation, Outcome, PolicyRef, Position, Request, Reward, Sampling

POLICY = PolicyRef(lineage="1-test", step=0, sha256="")


def random_llama(
    *, seed: int = 0, vocabulary: int = 97, hidden: int = 32, layers: int = 2, heads: int = 4, kv_heads: int = 2
) -> LlamaForCausalLM:
    """Return a Llama with random weights, wide enough apart that tokens differ in probability."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def random_group(
    generator: torch.Generator,
    *,
    prompt: int,
    lengths: list[int],
    vocabulary: int = 97,
    temperature: float = 1.0,
    opener_ids: frozenset[int] = frozenset(),
) -> PromptGroup:
    """Return a group of random tokens and behaviour log-probabilities, with advantages of mean 0."""

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocabulary, (count,), generator=generator).tolist())

    advantages = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    return PromptGroup(
        prompt_ids=ids(prompt),
        candidates=tuple(
            Candidate(
                token_ids=ids(length),
                logprobs=tuple((-4 - torch.rand(length, generator=generator)).tolist()),
                advantage=advantage,
            )
            for length, advantage in zip(lengths, (advantages - advantages.mean()).tolist(), strict=True)
        ),
        temperature=temperature,
        opener_ids=opener_ids,
    )


def reward_event(
    group_id: str,
    group: PromptGroup,
    *,
    rewards: Sequence[float | None] | None = None,
    valid: bool = True,
    expansions: tuple[str, ...] = ("red shoe", "boot"),
    policy: PolicyRef = POLICY,
) -> Reward:
    """Return the event that gives the group; its rewards are the advantages (of mean 0) unless told otherwise."""
    values = [candidate.advantage for candidate in group.candidates] if rewards is None else rewards
    position = Position(topic="generations", partition=0, offset=0)
    generation = Generation(
        group_id=group_id,
        request=Request(request_id=group_id, run="test", query_id="q", query="shoe", index="i-1"),
        source=position,
        policy=policy,
        tokenizer_sha256="",
        prompt_sha256="",
        sampling=Sampling(
            candidates=len(group.candidates),
            temperature=group.temperature,
            tokens_max=64,
            no_repeat=bool(group.opener_ids),
        ),
        prompt_token_ids=group.prompt_ids,
        completions=tuple(
            Completion(text="", token_ids=candidate.token_ids, logprobs=candidate.logprobs, finish="stop")
            for candidate in group.candidates
        ),
    )
    return Reward(
        group_id=group_id,
        generation=generation,
        source=position,
        content_sha256="",
        outcomes=tuple(
            Outcome(status="failed", valid=False, error="down")
            if value is None
            else Outcome(status="scored", valid=valid, reward=value, expansions=expansions)
            for value in values
        ),
        index="i-1",
        relevance_model="test",
        reward_sha256="",
    )


def trl_trainer(model: LlamaForCausalLM, output_dir: str, **settings: Any) -> Any:
    """Return a GRPOTrainer of one micro-batch a step around the model; settings are GRPOConfig's."""
    # Imported here: TRL takes seconds, and most tests need only the groups.
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    arguments = GRPOConfig(
        output_dir=output_dir,
        use_cpu=True,
        bf16=False,
        report_to=[],
        num_generations=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        **settings,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 2),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_inputs(groups: list[PromptGroup]) -> dict[str, Tensor]:
    """Return the groups as TRL lays them out: one row a completion, prompts padded left, completions padded right."""
    rows = [(group.prompt_ids, candidate) for group in groups for candidate in group.candidates]
    prompts = max(len(prompt) for prompt, _ in rows)
    longest = max(len(candidate.token_ids) for _, candidate in rows)
    inputs = {
        "prompt_ids": torch.zeros((len(rows), prompts), dtype=torch.long),
        "prompt_mask": torch.zeros((len(rows), prompts), dtype=torch.long),
        "completion_ids": torch.zeros((len(rows), longest), dtype=torch.long),
        "completion_mask": torch.zeros((len(rows), longest), dtype=torch.long),
        "old_per_token_logps": torch.zeros((len(rows), longest)),
        "advantages": torch.tensor([candidate.advantage for _, candidate in rows]),
    }
    for row, (prompt, candidate) in enumerate(rows):
        length = len(candidate.token_ids)
        inputs["prompt_ids"][row, prompts - len(prompt) :] = torch.tensor(prompt)
        inputs["prompt_mask"][row, prompts - len(prompt) :] = 1
        inputs["completion_ids"][row, :length] = torch.tensor(candidate.token_ids)
        inputs["completion_mask"][row, :length] = 1
        inputs["old_per_token_logps"][row, :length] = torch.tensor(candidate.logprobs)
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    return inputs


def gradients(model: torch.nn.Module) -> Tensor:
    """Return all gradients of the model as one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
