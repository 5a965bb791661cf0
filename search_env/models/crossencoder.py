"""A calibrated cross-encoder: it reads query and product text together and gives the probability of relevance.

It is a sentence-transformers `CrossEncoder` made from the first layers of MiniLM's weights, trained on judged lists
(`search_env.models.crossencoder_training`), and frozen: one version rewards a policy and never changes. Platt scaling
maps its logits to probabilities (Platt 1999: σ(a·z + b), with a and b fitted on held-out pairs), because a reward
−|r − l| compares them with labels 0 and 1. A version is a folder named by the hash of its weights and its calibration,
and never changes.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.catalogue.corpora import write_whole
from search_env.models.calibration import sigmoid
from search_env.models.embeddings import Progress
from streams.descriptions import describe
from streams.devices import choose_device
from streams.errors import SearchloopError
from streams.names import is_name
from streams.whole_file import folder_aside, put_folder

Floats = npt.NDArray[np.float64]
CALIBRATION_FILE, CURRENT_FILE = "calibration.json", "CURRENT"


class CrossEncoderError(SearchloopError, RuntimeError):
    """There is no cross-encoder, or it cannot be read."""


class CrossEncoderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for making and using the cross-encoder."""

    version: Annotated[
        str,
        describe(
            "Version of the cross-encoder that reads. Empty: the version trained on the index's lists, which is "
            "made if it is missing."
        ),
    ] = ""
    layers: Annotated[
        int,
        msgspec.Meta(ge=1, le=6),
        describe("Number of MiniLM's six layers that are kept. Fewer are faster and less exact."),
    ] = 3
    tokens_max: Annotated[
        int,
        msgspec.Meta(ge=16, le=512),
        describe("Tokens of query and text together, in training and for summaries. Longer texts are cut."),
    ] = 112
    lessons: Annotated[
        int, msgspec.Meta(ge=0), describe("Number of pairs that first teach to match query and text. 0 skips them.")
    ] = 8_000
    pairs_max: Annotated[
        int, msgspec.Meta(ge=32), describe("Largest number of pairs from lists that follow the lessons.")
    ] = 20_000
    described_tokens_max: Annotated[
        int,
        msgspec.Meta(ge=16, le=512),
        describe("Tokens of query and text together if the text is a whole description. Longer texts are cut."),
    ] = 512
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100), describe("Number of passes over the pairs of lists.")] = 1
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=1024), describe("Pairs per optimizer step.")] = 16
    learning_rate: Annotated[
        float, msgspec.Meta(gt=0, le=0.1), describe("AdamW's learning rate for a new version.")
    ] = 2e-4
    adapting_rate: Annotated[
        float,
        msgspec.Meta(gt=0, le=0.1),
        describe("AdamW's learning rate for adapting a version to summaries, with as many pairs and passes."),
    ] = 1e-4
    batch_tokens: Annotated[
        int, msgspec.Meta(ge=64, le=65_536), describe("Tokens of one forward pass, padding included.")
    ] = 1_024
    kept_scores: Annotated[
        int, msgspec.Meta(ge=1), describe("Logits of (query, text) pairs that are kept in memory.")
    ] = 400_000
    # On icecat, .1 to .5 were alike for human queries, and attribute intents lost from .3 on.
    title_weight: Annotated[
        float,
        msgspec.Meta(ge=0, lt=1),
        describe(
            "Weight of the title alone when products are ranked. 0 never reads the title alone, which saves time."
        ),
    ] = 0.2
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the first weights and of the order of the pairs.")] = 0


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Platt's scale and shift, and their quality on held-out pairs.

    ece_before, ece_after: expected calibration error of σ(z) and of σ(scale·z + shift), ten bins of equal width (Guo et
    al. 2017, arXiv:1706.04599), on pairs that were not used in fitting. auc: area under the ROC curve on the same
    pairs. parent: the version from which this one was adapted; "" if it was made from MiniLM.
    """

    version: str
    parent: str = ""
    scale: float
    shift: float
    pairs: int
    ece_before: float
    ece_after: float
    auc: float


class ReadTexts(NamedTuple):
    """A query, and the product texts that are read for it: title, and summary ("" if there is none)."""

    query: str
    title: str
    summary: str


def product_text(title: str, summary: str) -> str:
    """Return the text of a product for a cross-encoder: [t; s], or the title if there is no summary."""
    return f"{title}; {summary}" if summary else title


class CrossEncoder:
    """Scores a query and a text together. Not thread-safe."""

    def __init__(self, model: Any, settings: CrossEncoderSettings, calibration: Calibration | None = None) -> None:
        """model: a `sentence_transformers.CrossEncoder` with one label."""
        self._model = model
        self._settings = settings
        self._kept: OrderedDict[tuple[str, str], float] = OrderedDict()
        self.calibration = calibration

    @property
    def version(self) -> str:
        """Return the version's name; "uncalibrated" before it has one."""
        return self.calibration.version if self.calibration else "uncalibrated"

    @property
    def name(self) -> str:
        """Return the name that every reward records."""
        return f"cross-encoder-{self.version}"

    def logits(
        self, pairs: Sequence[tuple[str, str]], *, described: bool = False, report: Progress | None = None
    ) -> Floats:
        """Return [n] logits of (query, text) pairs, in their order; equal pairs are read once and cached.

        described: True if the texts are whole descriptions, which have a higher length limit.
        """
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._kept]
        tokens_max = self._settings.described_tokens_max if described else self._settings.tokens_max
        for pair, logit in zip(missing, self._read(missing, tokens_max, report), strict=True):
            self._kept[pair] = logit
        found = np.array([self._kept[pair] for pair in pairs], dtype=np.float64)
        while len(self._kept) > self._settings.kept_scores:
            self._kept.popitem(last=False)
        return found

    def relevance(
        self, readings: Sequence[ReadTexts], *, described: bool = False, report: Progress | None = None
    ) -> Floats:
        """Return [n] calibrated probabilities that rank products: σ(a·((1−w)·z(q, [t; s]) + w·z(q, t)) + b).

        w is `title_weight`; described: as in `logits`. ReLSum ranks by r(q, [t; s]) alone (w = 0). We differ, because
        any summary distracts from a query that the title answers. On icecat, nDCG@5 of human queries was .76 with w = 0
        and .81 with w = .2, above titles alone (.80); that of attribute intents stayed the same.
        """
        titled = [(reading.query, reading.title) for reading in readings]
        whole = [(reading.query, product_text(reading.title, reading.summary)) for reading in readings]
        logits, weight = self.logits(whole, described=described, report=report), self._settings.title_weight
        if weight:
            logits = (1 - weight) * logits + weight * self.logits(titled, report=report)
        return self.probabilities(logits)

    def copied_model(self) -> Any:
        """Return a copy of the `sentence_transformers.CrossEncoder` for further training."""
        return copy.deepcopy(self._model)

    def probabilities(self, logits: Floats) -> Floats:
        """Return calibrated probabilities of relevance.

        Raises CrossEncoderError if this cross-encoder was not calibrated.
        """
        if self.calibration is None:
            raise CrossEncoderError("cross-encoder: expected a calibrated model, got one that is only trained")
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


