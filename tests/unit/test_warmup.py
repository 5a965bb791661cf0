"""The warm-up: it teaches, it keeps the best epoch, and its loss is TRL's."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import torch

import learner.warmup
from learner.policy import ADAPTER, WEIGHTS, Policy, build_tiny, load_policy, save_policy, with_lora
from learner.policy_settings import LoraSettings, TinySettings
from learner.prompts import render_answer
from learner.warmup import WarmupError, WarmupSettings, answer_loss, encode_pair, is_answer, warm_up

COLOURS = ["red", "blue", "green", "black", "white", "pink"]
THINGS = ["cable", "toner", "mouse", "lamp"]
PAIRS = [(f"<query> {colour} {thing}", render_answer([thing, colour])) for colour in COLOURS for thing in THINGS]
SETTINGS = WarmupSettings(epochs_max=8, learning_rate=1e-2, batch_size=2, schedule="constant")


def new_policy() -> Policy:
    return build_tiny(
        [prompt for prompt, _ in PAIRS],
        TinySettings(vocabulary_size=320, hidden_size=32, layers=2, heads=2, feedforward_size=64, positions_max=64),
    )


def test_the_loss_is_the_models_own_on_the_answer_alone() -> None:
    policy = new_policy()
    rows = [encode_pair(policy, pair, tokens_max=64) for pair in PAIRS[:3]]
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [policy.pad_id] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    loss, count = answer_loss(policy.model, ids, mask, labels)
    expected = policy.model(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert (loss / count).item() == pytest.approx(expected.item(), rel=1e-5)
    assert int(count) == sum(label != -100 for row in rows for label in row["labels"])


def test_a_warmed_up_policy_answers_in_the_format_and_the_same_input_gives_the_same_weights(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    policy, report = warm_up(new_policy(), PAIRS, PAIRS[:4], SETTINGS, tmp_path / "a", lambda *step: seen.append(step))
    assert report.epochs[-1].valid > 0.7
    assert report.epochs[-1].dev_loss < report.epochs[0].dev_loss < math.log(320)
    assert seen[-1][1] <= seen[-1][2] and len(seen) == report.steps
    assert load_policy(tmp_path / "a").sha256 == policy.sha256
    assert not list((tmp_path / "a").glob("*.bin")) and not list((tmp_path / "a").glob("*.pt"))
    again, _ = warm_up(new_policy(), PAIRS, PAIRS[:4], SETTINGS, tmp_path / "b")
    assert again.sha256 == policy.sha256


def test_it_stops_when_the_dev_loss_rises_and_keeps_the_better_weights(tmp_path: Path) -> None:
    lies = [(prompt, render_answer([COLOURS[index % 5]])) for index, (prompt, _) in enumerate(PAIRS[:4])]
    settings = WarmupSettings(epochs_max=40, learning_rate=1e-2, batch_size=2, schedule="constant", entropy_min=0.0)
    _, report = warm_up(new_policy(), PAIRS[4:], lies, settings, tmp_path)
    assert report.stopped == "dev loss rose"
    assert report.best_epoch == len(report.epochs) - 1


def test_it_stops_once_enough_answers_are_valid(tmp_path: Path) -> None:
    settings = WarmupSettings(epochs_max=40, learning_rate=1e-2, batch_size=2, schedule="constant", valid_enough=0.5)
    _, report = warm_up(new_policy(), PAIRS, PAIRS[:4], settings, tmp_path)
    assert report.stopped == "enough answers are valid"
    assert report.epochs[-1].valid >= 0.5 > max([epoch.valid for epoch in report.epochs[:-1]], default=0.0)


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WarmupError, match="at least one"):
        warm_up(new_policy(), [], [], SETTINGS, tmp_path)


@pytest.mark.parametrize(
    "text", ["", "<answer>[1]</answer>", '<answer>["a"]', '<answer>[""]</answer>', "<answer>{}</answer>"]
)
def test_what_is_no_answer(text: str) -> None:
    assert not is_answer(text)


def test_a_warm_up_that_is_stopped_ends_after_its_step_and_saves_nothing(tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        warm_up(
            new_policy(),
            PAIRS,
            PAIRS[:4],
            SETTINGS,
            tmp_path / "stopped",
            lambda what, done, total: seen.append(done),
            stop=lambda: len(seen) == 2,
        )
    assert seen == [1, 2]
    assert not (tmp_path / "stopped").exists()


def test_a_warm_up_of_a_policy_with_adapters_trains_them_alone_and_leaves_no_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []

    def count() -> None:
        gc.collect()
        alive.append(sum(isinstance(each, torch.optim.Optimizer) for each in gc.get_objects()))

    monkeypatch.setattr(learner.warmup, "release_memory", count)
    gc.collect()
    before = sum(isinstance(each, torch.optim.Optimizer) for each in gc.get_objects())
    base = save_policy(new_policy(), tmp_path / "base")
    frozen = {name: each.detach().clone() for name, each in base.model.named_parameters()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = with_lora(base, LoraSettings(rank=8))
    warmed, report = warm_up(adapted, PAIRS, PAIRS[:4], SETTINGS, tmp_path / "taught")
    assert alive == [before]
    assert report.epochs[-1].dev_loss < report.epochs[0].dev_loss
    assert (tmp_path / "taught" / ADAPTER).is_file() and not (tmp_path / "taught" / WEIGHTS).exists()
    again = load_policy(tmp_path / "taught")
    for name, parameter in again.model.named_parameters():
        if "lora" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, frozen[plain]), name
    assert all(each.device.type == "cpu" for each in warmed.model.parameters())
    assert with_lora(warmed, LoraSettings(rank=8)) is warmed
