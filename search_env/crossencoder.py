"""A calibrated cross-encoder: the probability that a product's text answers a query, read together in one pass.

Made from the first layers of MiniLM's weights as a sentence-transformers `CrossEncoder`, trained here on judged lists,
and frozen: policies are rewarded with it and never change it. Its logits are mapped to probabilities by Platt's scaling
(Platt 1999: σ(a·z + b), a and b fitted on held-out pairs), because a reward −|r − l| compares them with labels 0 and 1.
A version is a folder named by the hash of its weights and its calibration, and never changes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.embeddings import Progress, model_directory
from streams.errors import SearchloopError

Floats = npt.NDArray[np.float64]
CALIBRATION_FILE, CURRENT_FILE = "calibration.json", "CURRENT"
ECE_BINS = 10
SORTED_BATCHES = 16  # Pairs of so many batches are sorted by length together.


class CrossEncoderError(SearchloopError, RuntimeError):
    """There is no cross-encoder, or it cannot be read."""


class CrossEncoderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the cross-encoder is made and used.

    layers: of MiniLM's six that are kept. tokens_max: of query and text together; longer texts are cut while learning,
    and `described_tokens_max` when a whole description is read. lessons: pairs that teach to match first, see
    `train_cross_encoder`. pairs_max, epochs: pairs of lists after them, and passes over these. batch_size,
    learning_rate: of AdamW. batch_tokens: padded tokens of one forward. kept_scores: (query, text) logits in memory.
    """

    layers: Annotated[int, msgspec.Meta(ge=1, le=6)] = 3
    tokens_max: Annotated[int, msgspec.Meta(ge=16, le=512)] = 112
    lessons: Annotated[int, msgspec.Meta(ge=0)] = 8_000
    pairs_max: Annotated[int, msgspec.Meta(ge=32)] = 20_000
    described_tokens_max: Annotated[int, msgspec.Meta(ge=16, le=512)] = 512
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=0.1)] = 2e-4
    batch_tokens: Annotated[int, msgspec.Meta(ge=64, le=65_536)] = 1_024
    kept_scores: Annotated[int, msgspec.Meta(ge=1)] = 400_000
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0


