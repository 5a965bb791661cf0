"""Relevance models: each scores how relevant a document is to a query, in [0, 1].

- `GbdtRelevance`: gradient-boosted trees over features of query and document (see `features` and `training`).
- `CosineRelevance`: the cosine of MiniLM embeddings, for catalogues with neither labels nor attributes.
- `NoisyRelevance`: another model made worse on purpose, to measure how much a loop depends on its relevance model.

A model always gives the same (query, document) the same score: its name contains the hash of its inputs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.catalogue.term_matrices import Catalogue
from search_env.models.calibration import sigmoid
from search_env.models.embeddings import Embedder
from search_env.models.features import FEATURES, FEATURES_VERSION, FeatureMaker
from streams.descriptions import describe
from streams.errors import SearchloopError
from streams.whole_file import write_file

if TYPE_CHECKING:
    import lightgbm  # Imports scikit-learn, which takes two seconds: only where trees are read or grown.

Floats = npt.NDArray[np.float32]
Pairs = Sequence[tuple[str, Sequence[str]]]

CACHE_BYTES_MAX = 64 * 1024 * 1024


class RelevanceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the model that scores documents."""

    model: Annotated[
        Literal["auto", "gbdt", "cosine"],
        describe(
            'Kind of relevance model: "gbdt" (trees), "cosine" (MiniLM embeddings), or "auto": trees if there '
            "are judgments or attributes, otherwise the cosine."
        ),
    ] = "auto"
    noise_std: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe(
            "Standard deviation of noise that is added to every score. It measures how much the loop depends on "
            "its relevance model."
        ),
    ] = 0.0


class RelevanceError(SearchloopError, RuntimeError):
    """A relevance model is missing or damaged, or was asked about an unknown document."""


class RelevanceModel(Protocol):
    """The interface that the search environment needs."""

    name: str

    def score(self, query: str, document_ids: Sequence[str]) -> Floats:
        """Return [n] relevance in [0, 1] of these documents to one query."""

    def score_many(self, pairs: Pairs) -> list[Floats]:
        """Return the relevance for several queries at once: [n_i] for the i-th."""


class RelevanceManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The description of a trained model, written beside it and checked when it is loaded.

    features, features_version: the model's columns in order, and the version of their computation.
    scale, offset: Platt's calibration, sigmoid(scale · raw + offset).
    corpus_sha256: the corpus of its training. cosine: whether the last feature was filled.
    queries, pairs: the size of its training data. report: measures on queries held out of training.
    """

    model_sha256: str
    features: tuple[str, ...]
    features_version: int
    scale: float
    offset: float
    cosine: bool
    corpus_sha256: str
    queries: int
    pairs: int
    report: dict[str, float]


class ScoreCache:
    """Scores by (query, row), bounded in bytes; the least recently used query is dropped first."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.queries_max = max(CACHE_BYTES_MAX // (4 * max(rows, 1)), 16)
        self._scores: OrderedDict[str, Floats] = OrderedDict()

    def of(self, query: str) -> Floats:
        """Return [D] scores of a query, NaN for rows that were never scored; the caller fills them in."""
        scores = self._scores.get(query)
        if scores is None:
            scores = self._scores[query] = np.full(self.rows, np.nan, dtype=np.float32)
            if len(self._scores) > self.queries_max:
                self._scores.popitem(last=False)
        else:
            self._scores.move_to_end(query)
        return scores


