"""Demand: which attribute keys shoppers ask for, made once per catalogue and kept as one file.

Every query set of the summary task, training and held out, draws its keys from this one file; a demand that each
process made for itself differed from process to process in a pilot, because the order of a set is not a function of
what is in it. Demand is skewed as query logs are: the key at place r has the weight r^(−exponent). Which key has which
place is drawn by a seed and owes nothing to how many products have it.
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

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class DemandSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How demand is made where no query log says what it is.

    exponent: skew; 0 asks for every key alike. key_documents_min: documents that have the key. key_values_share_max:
    distinct values of a key per document that has it; above it the key is a measure or a name that nobody types.
    """

    exponent: Annotated[float, msgspec.Meta(ge=0, le=4)] = 1.0
    key_documents_min: Annotated[int, msgspec.Meta(ge=1)] = 20
    key_values_share_max: Share = 0.5
    seed: Annotated[int, msgspec.Meta(ge=0)] = 11


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """How often each attribute key is asked for, relative to the others."""

    settings: DemandSettings
    weights: dict[str, float]


def make_demand(documents: Sequence[Document], settings: DemandSettings) -> Demand:
    """Return the demand over a catalogue's askable keys; the same catalogue and settings always give the same.

    Raises CorpusError if no key is held by enough documents.
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
            f"no attribute key is held by {settings.key_documents_min} documents with values that repeat, so nothing "
            "can be asked for. Lower demand.key_documents_min"
        )
    places = np.random.default_rng(settings.seed).permutation(len(keys))
    weights = {key: float((place + 1) ** -settings.exponent) for key, place in zip(keys, places.tolist(), strict=True)}
    return Demand(settings=settings, weights=weights)


def load_or_make_demand(path: Path, documents: Sequence[Document], settings: DemandSettings) -> Demand:
    """Return the demand in the file, made and written there at the first call.

    Raises CorpusError if the file is damaged, or was made with other settings: queries that were drawn from it would
    disagree with those to come.
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
