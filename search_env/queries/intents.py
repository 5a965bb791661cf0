"""Attribute-intent queries: their answers are known, because the catalogue says which products have the values.

A query names two attribute values of one product, with or without its brand or type. A document is relevant if its
*attributes* (never its text) have all of them, so the judgments are independent of any retrieval model. One training
set serves two held-out tests. `test_value` has queries with at least one value that no training query names.
`test_pair` has pairs of values that were never asked together, although each value was. Splits are made by hash, so
they stay the same when the catalogue grows.

For a catalogue without attributes, `pseudo_queries` makes training queries from the documents' own words, without
judgments; a model then estimates relevance.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from search_env.catalogue.analysis import STOP_WORDS, analyze, surface_tokens
from search_env.catalogue.attributes import document_brand
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
from search_env.queries.facets import BRAND, Facet, Facets, askable, asked_for
from streams.descriptions import describe

SPLITS = ("train", "dev", "test_pair", "test_value")
TYPE_KEYS = ("product_type", "category", "type")
MISSES_MAX = 1_000  # Consecutive draws without a new query: a small catalogue is then exhausted.
TRIES_PER_QUERY = 12
ANCHORS_KEPT = 10_000  # Documents whose attributes stay in memory while queries are made: 20 MB.

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class IntentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for making and splitting attribute-intent queries."""

    queries: Annotated[
        Count, describe("Number of queries in all splits together. There are fewer if the catalogue has no more.")
    ] = 24_000
    relevant_min: Annotated[
        Count, describe("Least number of documents that match a query. A single match teaches nothing.")
    ] = 3
    relevant_max: Annotated[
        Count, describe("Largest number of documents that match a query. Thousands of matches need no search.")
    ] = 200
    value_documents_min: Annotated[
        Count, describe("Least number of documents that have a value, for a query to ask for it.")
    ] = 8
    value_share_max: Annotated[
        Share, describe("Largest share of the catalogue that has a value, for a query to ask for it.")
    ] = 0.3
    key_values_share_max: Annotated[
        Share,
        describe(
            "Largest number of distinct values per document that has the key. A key above it is a measure or a "
            "name, and no query asks for it."
        ),
    ] = 0.5
    names_share: Annotated[Share, describe("Share of queries that also say the names of the attributes.")] = 0.25
    brand_share: Annotated[Share, describe("Share of queries that contain a brand.")] = 0.25
    type_share: Annotated[Share, describe("Share of queries that contain a product type.")] = 0.15
    value_held_out: Annotated[Share, describe("Share of values that only the split `test_value` asks for.")] = 0.08
    pair_held_out: Annotated[Share, describe("Share of pairs of values that only the split `test_pair` asks for.")] = (
        0.12
    )
    dev_share: Annotated[Share, describe("Share of pairs of values that only the split `dev` asks for.")] = 0.05
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the queries and the splits.")] = 7


class IntentSet(NamedTuple):
    """Queries and their judgments (grade 1) by split; judgments are empty for pseudo-queries."""

    queries: dict[str, list[Query]]
    qrels: dict[str, Qrels]


class _Candidate(NamedTuple):
    text: str
    phrases: tuple[str, ...]  # Every attribute value in it, lower-cased.
    pair: tuple[str, str]
    relevant: tuple[int, ...]
    keys: tuple[str, ...]


