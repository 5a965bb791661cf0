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
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.catalogue.term_matrices import Catalogue
from search_env.models.calibration import sigmoid
from search_env.models.embeddings import Embedder, Vectors
from search_env.models.features import FeatureMaker
from search_env.models.judged_forest import FoldManifest, JudgedForest
from search_env.models.relevance_sources import SourceSettings
from streams.descriptions import describe
from streams.errors import SearchloopError

if TYPE_CHECKING:
    import lightgbm  # Imports scikit-learn, which takes two seconds: only where trees are read or grown.

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Pairs = Sequence[tuple[str, Sequence[str]]]

CACHE_BYTES_MAX = 64 * 1024 * 1024


Gate = Literal["point", "interval", "off"]


class RelevanceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the model that scores documents."""

    model: Annotated[
        Literal["auto", "gbdt", "cosine"],
        describe(
            'Kind of relevance model: "gbdt" (trees), "cosine" (MiniLM embeddings), or "auto": trees if there '
            "are judgments or attributes, otherwise the cosine."
        ),
    ] = "auto"
    version: Annotated[
        str,
        msgspec.Meta(max_length=64),
        describe(
            'Version of the trees: its name, such as "gbdt-0123456789ab", or the label that `searchloop relevance '
            '--label` gave it. "" takes the newest one. A run keeps the version that it began with.'
        ),
    ] = ""
    noise_std: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe(
            "Standard deviation of noise that is added to every score. It measures how much the loop depends on "
            "its relevance model."
        ),
    ] = 0.0
    gate: Annotated[
        Gate,
        describe(
            "Rule that keeps a kind of query out of training if the model's order is worse than the raw order: "
            '"point" (its measure is below), "interval" (the whole interval is below 0), or "off".'
        ),
    ] = "point"
    sources: SourceSettings = SourceSettings()


class RelevanceError(SearchloopError, RuntimeError):
    """A relevance model is missing or damaged, or was asked about an unknown document."""


class RelevanceModel(Protocol):
    """The interface that the search environment needs."""

    name: str

    def score(self, query: str, document_ids: Sequence[str]) -> Floats:
        """Return [n] relevance in [0, 1] of these documents to one query."""

    def score_many(self, pairs: Pairs) -> list[Floats]:
        """Return the relevance for several queries at once: [n_i] for the i-th."""


class ClickFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The clicks that a model was fitted on, and how.

    run, window: the log, and of it, by "topic/partition", the first offset and the one behind the last.
    model, theta, estimated, pairs_moved: of the bias of positions (see `click_labels`).
    clients_share: share of clients that was used. clients: their number. nameless: lists without a client.
    lists, bots, clicks, queries, pairs: counts; bots are not among the lists, and queries and pairs have a label.
    pair_max, lists_max: the bounds of one client. bounded: lists that count less for them. weight: what all lists count
    together. largest_share: of one client, without and with the bounds.
    """

    run: str
    window: dict[str, tuple[int, int]]
    model: str
    theta: tuple[float, ...]
    estimated: bool
    pairs_moved: int
    clients_share: float
    clients: int
    nameless: int
    lists: int
    bots: int
    clicks: int
    queries: int
    pairs: int
    pair_max: float
    lists_max: float
    bounded: int
    weight: float
    largest_share: tuple[float, float]


class RelevanceManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The description of a trained model, written beside it and checked when it is loaded.

    features, features_version: the model's columns in order, and the version of their computation.
    scale, offset: Platt's calibration, sigmoid(scale · raw + offset).
    corpus_sha256: the corpus of its training. cosine: whether the last feature was filled.
    queries, pairs: the size of its training data. report: measures on queries held out of training.
    folds: the forest of judgments and clicks, if there is one. fold_seed: of the assignment of queries to folds.
    clicks: what the clicks were; None for a model without.
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
    folds: tuple[FoldManifest, ...] = ()
    fold_seed: int = 0
    clicks: ClickFit | None = None

    @property
    def name(self) -> str:
        """Return the model's name: a hash of all its trees; with clicks, also of their description and calibration."""
        digest = self.model_sha256
        if self.clicks is not None:
            digest = hashlib.sha256(msgspec.json.encode([digest, self.scale, self.offset, self.clicks])).hexdigest()
        if self.folds:
            digest = hashlib.sha256(
                "".join([digest, str(self.fold_seed), *(fold.sha256 for fold in self.folds)]).encode()
            ).hexdigest()
        return f"gbdt-{digest[:12]}"


class GrownModel(NamedTuple):
    """A trained model: the base trees, their manifest, and the forest of judgments and clicks."""

    booster: lightgbm.Booster
    manifest: RelevanceManifest
    forest: JudgedForest | None = None