class LabelledPair(msgspec.Struct, frozen=True, kw_only=True):
    """A query, a text about a product, and whether the product answers the query (0 or 1)."""

    query: str
    text: str
    label: int


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Platt's scale and shift, and what the held-out pairs said of them.

    ece_before, ece_after: expected calibration error of σ(z) and of σ(scale·z + shift), ten bins of equal width (Guo et
    al. 2017, arXiv:1706.04599), on pairs that fitted nothing. auc: area under the ROC curve on the same pairs.
    """

    version: str
    scale: float
    shift: float
    pairs: int
    ece_before: float
    ece_after: float
    auc: float


class CrossEncoder:
    """Reads query and text together. Not thread-safe."""

    def __init__(self, model: Any, settings: CrossEncoderSettings, calibration: Calibration | None = None) -> None:
        """model: a `sentence_transformers.CrossEncoder` with one label."""
        self._model = model
        self._settings = settings
        self._kept: OrderedDict[tuple[str, str], float] = OrderedDict()
        self.calibration = calibration

    @property
    def name(self) -> str:
        """Return the version, which stands in every reward."""
        return f"cross-encoder-{self.calibration.version if self.calibration else 'uncalibrated'}"

    def logits(
        self, pairs: Sequence[tuple[str, str]], *, described: bool = False, report: Progress | None = None
    ) -> Floats:
        """Return [n] logits of (query, text) pairs, in their order; equal pairs are read once, and remembered.

        described: texts are whole descriptions, which are cut later.
        """
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._kept]
        tokens_max = self._settings.described_tokens_max if described else self._settings.tokens_max
        for pair, logit in zip(missing, self._read(missing, tokens_max, report), strict=True):
            self._kept[pair] = logit
        found = np.array([self._kept[pair] for pair in pairs], dtype=np.float64)
        while len(self._kept) > self._settings.kept_scores:
            self._kept.popitem(last=False)
        return found

    def probabilities(self, logits: Floats) -> Floats:
        """Return calibrated probabilities of relevance.

        Raises CrossEncoderError if this cross-encoder was not calibrated.
        """
        if self.calibration is None:
            raise CrossEncoderError("cross-encoder: expected a calibrated one, got one that was only trained")
        return sigmoid(self.calibration.scale * logits + self.calibration.shift)

    def _read(self, pairs: list[tuple[str, str]], tokens_max: int, report: Progress | None) -> list[float]:
        import torch

        if not pairs:
            return []
        tokenizer, model = self._model.tokenizer, self._model.model
        model.eval()
        encoded = tokenizer(
            [q for q, _ in pairs], [t for _, t in pairs], truncation="only_second", max_length=tokens_max
        )
        ids = encoded["input_ids"]
        order = sorted(range(len(pairs)), key=lambda place: len(ids[place]), reverse=True)
        logits = [0.0] * len(pairs)
        done = 0
        while done < len(order):
            rows = max(self._settings.batch_tokens // len(ids[order[done]]), 1)
            batch = order[done : done + rows]
            padded = tokenizer.pad(
                {name: [encoded[name][place] for place in batch] for name in encoded}, return_tensors="pt"
            )
            with torch.inference_mode():
                found = model(**padded).logits[:, 0].tolist()
            for place, logit in zip(batch, found, strict=True):
                logits[place] = logit
            done += len(batch)
            if report is not None:
                report("reading query and text together", done, len(order))
        return logits


def train_cross_encoder(
    lessons: Sequence[Sequence[LabelledPair]],
    pairs: Sequence[LabelledPair],
    settings: CrossEncoderSettings,
    folder: Path,
    report: Progress,
) -> CrossEncoder:
    """Return a cross-encoder trained on the pairs, not calibrated yet; `folder` is scratch, and holds its beginning.

    lessons: stages of pairs in which the text holds the query's words or not, and nothing else decides; read first, in
    their order. From pairs of lists alone, where relevant titles hold nothing of the query, nothing was learned.
    Binary cross-entropy; word embeddings stay as they are, or the words of the training queries drift away from those
    of all others. The same pairs and settings give the same weights on one CPU thread.
    """
    import torch

    cross_encoder = _first(settings, folder)
    model, tokenizer = cross_encoder.model, cross_encoder.tokenizer
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad = False
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # A few hundred steps do not overfit, and matching is learned in half of them.
    random = np.random.default_rng(settings.seed)
    batches = [
        batch
        for stage in (*lessons, *[pairs] * settings.epochs)
        for batch in _batches(stage, tokenizer, settings, random)
    ]
    steps = len(batches)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.learning_rate)
    warmup = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(steps - step, 1) / steps)
    )
    step = 0
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model.train()
        for batch in batches:
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
            step += 1
            report(f"cross-encoder: loss {loss.item():.3f}", step, steps)
    model.eval()
    return CrossEncoder(cross_encoder, settings)


def _batches(
    stage: Sequence[LabelledPair], tokenizer: Any, settings: CrossEncoderSettings, random: np.random.Generator
) -> list[list[LabelledPair]]:
    """Return a stage's pairs in batches of like lengths, in mixed order: two fifths of a mixed batch are padding."""
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
    """Return Platt's scaling fitted on one half of these held-out pairs and measured on the other.

    Raises CrossEncoderError unless both labels are in both halves.
    """
    logits = cross_encoder.logits([(pair.query, pair.text) for pair in pairs], report=report)
    labels = np.array([pair.label for pair in pairs], dtype=np.float64)
    # By query, so that no query fits what it measures.
    fitted = np.array([hashlib.sha256(pair.query.encode()).digest()[0] % 2 == 0 for pair in pairs])
    if any(len(set(labels[half].tolist())) < 2 for half in (fitted, ~fitted)):
        raise CrossEncoderError(f"calibration: expected relevant and other pairs in both halves of {len(pairs)} pairs")
    scale, shift = platt(logits[fitted], labels[fitted])
    z, y = logits[~fitted], labels[~fitted]
    return Calibration(
        version="",
        scale=scale,
        shift=shift,
        pairs=len(pairs),
        ece_before=calibration_error(sigmoid(z), y),
        ece_after=calibration_error(sigmoid(scale * z + shift), y),
        auc=area_under_curve(z, y),
    )


