"""The frozen cross-encoder's labels of training products: queries, labels, rivals, and the filter's δ.

They are made once for an index and kept. The same labeled products reward every arm and seed of an experiment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from infra.recipes.relsum.ranked_index import RankedIndex
from search_env.catalogue.corpora import write_whole
from search_env.queries.title_queries import TitleQueries
from search_env.relsum.environment import LabelledQuery, RelsumEnvironmentSettings
from streams.errors import SettingsError

PAIRS_FILE = "labelled-pairs.jsonl"
TITLE_RIVALS = 5


class LabelledProduct(msgspec.Struct, frozen=True, kw_only=True):
    """The training queries of one product, with the frozen cross-encoder's numbers about them."""

    document_id: str
    queries: tuple[LabelledQuery, ...]


def labelled_products(relsum: RankedIndex, left_out: set[str]) -> list[LabelledProduct]:
    """Return the labeled products of an index: the kept ones, or new ones, which take minutes of reading.

    The file's name is a hash of everything that the labels depend on, so arms and seeds of one experiment share them.
    left_out: texts of queries, in small letters, that label nothing.
    """
    settings = relsum.settings
    known = msgspec.json.encode(
        [
            relsum.cross_encoder.name,
            settings.cross_encoder.tokens_max,
            settings.cross_encoder.described_tokens_max,
            settings.lists,
            settings.relsum.summary,
            settings.relsum.training_queries,
            settings.relsum.title_queries,
            settings.relsum.filter_delta > 0,  # Without a filter no description is read.
            sorted(left_out),
        ]
    )
    path = relsum.folder.labelled / f"{hashlib.sha256(known).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pairs(path, label_products(relsum, left_out))
    return read_pairs(path)


def label_products(relsum: RankedIndex, left_out: set[str]) -> list[LabelledProduct]:
    """Return every product of the training lists with its queries and the frozen cross-encoder's numbers."""
    lists, encoder, values = relsum.lists("train"), relsum.cross_encoder, relsum.values
    queries = [query for query in lists.queries if query.text.lower() not in left_out]
    queries = queries[: relsum.settings.relsum.training_queries]
    items = [(query, document, grade) for query in queries for document, grade in lists.qrels[query.id].items()]
    rivals = [(query, document) for query, document, grade in items if grade == 0]
    reference = encoder.logits(
        [(q.text, relsum.text(d, relsum.summary(d, values.by_key_counts(d)))) for q, d in rivals], report=relsum.report
    )
    relevant = [(place, q, d) for place, (q, d, grade) in enumerate(items) if grade > 0]
    others: dict[str, list[float]] = {}
    for (query, _), logit in zip(rivals, reference.tolist(), strict=True):
        others.setdefault(query.id, []).append(logit)
    # The paper's reward needs irrelevant products, too: only the first of each list, as reading descriptions is slow.
    first = {query.id: next((d for d, grade in lists.qrels[query.id].items() if grade == 0), "") for query in queries}
    wrong = [(place, q, d) for place, (q, d, grade) in enumerate(items) if grade == 0 and d == first[q.id]]
    taken = [*relevant, *wrong]
    deltas = np.ones(len(taken))
    if relsum.settings.relsum.filter_delta > 0:
        titled = encoder.logits([(q.text, relsum.text(d, "")) for _, q, d in taken], report=relsum.report)
        whole = [(q.text, relsum.text(d, values.description(d))) for _, q, d in taken]
        described = encoder.logits(whole, described=True, report=relsum.report)
        deltas = encoder.probabilities(described) - encoder.probabilities(titled)
    by_product: dict[str, list[LabelledQuery]] = {}
    for (place, query, document), delta in zip(taken, deltas.tolist(), strict=True):
        by_product.setdefault(document, []).append(
            LabelledQuery(
                query_id=query.id,
                query=query.text,
                label=int(items[place][2] > 0),
                delta=delta,
                others=tuple(others.get(query.id, ())),
            )
        )
    if relsum.settings.relsum.title_queries:
        for document, asked in label_titles(relsum, sorted(by_product), left_out).items():
            by_product[document] += asked
    return [LabelledProduct(document_id=d, queries=tuple(found)) for d, found in sorted(by_product.items())]


def label_titles(relsum: RankedIndex, names: Sequence[str], left_out: set[str]) -> dict[str, list[LabelledQuery]]:
    """Return queries from the title's words for each product, with the cross-encoder's logits of their rivals.

    Such a query is known to be relevant, and no description changes that: δ leaves none of them out.
    """
    wanted = relsum.settings.relsum.title_queries
    random = np.random.default_rng(relsum.settings.lists.seed)
    drawn = TitleQueries([relsum.values.documents[name].title for name in names])
    asked: list[tuple[str, str, list[str]]] = []  # (product, query, rivals)
    for place, name in enumerate(names):
        queries = {" ".join(words): words for words in (drawn.draw(place, random) for _ in range(wanted)) if words}
        for text, words in queries.items():
            rivals = [names[rival] for rival in drawn.rivals(words, TITLE_RIVALS, random)]
            if rivals and text not in left_out:
                asked.append((name, text, rivals))
    texts = {name: relsum.text(name, relsum.summary(name, relsum.values.by_key_counts(name))) for name in names}
    read = [(text, texts[rival]) for _, text, rivals in asked for rival in rivals]
    logits = iter(relsum.cross_encoder.logits(read, report=relsum.report).tolist())
    found: dict[str, list[LabelledQuery]] = {}
    for name, text, rivals in asked:
        others = tuple(next(logits) for _ in rivals)
        query = LabelledQuery(query_id=f"title-{name}-{text}", query=text, label=1, delta=1.0, others=others)
        found.setdefault(name, []).append(query)
    return found


def usable(
    labelled: dict[str, tuple[LabelledQuery, ...]], settings: RelsumEnvironmentSettings
) -> dict[str, tuple[LabelledQuery, ...]]:
    """Return the products that keep a query after the paper's filter |δ|.

    A reward by rank keeps relevant pairs only.
    """
    by_rank = settings.reward.kind != "error"
    kept = {
        document: tuple(q for q in queries if abs(q.delta) > settings.filter_delta and (q.label > 0 or not by_rank))
        for document, queries in labelled.items()
    }
    return {document: queries for document, queries in kept.items() if queries}


def write_pairs(path: Path, products: Sequence[LabelledProduct]) -> None:
    """Write labeled products, one JSON object a line; the file is whole or absent."""
    write_whole(path, msgspec.json.Encoder().encode_lines(products))


def read_pairs(path: Path) -> list[LabelledProduct]:
    """Return labeled products.

    Raises SettingsError if the file is missing or damaged.
    """
    try:
        return msgspec.json.Decoder(LabelledProduct).decode_lines(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path}: {error}. Start a new run with --run NAME") from error