class GbdtRelevance:
    """Gradient-boosted trees (LightGBM) with a calibrated sigmoid; deterministic, in one thread."""

    def __init__(
        self,
        catalogue: Catalogue,
        booster: lightgbm.Booster,
        manifest: RelevanceManifest,
        *,
        embeddings: Floats | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        """embeddings: [D, 384] of the catalogue; with the embedder for queries, needed if the model uses the cosine."""
        if manifest.cosine and (embeddings is None or embedder is None):
            raise RelevanceError(
                "this relevance model uses the MiniLM cosine; give it embeddings, or train one without"
            )
        self.name = f"gbdt-{manifest.model_sha256[:12]}"
        self.manifest = manifest
        self._catalogue = catalogue
        self._booster = booster
        self._maker = FeatureMaker(catalogue)
        self._embeddings = embeddings if manifest.cosine else None
        self._embedder = embedder
        self._cache = ScoreCache(len(catalogue))

    def on(self, catalogue: Catalogue, embeddings: Floats | None) -> GbdtRelevance:
        """Return this model for the documents of another catalogue; embeddings as above."""
        return GbdtRelevance(catalogue, self._booster, self.manifest, embeddings=embeddings, embedder=self._embedder)

    def score(self, query: str, document_ids: Sequence[str]) -> Floats:
        """Return [n] relevance in [0, 1]."""
        return self.score_many([(query, document_ids)])[0]

    def score_many(self, pairs: Pairs) -> list[Floats]:
        """Return relevance for several queries; the trees run once over all pairs that are not cached."""
        rows = [_rows(self._catalogue, ids) for _, ids in pairs]
        known = [self._cache.of(query) for query, _ in pairs]
        missing = [np.unique(row[np.isnan(scores[row])]) for row, scores in zip(rows, known, strict=True)]
        wanted = [position for position, found in enumerate(missing) if len(found)]
        if wanted:
            queries = [pairs[position][0] for position in wanted]
            vectors = None
            if self._embeddings is not None and self._embedder is not None:
                vectors = self._embedder.embed_queries(queries)
            blocks = []
            for number, position in enumerate(wanted):
                cosine = None
                if vectors is not None and self._embeddings is not None:
                    cosine = self._embeddings[missing[position]] @ vectors[number]
                blocks.append(self._maker.features(queries[number], missing[position], cosine))
            scores = self._predict(np.concatenate(blocks))
            start = 0
            for number, position in enumerate(wanted):
                end = start + len(blocks[number])
                known[position][missing[position]] = scores[start:end]
                start = end
        return [scores[row] for row, scores in zip(rows, known, strict=True)]

    def _predict(self, features: Floats) -> Floats:
        raw = self._booster.predict(features, raw_score=True, num_threads=1)
        calibrated = sigmoid(self.manifest.scale * np.asarray(raw, dtype=np.float64) + self.manifest.offset)
        return calibrated.astype(np.float32)


class CosineRelevance:
    """The cosine of MiniLM embeddings, mapped linearly from [low, high] to [0, 1].

    The cosine of unrelated texts is about 0, and that of a good match rarely above 0.8. With the whole range [−1, 1],
    every document would lie between 0.5 and 0.9, and relative gains would vanish.
    """

    def __init__(
        self, catalogue: Catalogue, embeddings: Floats, embedder: Embedder, *, low: float = 0.0, high: float = 0.8
    ) -> None:
        digest = hashlib.sha256(np.ascontiguousarray(embeddings, dtype=np.float16).tobytes()).hexdigest()
        self.name = f"cosine-{digest[:12]}"
        self._catalogue = catalogue
        self._embeddings = embeddings
        self._embedder = embedder
        self._low, self._high = low, high

    def on(self, catalogue: Catalogue, embeddings: Floats) -> CosineRelevance:
        """Return this model for the documents of another catalogue, under this name. embeddings: [D, 384] of them."""
        other = CosineRelevance(catalogue, embeddings, self._embedder, low=self._low, high=self._high)
        other.name = self.name
        return other

    def score(self, query: str, document_ids: Sequence[str]) -> Floats:
        """Return [n] relevance in [0, 1]."""
        return self.score_many([(query, document_ids)])[0]

    def score_many(self, pairs: Pairs) -> list[Floats]:
        """Return relevance for several queries; new queries are embedded in one forward."""
        vectors = self._embedder.embed_queries([query for query, _ in pairs])
        scores = []
        for vector, (_, ids) in zip(vectors, pairs, strict=True):
            cosine = self._embeddings[_rows(self._catalogue, ids)] @ vector
            scores.append(np.clip((cosine - self._low) / (self._high - self._low), 0.0, 1.0).astype(np.float32))
        return scores


class NoisyRelevance:
    """Another model with Gaussian noise on every score; a (query, document) pair always gets the same noise."""

    def __init__(self, model: RelevanceModel, *, noise_std: float, seed: int = 0) -> None:
        """noise_std: standard deviation of the noise, in units of relevance, before clipping to [0, 1]."""
        self.name = f"noisy({noise_std:g},{seed})-{model.name}"
        self._model = model
        self._noise_std = noise_std
        self._seed = seed

    def score(self, query: str, document_ids: Sequence[str]) -> Floats:
        """Return [n] relevance in [0, 1]."""
        return self.score_many([(query, document_ids)])[0]

    def score_many(self, pairs: Pairs) -> list[Floats]:
        """Return the other model's relevance with noise."""
        return [
            np.clip(scores + self._noise_std * self._noise(query, ids), 0.0, 1.0).astype(np.float32)
            for scores, (query, ids) in zip(self._model.score_many(pairs), pairs, strict=True)
        ]

    def _noise(self, query: str, ids: Sequence[str]) -> Floats:
        base = hashlib.blake2b(f"{self._seed}\t{query}\t".encode(), digest_size=16)
        digests = bytearray()
        for document_id in ids:
            of_pair = base.copy()
            of_pair.update(document_id.encode())
            digests += of_pair.digest()
        uniform = (np.frombuffer(bytes(digests), dtype=np.uint64).reshape(-1, 2) >> np.uint64(11)) / 2.0**53
        # Box and Muller (1958): two uniform numbers give one number of a standard normal distribution.
        return np.asarray(np.sqrt(-2 * np.log(1 - uniform[:, 0])) * np.cos(2 * np.pi * uniform[:, 1]), dtype=np.float32)


def save_gbdt(directory: Path, booster: lightgbm.Booster, manifest: RelevanceManifest) -> None:
    """Write `model.txt` (LightGBM's own text format, no pickle) and `manifest.json`."""
    write_file(directory / "model.txt", model_text(booster).encode())
    write_file(directory / "manifest.json", msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")


def load_gbdt(
    directory: Path, catalogue: Catalogue, *, embeddings: Floats | None = None, embedder: Embedder | None = None
) -> GbdtRelevance:
    """Return the model saved in a directory.

    Raises RelevanceError if it is missing or damaged, or if its features differ from those that this code computes.
    """
    try:
        manifest = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=RelevanceManifest)
        text = (directory / "model.txt").read_text()
    except FileNotFoundError as error:
        raise RelevanceError(f"{error.filename}: no relevance model there. Run: searchloop index CORPUS") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RelevanceError(f"{directory}: damaged relevance model ({error}). Run: searchloop index CORPUS") from error
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != manifest.model_sha256:
        raise RelevanceError(
            f"{directory / 'model.txt'}: expected the model {manifest.model_sha256[:12]} of its manifest, got "
            f"{digest[:12]}. Run: searchloop index CORPUS"
        )
    if (manifest.features, manifest.features_version) != (FEATURES, FEATURES_VERSION):
        raise RelevanceError(
            f"{directory}: the model was trained on features of another version of searchloop. "
            f"Run: searchloop index CORPUS"
        )
    import lightgbm

    booster = lightgbm.Booster(model_str=text)
    return GbdtRelevance(catalogue, booster, manifest, embeddings=embeddings, embedder=embedder)


def model_text(booster: lightgbm.Booster) -> str:
    """Return a model in LightGBM's text format."""
    text: str = booster.model_to_string()
    return text


def _rows(catalogue: Catalogue, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    row_of = catalogue.row_of
    try:
        return np.fromiter((row_of[document_id] for document_id in ids), dtype=np.int64, count=len(ids))
    except KeyError as error:
        raise RelevanceError(
            f"document {error.args[0]!r} was retrieved, but is not in the loaded corpus: index and files differ. "
            f"Run: searchloop index CORPUS"
        ) from None
