"""A trained relevance model as files: LightGBM's own text format, no pickle, and a manifest with the hash of each.

`model.txt` holds the base trees, and `people-N.txt` those of fold N of the forest of judgments and clicks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from search_env.catalogue.term_matrices import Catalogue
from search_env.models.embeddings import Embedder, Vectors
from search_env.models.features import FEATURES, FEATURES_VERSION
from search_env.models.judged_forest import JudgedForest, reread
from search_env.models.relevance import GbdtRelevance, GrownModel, RelevanceError, RelevanceManifest
from streams.whole_file import write_file


def save_gbdt(directory: Path, grown: GrownModel) -> None:
    """Write a model's trees and then its manifest, which names them."""
    write_file(directory / "model.txt", reread(grown.booster)[1].encode())
    for fold, booster in enumerate(grown.forest.boosters if grown.forest else ()):
        write_file(directory / f"people-{fold}.txt", reread(booster)[1].encode())
    write_file(directory / "manifest.json", msgspec.json.format(msgspec.json.encode(grown.manifest)) + b"\n")


def load_gbdt(
    directory: Path, catalogue: Catalogue, *, embeddings: Vectors | None = None, embedder: Embedder | None = None
) -> GbdtRelevance:
    """Return the model saved in a directory.

    Raises RelevanceError if it is missing or damaged, or if its features differ from those that this code computes.
    """
    try:
        manifest = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=RelevanceManifest)
        names = {"model.txt": manifest.model_sha256}
        names |= {f"people-{number}.txt": fold.sha256 for number, fold in enumerate(manifest.folds)}
        texts = {name: (directory / name).read_text() for name in names}
    except FileNotFoundError as error:
        raise RelevanceError(f"{error.filename}: no relevance model there. Run: searchloop relevance") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RelevanceError(f"{directory}: damaged relevance model ({error}). Run: searchloop relevance") from error
    for name, wanted in names.items():
        digest = hashlib.sha256(texts[name].encode()).hexdigest()
        if digest != wanted:
            raise RelevanceError(
                f"{directory / name}: expected the trees {wanted[:12]} of its manifest, got {digest[:12]}. "
                "Run: searchloop relevance"
            )
    if (manifest.features, manifest.features_version) != (FEATURES, FEATURES_VERSION):
        raise RelevanceError(
            f"{directory}: the model was trained on features of another version of searchloop. "
            "Run: searchloop relevance"
        )
    import lightgbm

    base, *folds = (lightgbm.Booster(model_str=text) for text in texts.values())
    forest = JudgedForest(folds, manifest.folds, seed=manifest.fold_seed) if folds else None
    return GbdtRelevance(catalogue, GrownModel(base, manifest, forest), embeddings=embeddings, embedder=embedder)