def save_cross_encoder(
    cross_encoder: CrossEncoder, calibration: Calibration, root: Path, *, current: bool = True
) -> Calibration:
    """Write a version below `root`, and return the calibration with the version's name.

    current: True makes it the version for readers that name none.
    """
    with folder_aside(root, "cross-encoder") as aside:
        cross_encoder._model.save_pretrained(str(aside))
        digest = hashlib.sha256((aside / "model.safetensors").read_bytes())
        digest.update(msgspec.json.encode([calibration.scale, calibration.shift]))
        named = msgspec.structs.replace(calibration, version=digest.hexdigest()[:12])
        (aside / CALIBRATION_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(named)))
        put_folder(aside, root / named.version, replace=True)
    if current:
        write_whole(root / CURRENT_FILE, f"{named.version}\n")
    return named


def current_version(root: Path) -> str:
    """Return the version for readers that name none.

    Raises CrossEncoderError if there is none, or if the file does not hold a version's name.
    """
    try:
        version = (root / CURRENT_FILE).read_text(errors="replace").strip()
    except OSError as error:
        raise CrossEncoderError(
            f"no cross-encoder at {root} ({error}). Run: searchloop train --recipe relsum"
        ) from error
    if not is_name(version):
        raise CrossEncoderError(
            f"{root / CURRENT_FILE}: expected a version's name, got {version[:80]!r}. Delete it, and `searchloop train "
            "--recipe relsum` makes one"
        )
    return version


def load_cross_encoder(root: Path, settings: CrossEncoderSettings, *, device: str = "") -> CrossEncoder:
    """Return the version below `root` that the settings name, or the current one.

    device: "" chooses a GPU if there is one. Raises CrossEncoderError if it is missing or damaged.
    """
    from sentence_transformers import CrossEncoder as Pretrained
    from transformers import logging

    logging.disable_progress_bar()
    if settings.version and not (is_name(settings.version) and (root / settings.version).is_dir()):
        known = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{CALIBRATION_FILE}"))) or "none"
        raise CrossEncoderError(
            f"cross_encoder.version: expected one of {known} below {root}, got {settings.version!r}"
        )
    folder = root / (settings.version or current_version(root))
    try:
        calibration = msgspec.json.decode((folder / CALIBRATION_FILE).read_bytes(), type=Calibration)
        model = Pretrained(str(folder), local_files_only=True, device=device or choose_device())
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise CrossEncoderError(
            f"{folder}: expected a cross-encoder and its calibration, got: {error}. Delete {root / CURRENT_FILE}, and "
            "`searchloop train --recipe relsum` makes one"
        ) from error
    return CrossEncoder(model, settings, calibration)
