"""Judged lists: queries for attribute values that titles lack, each with a list of products to rank.

A query names one or two values of a product, with or without its brand. A product of its list is relevant exactly if
its attributes have all of them. The other products are hard to tell from titles: most have the requested key with
another value. Keys are drawn by demand among the keys of the product. Training and test share values and keys, but no
products: no product of a test list has taught a policy or a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from search_env.catalogue.attributes import Attribute, document_brand
from search_env.catalogue.corpora import (
    CorpusError,
    Document,
    Qrels,
    Query,
    load_qrels,
    load_queries,
    write_qrels,
    write_queries,
)
from search_env.catalogue.demand import Demand
from search_env.queries.shops import Rows, Shop
from streams.descriptions import describe

SPLITS = ("train", "dev", "test")
TRIES_PER_QUERY = 40
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ListSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for making lists."""

    values_min: Annotated[
        Count, describe("Least number of askable values that a product's title lacks, for the product to be queried.")
    ] = 8
    train: Annotated[Count, describe("Largest number of queries in the split `train`.")] = 2_000
    dev: Annotated[Count, describe("Largest number of queries in the split `dev`.")] = 300
    test: Annotated[Count, describe("Largest number of queries in the split `test`.")] = 600
    candidates: Annotated[int, msgspec.Meta(ge=4, le=200), describe("Number of products in a list.")] = 16
    relevant_max: Annotated[Count, describe("Largest number of relevant products in a list.")] = 3
    value_share_max: Annotated[Share, describe("Largest share of a key's holders that have the requested value.")] = 0.5
    second_value_share: Annotated[Share, describe("Share of queries that ask for two values.")] = 0.3
    brand_share: Annotated[Share, describe("Share of queries that contain the brand.")] = 0.2
    test_products: Annotated[Share, describe("Share of products that only lists of the split `test` contain.")] = 0.4
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the lists.")] = 5


class JudgedLists(NamedTuple):
    """Queries of one split and their judgments: a grade, 0 or 1, for each product of a query's list."""

    queries: list[Query]
    qrels: Qrels


def make_lists(documents: Sequence[Document], demand: Demand, settings: ListSettings) -> dict[str, JudgedLists]:
    """Return the lists by split; the same catalogue, demand and settings always give the same lists.

    A brand in a query is also judged: every relevant product has it. Raises CorpusError if there are no lists.
    """
    taught, held_out = Shop(documents, demand), Shop(documents, demand)
    for row, document in enumerate(documents):
        shop = held_out if _fraction(document.id) < settings.test_products else taught
        shop.add(row, document, values_min=settings.values_min)
    made: dict[str, JudgedLists] = {}
    seen: set[str] = set()
    for number, split in enumerate(SPLITS):
        shop, random = held_out if split == "test" else taught, np.random.default_rng([settings.seed, number])
        made[split] = _draw(shop, demand, settings, getattr(settings, split), seen, random)
    if not made["train"].queries:
        raise CorpusError(
            f"expected products with {settings.values_min} values that their titles lack and others share, found none; "
            "lower lists.values_min"
        )
    return made


def write_lists(folder: Path, lists: dict[str, JudgedLists]) -> None:
    """Write `queries.<split>.jsonl` (each query's list is in its metadata) and `qrels.<split>.tsv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, each in lists.items():
        write_queries(folder / f"queries.{split}.jsonl", each.queries)
        write_qrels(folder / f"qrels.{split}.tsv", each.qrels)


def load_lists(folder: Path, split: str) -> JudgedLists:
    """Return a split's lists.

    Raises CorpusError if they were not made.
    """
    return JudgedLists(load_queries(folder / f"queries.{split}.jsonl"), load_qrels(folder / f"qrels.{split}.tsv"))


def _draw(
    shop: Shop, demand: Demand, settings: ListSettings, count: int, seen: set[str], random: np.random.Generator
) -> JudgedLists:
    queries: list[Query] = []
    qrels: Qrels = {}
    for _ in range(count * TRIES_PER_QUERY if shop.askable else 0):
        if len(queries) >= count:
            break
        anchor = shop.askable[int(random.integers(len(shop.askable)))]
        askable = [
            a
            for a in shop.absent(anchor)
            if len(shop.holders(a)) <= settings.value_share_max * len(shop.key_holders(a.key))
        ]
        parts = _by_demand(askable, demand, 2 if random.random() < settings.second_value_share else 1, random)
        if not parts:
            continue
        relevant = shop.holding(parts)
        words = [a.phrase for a in parts]
        brand = document_brand(shop.documents[anchor])
        if random.random() < settings.brand_share and brand:
            words.insert(0, brand)
            relevant = shop.of_brand(relevant, brand)
        text = " ".join(words).lower()
        if text in seen:
            continue
        chosen = _choose(shop, anchor, parts, relevant, settings, random)
        if chosen is None:
            continue
        seen.add(text)
        query_id = "s" + hashlib.sha256(text.encode()).hexdigest()[:12]
        ids = [shop.documents[row].id for row in chosen]
        queries.append(Query(id=query_id, text=text, metadata={"keys": [a.key for a in parts], "candidates": ids}))
        right = set(relevant.tolist())
        qrels[query_id] = {name: int(row in right) for name, row in zip(ids, chosen, strict=True)}
    return JudgedLists(queries, qrels)


def _by_demand(
    attributes: Sequence[Attribute], demand: Demand, count: int, random: np.random.Generator
) -> list[Attribute]:
    """Return attributes of different keys, drawn by their keys' demand; none if there are not enough."""
    first_of: dict[str, Attribute] = {}
    for attribute in attributes:
        first_of.setdefault(attribute.key, attribute)
    keys = list(first_of)
    if len(keys) < count:
        return []
    weights = np.array([demand.weights[key] for key in keys])
    picked = random.choice(len(keys), size=count, replace=False, p=weights / weights.sum())
    return [first_of[keys[place]] for place in picked.tolist()]


def _choose(
    shop: Shop,
    anchor: int,
    parts: Sequence[Attribute],
    relevant: Rows,
    settings: ListSettings,
    random: np.random.Generator,
) -> list[int] | None:
    """Return a list's products in mixed order, or None if there are too few other products to rank."""
    size = settings.candidates

    def mixed(rows: Rows, most: int) -> list[int]:
        """Return the first ones of some rows in an order that is drawn for all of them."""
        found: list[int] = rows[random.permutation(len(rows))[:most]].tolist()
        return found

    hidden = shop.hidden(relevant, parts)
    good = [anchor, *(row for row in mixed(hidden, len(hidden)) if row != anchor)][: settings.relevant_max]
    others, near = shop.others(parts, relevant), shop.near(parts, relevant)
    # No list needs more: each step names at most `size` products that an earlier one has named.
    bad = list(
        dict.fromkeys(
            [
                *mixed(near, size // 3),
                *mixed(others, 2 * size),
                *mixed(shop.asked(relevant), 4 * size),
            ]
        )
    )
    bad = bad[: size - len(good)]
    if len(bad) < size // 2:
        return None
    return mixed(np.unique(np.array([*good, *bad], dtype=np.int32)), size)


def _fraction(identifier: str) -> float:
    return int(hashlib.sha256(f"product\t{identifier}".encode()).hexdigest()[:13], 16) / 16**13