def make_intents(documents: Sequence[Document], settings: IntentSettings) -> IntentSet:
    """Return attribute-intent queries of a catalogue; the same catalogue, settings and seed always give the same.

    A catalogue without attributes gives empty splits. Raises CorpusError if there are attributes, but no pair of
    values with enough matching documents.
    """
    facets = Facets(documents)
    wanted = askable(
        facets,
        least=settings.value_documents_min,
        share_max=settings.value_share_max,
        key_values_share_max=settings.key_values_share_max,
    )
    if not wanted:
        return IntentSet({split: [] for split in SPLITS}, {split: {} for split in SPLITS})
    candidates = _candidates(documents, facets, wanted, settings)
    if not candidates:
        raise CorpusError(
            f"no two attribute values are shared by {settings.relevant_min} to {settings.relevant_max} documents, so "
            f"no intent queries can be made. Lower intents.relevant_min, raise intents.relevant_max, or give your own "
            "queries."
        )
    by_split: dict[str, list[_Candidate]] = {split: [] for split in SPLITS}
    for candidate in candidates:
        by_split[_split(candidate, settings)].append(candidate)
    trained = {phrase for candidate in by_split["train"] for phrase in candidate.phrases}
    for split in ("dev", "test_pair"):
        by_split[split] = [c for c in by_split[split] if all(phrase in trained for phrase in c.phrases)]
    queries: dict[str, list[Query]] = {}
    qrels: dict[str, Qrels] = {}
    names: dict[int, str] = {}  # A document may answer many queries; its id is in memory once.
    for split in SPLITS:
        queries[split], qrels[split] = [], {}
        for candidate in by_split[split]:
            query_id = "i" + _hash(candidate.text)[:12]
            named = [list(facet) for facet in zip(candidate.keys, candidate.phrases, strict=True)]
            queries[split].append(Query(id=query_id, text=candidate.text, metadata={"attributes": named}))
            for position in candidate.relevant:
                if position not in names:
                    names[position] = documents[position].id
            qrels[split][query_id] = {names[position]: 1 for position in candidate.relevant}
    return IntentSet(queries, qrels)