def save_cross_encoder(cross_encoder: CrossEncoder, calibration: Calibration, root: Path) -> Calibration:
    """Write a version below `root`, make it the current one, and return the calibration with the version's name."""
    aside = root / ".writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    cross_encoder._model.save_pretrained(str(aside))
    digest = hashlib.sha256((aside / "model.safetensors").read_bytes())
    digest.update(msgspec.json.encode([calibration.scale, calibration.shift]))
    named = msgspec.structs.replace(calibration, version=digest.hexdigest()[:12])
    (aside / CALIBRATION_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(named)))
    target = root / named.version
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    pointer = root / f".{CURRENT_FILE}"
    pointer.write_text(named.version + "\n")
    pointer.rename(root / CURRENT_FILE)
    return named


def load_cross_encoder(root: Path, settings: CrossEncoderSettings, version: str | None = None) -> CrossEncoder:
    """Return a version below `root`, the current one by default.

    Raises CrossEncoderError if it is not there or damaged.
    """
    from sentence_transformers import CrossEncoder as Pretrained
    from transformers import logging

    logging.disable_progress_bar()
    try:
        folder = root / (version or (root / CURRENT_FILE).read_text().strip())
        calibration = msgspec.json.decode((folder / CALIBRATION_FILE).read_bytes(), type=Calibration)
        model = Pretrained(str(folder), local_files_only=True, device="cpu")
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise CrossEncoderError(
            f"no cross-encoder at {root} ({error}). Run: searchloop train --recipe relsum"
        ) from error
    return CrossEncoder(model, settings, calibration)


def platt(logits: Floats, labels: Floats, *, iterations: int = 50) -> tuple[float, float]:
    """Return (a, b) that maximise the likelihood of labels under σ(a·z + b), by Newton's method.

    With Platt's targets (n₊+1)/(n₊+2) and 1/(n₋+2) in place of 1 and 0, so that separable logits have a finite answer.
    """
    positives = float(labels.sum())
    negatives = len(labels) - positives
    target = np.where(labels > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    inputs = np.stack([logits, np.ones_like(logits)], axis=1)  # [n, 2]
    weights = np.array([1.0, 0.0])
    for _ in range(iterations):
        p = sigmoid(inputs @ weights)
        gradient = inputs.T @ (p - target)
        hessian = (inputs * (p * (1 - p))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step
        if float(np.abs(step).max()) < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def calibration_error(probabilities: Floats, labels: Floats, *, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error: |mean probability − share of relevant| over bins, weighed by size."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    error = 0.0
    for each in range(bins):
        inside = place == each
        if inside.any():
            error += float(inside.mean()) * abs(float(probabilities[inside].mean() - labels[inside].mean()))
    return error


def area_under_curve(scores: Floats, labels: Floats) -> float:
    """Return how often a relevant pair outscores another; ties count half (Mann and Whitney)."""
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    return float((ranks[labels > 0.5].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def sigmoid(values: Floats) -> Floats:
    """Return 1 / (1 + e^−x) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), dtype=np.float64)


def _first(settings: CrossEncoderSettings, folder: Path) -> Any:
    """Return the cross-encoder before training: MiniLM's first layers, and a head of its own."""
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
