"""Demand: how often shoppers ask for each attribute key, made once per catalogue and kept in one file.

Every query set of the summary recipes, training and held out, draws its keys from this one file. In a pilot, each
process made its own demand, and the demands differed, because the order of a set is not determined by its elements.
Demand is skewed as in query logs: the key at place r has the weight r^(−exponent). A seed draws the places of the keys,
independent of how many products have a key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from search_env.catalogue.attributes import document_attributes, is_logistic
from search_env.catalogue.corpora import CorpusError, Document, write_whole
from streams.descriptions import describe

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class DemandSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for demand that is made without a query log."""

    exponent: Annotated[
        float,
        msgspec.Meta(ge=0, le=4),
        describe(
            "Skew of the demand. A larger value asks for the favorite keys more often; 0 asks for every key equally."
        ),
    ] = 1.0
    key_documents_min: Annotated[
        int, msgspec.Meta(ge=1), describe("Least number of documents that have a key, for shoppers to ask for it.")
    ] = 20
    key_values_share_max: Annotated[
        Share,
        describe(
            "Largest number of distinct values per document that has the key. A key above it is a measure or a "
            "name that nobody types."
        ),
    ] = 0.5
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed that decides which keys shoppers ask for most.")] = 11


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """The relative frequency with which shoppers ask for each attribute key."""

    settings: DemandSettings
    weights: dict[str, float]


def make_demand(documents: Sequence[Document], settings: DemandSettings) -> Demand:
    """Return the demand over a catalogue's askable keys; the same catalogue and settings always give the same demand.

    Raises CorpusError if no key occurs in enough documents.
    """
    holders: Counter[str] = Counter()
    values: dict[str, set[str]] = {}
    for document in documents:
        for attribute in document_attributes(document):
            if not is_logistic(attribute.key):
                holders[attribute.key] += 1
                values.setdefault(attribute.key, set()).add(attribute.value)
    keys = sorted(
        key
        for key, count in holders.items()
        if count >= settings.key_documents_min
        and len(values[key]) >= 1
        and len(values[key]) <= settings.key_values_share_max * count
    )
    if not keys:
        raise CorpusError(
            f"expected an attribute key with repeated values in at least {settings.key_documents_min} documents, found "
            "none, so no query can be made. Lower demand.key_documents_min"
        )
    places = np.random.default_rng(settings.seed).permutation(len(keys))
    weights = {key: float((place + 1) ** -settings.exponent) for key, place in zip(keys, places.tolist(), strict=True)}
    return Demand(settings=settings, weights=weights)


def load_or_make_demand(path: Path, documents: Sequence[Document], settings: DemandSettings) -> Demand:
    """Return the demand in the file; the first call makes and writes it.

    Raises CorpusError if the file is damaged or was made with other settings, since queries that were already drawn
    from it would disagree with new ones.
    """
    if not path.is_file():
        demand = make_demand(documents, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(demand)).decode())
        return demand
    try:
        demand = msgspec.json.decode(path.read_bytes(), type=Demand)
    except (OSError, msgspec.DecodeError) as error:
        raise CorpusError(
            f"{path}: expected a demand file, got: {error}. Remove its folder to make it again"
        ) from error
    if demand.settings != settings:
        raise CorpusError(f"{path} was made with other [demand] settings; remove its folder, or keep the settings")
    return demand
