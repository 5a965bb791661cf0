"""Supervised warm-up: TRL's SFTTrainer on (prompt, answer) pairs, with the loss on the answer alone.

One function pre-trains the tiny policy on the catalogue (attribute values → title) and teaches it the teacher's
answers. It stops if the dev loss rises. It also stops when the answers keep the format, while the entropy is still well
above 0, because a policy without entropy cannot explore. It keeps the best epoch's weights and writes only safetensors
and JSON.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from learner.policy import Policy, save_policy
from learner.sampling import TransformersSampler
from streams.descriptions import describe
from streams.devices import keep_to_one_device, release_memory
from streams.errors import SearchloopError
from streams.events import PolicyRef, Sampling
from streams.whole_file import write_file

Pair = tuple[str, str]
Progress = Callable[[str, int, int], None]
"""A function of (phase, steps done, steps in all)."""


class WarmupError(SearchloopError, ValueError):
    """The warm-up has no pairs to learn from, or its loss is not finite."""


class WarmupSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Length and speed of the warm-up, and the conditions that end it."""

    epochs_max: Annotated[int, msgspec.Meta(ge=1, le=1000), describe("Largest number of passes over the pairs.")] = 4
    learning_rate: Annotated[
        float, msgspec.Meta(gt=0, le=0.1), describe("AdamW's learning rate after it has risen.")
    ] = 1e-3
    batch_size: Annotated[int, msgspec.Meta(ge=1), describe("Pairs per optimizer step.")] = 32
    warmup_share: Annotated[
        float, msgspec.Meta(ge=0, lt=1), describe("Share of the steps in which the learning rate rises.")
    ] = 0.05
    schedule: Annotated[
        str,
        msgspec.Meta(pattern="^(cosine|linear|constant)$"),
        describe('Decay of the learning rate after it has risen: "cosine", "linear" or "constant".'),
    ] = "cosine"
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1), describe("AdamW's decoupled weight decay.")] = 0.01
    tokens_max: Annotated[
        int, msgspec.Meta(ge=8), describe("Largest number of tokens in a pair. Longer pairs are cut at the end.")
    ] = 192
    valid_enough: Annotated[
        float | None, describe("Share of valid answers on the dev set that ends the warm-up. None: no share ends it.")
    ] = None
    entropy_min: Annotated[
        float, msgspec.Meta(ge=0), describe("Least entropy of the policy, in nats per token. Less ends the warm-up.")
    ] = 0.2
    dev_pairs_max: Annotated[
        int, msgspec.Meta(ge=0), describe("Number of pairs in each evaluation on the dev set.")
    ] = 256
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the order of the pairs.")] = 0