def pseudo_queries(documents: Sequence[Document], settings: IntentSettings, *, terms: int = 4) -> IntentSet:
    """Return training queries: the `terms` words of highest tf·idf among a document's first 40, in order.

    They are for catalogues without attributes and without queries. They have no judgments, and only the splits `train`
    and `dev` (by hash).
    """
    frequency = Counter(term for document in documents for term in set(map(_stem_of, _first_tokens(document))))
    generator = np.random.default_rng(settings.seed)
    order = generator.permutation(len(documents))
    queries: dict[str, list[Query]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for position in order.tolist():
        weight: dict[str, float] = {}
        tokens = _first_tokens(documents[position])
        for token in tokens:
            count = frequency[_stem_of(token)]
            if token not in STOP_WORDS and len(token) > 2 and not token.isdigit() and count >= 3:
                weight[token] = weight.get(token, 0.0) + float(np.log(len(documents) / count))
        best = set(sorted(weight, key=lambda token: (-weight[token], token))[:terms])
        text = " ".join(dict.fromkeys(token for token in tokens if token in best))
        if len(best) < 2 or text in seen:
            continue
        seen.add(text)
        split = "dev" if _fraction("dev", text) < settings.dev_share else "train"
        queries[split].append(Query(id="p" + _hash(text)[:12], text=text))
        if len(seen) >= settings.queries:
            break
    return IntentSet(queries, {split: {} for split in SPLITS})


def write_intents(directory: str | Path, intents: IntentSet) -> None:
    """Write `queries.<split>.jsonl` and `qrels.<split>.tsv` for every non-empty split; delete older files of others."""
    folder = Path(directory)
    for split in SPLITS:
        queries_file, qrels_file = folder / f"queries.{split}.jsonl", folder / f"qrels.{split}.tsv"
        if intents.queries[split]:
            write_queries(queries_file, intents.queries[split])
        else:
            queries_file.unlink(missing_ok=True)
        if intents.qrels[split]:
            write_qrels(qrels_file, intents.qrels[split])
        else:
            qrels_file.unlink(missing_ok=True)


def load_intents(directory: str | Path, split: str) -> tuple[list[Query], Qrels]:
    """Return a split's queries and judgments; both are empty if the split was not written (no such queries).

    Raises CorpusError for an unknown split or a folder without intents.
    """
    folder = Path(directory)
    if split not in SPLITS:
        raise CorpusError(f"expected a split of {', '.join(SPLITS)}, got '{split}'.")
    if not (folder / "queries.train.jsonl").exists():
        raise CorpusError(
            f"{folder}: the folder has no intent queries. Index the corpus again: searchloop index CORPUS"
        )
    queries_file, qrels_file = folder / f"queries.{split}.jsonl", folder / f"qrels.{split}.tsv"
    queries = load_queries(queries_file) if queries_file.exists() else []
    return queries, load_qrels(qrels_file) if qrels_file.exists() else {}


def _candidates(
    documents: Sequence[Document], facets: Facets, wanted: set[Facet], settings: IntentSettings
) -> list[_Candidate]:
    generator = np.random.default_rng(settings.seed)
    anchors = facets.rows_of_several(wanted, least=2)
    known = lru_cache(maxsize=ANCHORS_KEPT)(lambda row: (documents[row], asked_for(documents[row], wanted)))
    found: list[_Candidate] = []
    seen: set[tuple[str, ...]] = set()
    misses = 0
    for _ in range(TRIES_PER_QUERY * settings.queries if len(anchors) else 0):
        misses += 1
        if misses > MISSES_MAX:
            break
        anchor, mine = known(int(anchors[int(generator.integers(len(anchors)))]))
        draws = generator.random(4)
        # Rare values are asked more often than their share, because a common color says little about the wanted
        # product. A number without a unit is the least natural text to type.
        weights = np.array(
            [facets.count((a.key, a.value)) ** -0.5 * (0.3 if a.phrase[-1].isdigit() else 1.0) for a in mine]
        )
        first, second = generator.choice(len(mine), size=2, replace=False, p=weights / weights.sum()).tolist()
        parts = [mine[first], mine[second]]
        if _overlap(parts[0].phrase, parts[1].phrase):
            continue
        of_brand: list[Facet] = []
        named = bool(draws[0] < settings.names_share)
        said = [f"{a.name} {a.phrase}" if named and not _overlap(a.name, a.phrase) else a.phrase for a in parts]
        if draws[1] < settings.brand_share:
            brand = document_brand(anchor)
            if brand and not any(_overlap(brand, phrase) for phrase in said):
                said.insert(0, brand)
                of_brand.append((BRAND, brand))
        elif draws[1] < settings.brand_share + settings.type_share:
            kind = next((a for key in TYPE_KEYS for a in mine if a.key == key and a not in parts), None)
            if kind is not None and not any(_overlap(kind.phrase, phrase) for phrase in said):
                parts.append(kind)
                said.append(kind.phrase)
        named_by = [*((part.key, part.value) for part in parts), *of_brand]
        relevant = facets.having_all(named_by, most=settings.relevant_max)
        if relevant is None or len(relevant) < settings.relevant_min:
            continue
        text = " ".join(said).lower()
        signature = tuple(sorted(set(analyze(text))))
        if len(signature) < 2 or signature in seen:
            continue
        seen.add(signature)
        misses = 0
        phrases = tuple(a.phrase.lower() for a in parts)
        pair = (min(phrases[:2]), max(phrases[:2]))
        found.append(_Candidate(text, phrases, pair, tuple(relevant), tuple(a.key for a in parts)))
        if len(found) >= settings.queries:
            break
    return found


def _split(candidate: _Candidate, settings: IntentSettings) -> str:
    if any(_fraction("value", phrase) < settings.value_held_out for phrase in candidate.phrases):
        return "test_value"
    draw = _fraction("pair", "\t".join(candidate.pair))
    if draw < settings.pair_held_out:
        return "test_pair"
    return "dev" if draw < settings.pair_held_out + settings.dev_share else "train"


@lru_cache(maxsize=100_000)
def _terms(text: str) -> frozenset[str]:
    return frozenset(analyze(text))


def _overlap(one: str, other: str) -> bool:
    terms, others = _terms(one), _terms(other)
    return not terms or not others or terms <= others or others <= terms


def _first_tokens(document: Document) -> list[str]:
    return surface_tokens(f"{document.title} {document.text}")[:40]


def _stem_of(token: str) -> str:
    terms = analyze(token)
    return terms[0] if terms else token


def _fraction(salt: str, text: str) -> float:
    """Return a number in [0, 1) that depends only on the text."""
    return int(_hash(f"{salt}\t{text}")[:13], 16) / 16**13


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