class ScoreCache:
    """Scores by (query, row), bounded in bytes; the least recently used query is dropped first."""

    def __init__(self, *, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._entries_max = bytes_max // 12
        self._entries = 0
        self._kept: OrderedDict[str, tuple[Rows, Floats]] = OrderedDict()

    def of(self, query: str, rows: Rows) -> Floats:
        """Return [n] scores of a query and these rows, NaN for pairs that are not kept."""
        scores = np.full(len(rows), np.nan, dtype=np.float32)
        kept = self._kept.get(query)
        if kept is not None and len(kept[0]):
            self._kept.move_to_end(query)
            places = np.minimum(np.searchsorted(kept[0], rows), len(kept[0]) - 1)
            known = kept[0][places] == rows
            scores[known] = kept[1][places[known]]
        return scores

    def add(self, query: str, rows: Rows, scores: Floats) -> None:
        """Keep scores of a query. rows: distinct, and none of them is kept for this query."""
        before = self._kept.pop(query, None)
        if before is not None:
            rows, scores = np.concatenate([before[0], rows]), np.concatenate([before[1], scores])
            order = np.argsort(rows, kind="stable")
            rows, scores = rows[order], scores[order]
        self._kept[query] = (rows, scores)
        self._entries += len(rows) - (len(before[0]) if before is not None else 0)
        while self._entries > self._entries_max:
            self._entries -= len(self._kept.popitem(last=False)[1][0])


class GbdtRelevance:
    """Gradient-boosted trees (LightGBM) with a calibrated sigmoid; deterministic, in one thread."""

    def __init__(
        self,
        catalogue: Catalogue,
        grown: GrownModel,
        *,
        embeddings: Vectors | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        """embeddings: [D, 384] of the catalogue; with the embedder for queries, needed if the model uses the cosine."""
        booster, manifest, forest = grown
        if manifest.cosine and (embeddings is None or embedder is None):
            raise RelevanceError(
                "this relevance model uses the MiniLM cosine; give it embeddings, or train one without"
            )
        self.name = manifest.name
        self.manifest = manifest
        self._grown = grown
        self._catalogue = catalogue
        self._booster = booster
        self._forest = forest
        self._maker = FeatureMaker(catalogue)
        self._embeddings = embeddings if manifest.cosine else None
        self._embedder = embedder
        self._cache = ScoreCache()

    def on(self, catalogue: Catalogue, embeddings: Vectors | None) -> GbdtRelevance:
        """Return this model for the documents of another catalogue; embeddings as above."""
        return GbdtRelevance(catalogue, self._grown, embeddings=embeddings, embedder=self._embedder)

    def score(self, query: str, document_ids: Sequence[str]) -> Floats:
        """Return [n] relevance in [0, 1]."""
        return self.score_many([(query, document_ids)])[0]

    def score_many(self, pairs: Pairs) -> list[Floats]:
        """Return relevance for several queries; the trees run once over all pairs that are not cached."""
        rows = [_rows(self._catalogue, ids) for _, ids in pairs]
        known = [self._cache.of(query, row) for (query, _), row in zip(pairs, rows, strict=True)]
        missing = [np.unique(row[np.isnan(scores)]) for row, scores in zip(rows, known, strict=True)]
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
            scores = self._predict(queries, blocks)
            start = 0
            for number, position in enumerate(wanted):
                end = start + len(blocks[number])
                made = scores[start:end]
                unknown = np.isnan(known[position])
                known[position][unknown] = made[np.searchsorted(missing[position], rows[position][unknown])]
                # A query that comes twice, with other documents, has been added to by now.
                new = np.isnan(self._cache.of(queries[number], missing[position]))
                self._cache.add(queries[number], missing[position][new], made[new])
                start = end
        return known

    def _predict(self, queries: Sequence[str], blocks: Sequence[Floats]) -> Floats:
        raw = np.asarray(self._booster.predict(np.concatenate(blocks), raw_score=True, num_threads=1), dtype=np.float64)
        if self._forest is not None:
            raw += np.concatenate(
                [self._forest.added(query, block) for query, block in zip(queries, blocks, strict=True)]
            )
        return sigmoid(self.manifest.scale * raw + self.manifest.offset).astype(np.float32)


class CosineRelevance:
    """The cosine of MiniLM embeddings, mapped linearly from [low, high] to [0, 1].

    The cosine of unrelated texts is about 0, and that of a good match rarely above 0.8. With the whole range [−1, 1],
    every document would lie between 0.5 and 0.9, and relative gains would vanish.
    """

    def __init__(
        self, catalogue: Catalogue, embeddings: Vectors, embedder: Embedder, *, low: float = 0.0, high: float = 0.8
    ) -> None:
        digest = hashlib.sha256(np.ascontiguousarray(embeddings, dtype=np.float16).data).hexdigest()
        self.name = f"cosine-{digest[:12]}"
        self._catalogue = catalogue
        self._embeddings = embeddings
        self._embedder = embedder
        self._low, self._high = low, high

    def on(self, catalogue: Catalogue, embeddings: Vectors) -> CosineRelevance:
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


def _rows(catalogue: Catalogue, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    row_of = catalogue.row_of
    try:
        return np.fromiter((row_of[document_id] for document_id in ids), dtype=np.int64, count=len(ids))
    except KeyError as error:
        raise RelevanceError(
            f"document {error.args[0]!r} was retrieved, but is not in the loaded corpus: index and files differ. "
            f"Run: searchloop index CORPUS"
        ) from None