class WarmupEpoch(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation on the dev pairs; losses and entropies are in nats per answer token."""

    epoch: int
    train_loss: float
    dev_loss: float
    entropy: float
    valid: float


class WarmupReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a warm-up; `best_epoch` (from 1) is the epoch whose weights were kept."""

    pairs: int
    steps: int
    seconds: float
    stopped: str
    best_epoch: int
    epochs: tuple[WarmupEpoch, ...]


def warm_up(
    policy: Policy,
    pairs: Sequence[Pair],
    dev_pairs: Sequence[Pair],
    settings: WarmupSettings,
    out_dir: Path,
    progress: Progress | None = None,
    *,
    is_valid: Callable[[str], bool] | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[Policy, WarmupReport]:
    """Train the policy's weights on the pairs, keep the epoch with the lowest dev loss, and save it in `out_dir`.

    pairs, dev_pairs: (rendered prompt, rendered answer); without dev pairs, all epochs are run.
    is_valid: tells whether a text keeps the answer's format; the default accepts one JSON list of strings in answer
    tags.
    stop: called after every step. Once it returns True, nothing is saved and KeyboardInterrupt is raised. We do not
    raise from the signal handler: such an exception was once lost in the trainer, and the warm-up went on.
    Returns the saved policy (the same model object, trained) and the report, also written to `out_dir/warmup.json`.
    The same policy, pairs and settings give the same weights on one CPU thread.
    """
    if not pairs:
        raise WarmupError("warm-up: expected at least one (prompt, answer) pair, got none")
    from transformers import TrainerCallback

    dev = list(dev_pairs[: settings.dev_pairs_max])
    trainer = _trainer(policy, pairs, settings)
    model = trainer.model
    started = time.monotonic()
    epochs: list[WarmupEpoch] = []
    best: dict[str, Tensor] | None = None
    stopped = "epochs"

    class Watch(TrainerCallback):  # type: ignore[misc]  # transformers has no stubs
        """Reports each step, evaluates the dev pairs after each epoch, and stops the trainer."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if progress is not None:
                progress("warm-up", state.global_step, state.max_steps)
            if stop is not None and stop():
                control.should_training_stop = True

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal best, stopped
            if stop is not None and stop():
                return
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            epoch = measure_epoch(
                Policy(model=model, tokenizer=policy.tokenizer),
                dev,
                epoch=len(epochs) + 1,
                train_loss=float(losses[-1]) if losses else math.nan,
                tokens_max=settings.tokens_max,
                is_valid=is_valid or is_answer,
            )
            model.train()
            if epochs and epoch.dev_loss >= min(seen.dev_loss for seen in epochs):
                stopped, control.should_training_stop = "dev loss rose", True
            else:
                best = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}
                if dev and epoch.entropy < settings.entropy_min:
                    stopped, control.should_training_stop = "entropy fell below entropy_min", True
                elif dev and settings.valid_enough is not None and epoch.valid >= settings.valid_enough:
                    stopped, control.should_training_stop = "enough answers are valid", True
            epochs.append(epoch)

    trainer.add_callback(Watch())
    with torch.random.fork_rng():
        trainer.train()
    if stop is not None and stop():
        raise KeyboardInterrupt
    steps = trainer.state.global_step
    if not epochs or any(math.isnan(epoch.dev_loss) for epoch in epochs if dev):
        raise WarmupError(
            f"warm-up: the loss is not a number after {steps} steps. Lower warmup.learning_rate "
            f"({settings.learning_rate})"
        )
    if best is not None:
        model.load_state_dict(best, strict=False)  # What is frozen, such as weights under LoRA, has not changed.
    best_epoch = min(epochs, key=lambda epoch: epoch.dev_loss).epoch if dev else len(epochs)
    report = WarmupReport(
        pairs=len(pairs),
        steps=steps,
        seconds=round(time.monotonic() - started, 3),
        stopped=stopped,
        best_epoch=best_epoch,
        epochs=tuple(epochs),
    )
    del trainer
    saved = save_policy(Policy(model=model.eval().to("cpu"), tokenizer=policy.tokenizer), out_dir)
    release_memory()
    write_file(out_dir / "warmup.json", msgspec.json.format(msgspec.json.encode(report)))
    return saved, report


def _trainer(policy: Policy, pairs: Sequence[Pair], settings: WarmupSettings) -> Any:
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class AnswerTrainer(SFTTrainer):  # type: ignore[misc]  # trl has no stubs
        """Applies the vocabulary only to the answer's positions.

        TRL 1.16 applies it to every position and masks afterwards. For a short answer after a long prompt, that took
        75% of the tiny policy's step. The loss is the same, the mean over the answer tokens
        (tests/unit/test_warmup.py).
        """

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            loss, count = answer_loss(model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
            return loss / (count if num_items_in_batch is None else num_items_in_batch)

    rows = [encode_pair(policy, pair, tokens_max=settings.tokens_max) for pair in pairs]
    # The trainer requires a folder but never writes to it (save_strategy "no").
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            num_train_epochs=settings.epochs_max,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_share,
            lr_scheduler_type={"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule),
            weight_decay=settings.weight_decay,
            max_length=settings.tokens_max,
            gradient_checkpointing=False,
            bf16=False,
            seed=settings.seed,
            data_seed=settings.seed,
            logging_strategy="epoch",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=torch.cuda.is_available(),
            eos_token=policy.tokenizer.convert_ids_to_tokens(policy.stop_ids[0]),
        )
        keep_to_one_device(arguments)
        disable_progress_bars()  # `progress` alone reports the progress.
        trainer = AnswerTrainer(
            model=policy.model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=policy.tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def answer_loss(model: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of the labeled tokens, and their number.

    ids, mask, labels: [N, T]; label -100 is not learned. LoRA also works, since its layers are inside the base model.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != -100  # [N, T-1]
    logits = causal.lm_head(hidden[wanted])  # [answer tokens, V]
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="sum"), wanted.sum()


def encode_pair(policy: Policy, pair: Pair, *, tokens_max: int) -> dict[str, list[int]]:
    """Return input_ids and labels (-100 on the prompt); an answer without a stop token gets the end token."""
    prompt = policy.tokenizer(pair[0], add_special_tokens=False)["input_ids"]
    answer = policy.tokenizer(pair[1], add_special_tokens=False)["input_ids"]
    if answer[-1] not in policy.stop_ids:
        answer = [*answer, policy.stop_ids[0]]
    prompt = prompt[: max(tokens_max - len(answer), 1)]
    return {
        "input_ids": (prompt + answer)[:tokens_max],
        "labels": ([-100] * len(prompt) + answer)[:tokens_max],
    }


@torch.inference_mode()
def measure_epoch(
    policy: Policy,
    pairs: Sequence[Pair],
    *,
    epoch: int,
    train_loss: float,
    tokens_max: int,
    is_valid: Callable[[str], bool],
) -> WarmupEpoch:
    """Return loss, entropy and the share of valid greedy answers on dev pairs; without any, the last epoch is best."""
    if not pairs:
        return WarmupEpoch(epoch=epoch, train_loss=train_loss, dev_loss=-float(epoch), entropy=math.nan, valid=math.nan)
    policy.model.eval()
    losses, entropies, prompts = [], [], []
    longest_answer = 1
    for start in range(0, len(pairs), 32):
        rows = [encode_pair(policy, pair, tokens_max=tokens_max) for pair in pairs[start : start + 32]]
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [policy.pad_id] * (longest - len(row["input_ids"])) for row in rows])
        labels = torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows])
        device = next(policy.model.parameters()).device
        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
        logits = policy.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, :-1].cpu()
        wanted = labels[:, 1:] != -100
        logprobs = torch.log_softmax(logits[wanted].float(), dim=-1)  # [answer tokens, V]
        losses.append(-logprobs.gather(1, labels[:, 1:][wanted][:, None]).squeeze(1))
        entropies.append(-(logprobs.exp() * logprobs).sum(-1))
        for row in rows:
            answer = sum(label != -100 for label in row["labels"])
            prompts.append(row["input_ids"][: len(row["input_ids"]) - answer])
            longest_answer = max(longest_answer, answer)
    sampler = TransformersSampler(policy, PolicyRef(lineage="warm-up", step=0, sha256=""))
    greedy = Sampling(candidates=1, temperature=0.0, tokens_max=longest_answer + 4)
    written = sampler.sample(prompts, greedy, [0] * len(prompts))
    return WarmupEpoch(
        epoch=epoch,
        train_loss=train_loss,
        dev_loss=float(torch.cat(losses).mean()),
        entropy=float(torch.cat(entropies).mean()),
        valid=sum(is_valid(group[0].text) and group[0].finish == "stop" for group in written) / len(written),
    )


def is_answer(text: str) -> bool:
    """Return whether the text is one JSON list of non-empty strings in answer tags."""
    if not (text.startswith("<answer>") and text.endswith("</answer>")):
        return False
    try:
        words = json.loads(text[len("<answer>") : -len("</answer>")])
    except ValueError:
        return False
    return isinstance(words, list) and all(isinstance(word, str) and word.strip() for word in words)
