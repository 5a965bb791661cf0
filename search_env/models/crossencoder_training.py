"""Training of cross-encoders: from lessons and lists, adapting to summaries, and calibration on held-out pairs.

The first cross-encoder is made from MiniLM's layers and lessons. An adapted one continues from another version, on
texts that a policy writes: ReLSum's authors name this as the next step in their conclusion (arXiv:2508.08404).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from search_env.models.calibration import area_under_curve, calibration_error, platt, sigmoid, smoothed
from search_env.models.crossencoder import (
    Calibration,
    CrossEncoder,
    CrossEncoderError,
    CrossEncoderSettings,
)
from search_env.models.embeddings import Progress, model_directory

SORTED_BATCHES = 16  # Pairs of this many batches are sorted by length together.


class LabelledPair(msgspec.Struct, frozen=True, kw_only=True):
    """A query, a text about a product, and whether the product answers the query (0 or 1)."""

    query: str
    text: str
    label: int


def train_cross_encoder(
    lessons: Sequence[Sequence[LabelledPair]],
    pairs: Sequence[LabelledPair],
    settings: CrossEncoderSettings,
    folder: Path,
    report: Progress,
) -> CrossEncoder:
    """Return a cross-encoder trained on the pairs, not calibrated yet; `folder` is scratch for the initial model.

    lessons: stages of pairs whose label depends only on whether the text contains the query's words; they come first,
    in their order. Pairs of lists alone taught nothing, because their relevant titles contain no word of the query.
    The same pairs and settings give the same weights on one CPU thread.
    """
    model = _first(settings, folder)
    _learn(model, (*lessons, *[pairs] * settings.epochs), settings, settings.learning_rate, report)
    return CrossEncoder(model, settings)


def adapt_cross_encoder(
    cross_encoder: CrossEncoder, pairs: Sequence[LabelledPair], settings: CrossEncoderSettings, report: Progress
) -> CrossEncoder:
    """Return another cross-encoder, trained further on these pairs and not calibrated yet."""
    model = cross_encoder.copied_model()
    _learn(model, [pairs] * settings.epochs, settings, settings.adapting_rate, report)
    return CrossEncoder(model, settings)


def _learn(
    cross_encoder: Any,
    stages: Sequence[Sequence[LabelledPair]],
    settings: CrossEncoderSettings,
    learning_rate: float,
    report: Progress,
) -> None:
    """Train by binary cross-entropy, with one pass over each stage.

    Word embeddings stay fixed; otherwise the words of the training queries drift away from those of all others.
    """
    import torch

    model, tokenizer = cross_encoder.model, cross_encoder.tokenizer
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad = False
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # A few hundred steps do not overfit, and without dropout half of them suffice for matching.
    random = np.random.default_rng(settings.seed)
    batches = [batch for stage in stages for batch in _batches(stage, tokenizer, settings, random)]
    steps = len(batches)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    warmup = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(steps - step, 1) / steps)
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model.train()
        for step, batch in enumerate(batches, start=1):
            encoded = tokenizer(
                [pair.query for pair in batch],
                [pair.text for pair in batch],
                truncation="only_second",
                max_length=settings.tokens_max,
                padding=True,
                return_tensors="pt",
            )
            labels = torch.tensor([float(pair.label) for pair in batch])
            logits = model(**encoded).logits[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            report(f"cross-encoder: loss {loss.item():.3f}", step, steps)
    model.eval()


def _batches(
    stage: Sequence[LabelledPair], tokenizer: Any, settings: CrossEncoderSettings, random: np.random.Generator
) -> list[list[LabelledPair]]:
    """Return a stage's pairs in batches of similar lengths, in mixed order; without sorting, 2/5 would be padding."""
    mixed = [stage[place] for place in random.permutation(len(stage)).tolist()]
    size = settings.batch_size
    found: list[list[LabelledPair]] = []
    for start in range(0, len(mixed), size * SORTED_BATCHES):
        block = mixed[start : start + size * SORTED_BATCHES]
        lengths = [len(ids) for ids in tokenizer([p.query for p in block], [p.text for p in block])["input_ids"]]
        order = sorted(range(len(block)), key=lengths.__getitem__)
        found += [[block[place] for place in order[first : first + size]] for first in range(0, len(order), size)]
    return [found[place] for place in random.permutation(len(found)).tolist()]


def calibrate(cross_encoder: CrossEncoder, pairs: Sequence[LabelledPair], report: Progress) -> Calibration:
    """Return Platt's scaling, fitted on one half of these held-out pairs and measured on the other.

    Raises CrossEncoderError unless both halves contain both labels.
    """
    logits = cross_encoder.logits([(pair.query, pair.text) for pair in pairs], report=report)
    labels = np.array([pair.label for pair in pairs], dtype=np.float64)
    # Split by query, so that no query is both fitted and measured.
    fitted = np.array([hashlib.sha256(pair.query.encode()).digest()[0] % 2 == 0 for pair in pairs])
    if any(len(set(labels[half].tolist())) < 2 for half in (fitted, ~fitted)):
        raise CrossEncoderError(f"calibration: expected relevant and other pairs in both halves of {len(pairs)} pairs")
    scale, shift = platt(logits[fitted], smoothed(labels[fitted]))
    z, y = logits[~fitted], labels[~fitted]
    return Calibration(
        version="",
        scale=scale,
        shift=shift,
        pairs=len(pairs),
        ece_before=calibration_error(sigmoid(z), y),
        ece_after=calibration_error(sigmoid(scale * z + shift), y),
        auc=area_under_curve(z, y > 0.5),
    )


def _first(settings: CrossEncoderSettings, folder: Path) -> Any:
    """Return the cross-encoder before training: MiniLM's first layers and a new head."""
    import torch
    from sentence_transformers import CrossEncoder as Pretrained
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    source = model_directory()
    config = BertConfig.from_pretrained(source)
    config.num_hidden_layers, config.num_labels = settings.layers, 1
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = BertForSequenceClassification.from_pretrained(source, config=config, local_files_only=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    BertTokenizerFast.from_pretrained(source, local_files_only=True).save_pretrained(folder)
    return Pretrained(str(folder), num_labels=1, local_files_only=True, device="cpu")
