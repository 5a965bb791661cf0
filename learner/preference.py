"""Direct preference optimization: TRL's DPOTrainer on pairs from the groups that a run has logged.

The best and the worst rewarded text of each logged group make one pair, so DPO sees exactly the texts and rewards that
GRPO saw. The reference is the policy with which the run began.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from learner.policy import Policy, save_policy
from streams.descriptions import describe
from streams.devices import keep_to_one_device
from streams.errors import SearchloopError
from streams.events import Reward


class PreferenceError(SearchloopError, ValueError):
    """There is no pair to learn from."""


class PreferenceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of DPO."""

    beta: Annotated[
        float, msgspec.Meta(gt=0, le=10), describe("DPO's β. A larger value keeps the policy closer to the reference.")
    ] = 0.1
    margin_min: Annotated[float, msgspec.Meta(ge=0), describe("Least difference of the two rewards in a pair.")] = 0.01
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=0.1), describe("AdamW's learning rate.")] = 1e-4
    batch_size: Annotated[int, msgspec.Meta(ge=1), describe("Pairs per optimizer step.")] = 16
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100), describe("Number of passes over the pairs.")] = 1
    tokens_max: Annotated[
        int, msgspec.Meta(ge=8), describe("Largest number of tokens in prompt and answer together.")
    ] = 320
    pairs_max: Annotated[int, msgspec.Meta(ge=1), describe("Largest number of pairs.")] = 20_000
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the training, and so of the order of the pairs.")] = 0


class Preference(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt with a better and a worse answer, as token ids; each answer includes its end token."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


def preferences(rewards: Iterable[Reward], settings: PreferenceSettings) -> list[Preference]:
    """Return at most one pair per group: its best and its worst scored text; of equal texts, the first.

    A group is left out if its rewards differ by less than `margin_min`. Texts that were cut at their token limit do not
    count.
    """
    found: list[Preference] = []
    for reward in rewards:
        scored = [
            (outcome.reward, completion)
            for outcome, completion in zip(reward.outcomes, reward.generation.completions, strict=True)
            if outcome.reward is not None and completion.finish == "stop"
        ]
        if len(scored) < 2:
            continue
        best, worst = max(scored, key=lambda each: each[0]), min(scored, key=lambda each: each[0])
        if best[0] - worst[0] < settings.margin_min or best[0] == worst[0]:
            continue
        found.append(
            Preference(
                prompt_ids=reward.generation.prompt_token_ids,
                chosen_ids=best[1].token_ids,
                rejected_ids=worst[1].token_ids,
            )
        )
        if len(found) >= settings.pairs_max:
            break
    return found


def prefer(
    policy: Policy,
    pairs: Sequence[Preference],
    settings: PreferenceSettings,
    out_dir: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> Policy:
    """Train the policy on the pairs with its initial weights as reference, save it in `out_dir`, and return it.

    DPO (arXiv:2305.18290), eq. 7, TRL's sigmoid loss. A selector is taught over the whole vocabulary, including the
    pointers that it could not write: the tokens that its rule bans appear in neither text.
    Raises PreferenceError if there is no pair.
    """
    if not pairs:
        raise PreferenceError("preference: expected at least one pair, got none; lower preference.margin_min")
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class TokenTrainer(DPOTrainer):  # type: ignore[misc]  # trl has no stubs
        """Takes the logged token ids as they are, because text that is tokenized again may give other tokens."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    class Watch(TrainerCallback):  # type: ignore[misc]  # transformers has no stubs
        """Reports each step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if progress is not None:
                progress("preferences", state.global_step, state.max_steps)

    disable_progress_bars()
    tokenizer = copy.deepcopy(
        policy.tokenizer
    )  # TRL makes the end token special; the policy's tokenizer must not change.
    rows = [
        {"prompt_ids": list(p.prompt_ids), "chosen_ids": list(p.chosen_ids), "rejected_ids": list(p.rejected_ids)}
        for p in pairs
    ]
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng():
        arguments = DPOConfig(
            output_dir=scratch,
            beta=settings.beta,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            max_length=settings.tokens_max,
            gradient_checkpointing=False,
            bf16=False,
            seed=settings.seed,
            data_seed=settings.seed,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        keep_to_one_device(arguments)
        trainer = TokenTrainer(
            model=policy.model,
            ref_model=copy.deepcopy(policy.model),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return save_policy(Policy(model=policy.model.eval(), tokenizer=policy.tokenizer), out_dir)
