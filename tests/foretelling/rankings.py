"""Real rankings of versions of known, graded quality: Elasticsearch's, on a catalogue of real products.

    python -m tests.foretelling.rankings icecat/corpus.jsonl.gz

A version gives each query words, as a policy does, or spoils a ranking. Its rankings are kept as grades and numbers of
documents, so that people can be simulated again without a search engine. Two sets of queries have nothing in common:
people ask the first one, and the second one is held out for nDCG.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

RANKINGS = Path(__file__).parent / "rankings.json.gz"
SHOWN = 10
HEAVY = 8.0  # Boost of a word beside the query's 1.
RAW = ""


class Rankings(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The first ten documents of Q queries by V versions. A document's number means its query's document.

    versions: names, "" for raw results. documents: [V, Q, 10], -1 without a result. grades: by query and document
    number. held_out: first query that nobody asks.
    """

    corpus: str
    versions: tuple[str, ...]
    documents: list[list[list[int]]]
    grades: list[list[int]]
    relevant: list[int]
    held_out: int

    @cached_property
    def shown(self) -> npt.NDArray[np.int64]:
        """The documents as an array, [V, Q, 10]."""
        return np.array(self.documents, dtype=np.int64)

    @cached_property
    def graded(self) -> npt.NDArray[np.int64]:
        """The grade of what is shown, [V, Q, 10]; -1 without a result."""
        most = max(map(len, self.grades))
        table = np.array([[*row, *[0] * (most - len(row)), -1] for row in self.grades])
        return table[np.arange(len(table))[None, :, None], self.shown]


def read_rankings() -> Rankings:
    """Return the kept rankings."""
    return msgspec.json.decode(gzip.decompress(RANKINGS.read_bytes()), type=Rankings)


def words_by_version(
    taught: Sequence[tuple[str, ...]], feedback: Sequence[tuple[str, ...]], words: Sequence[str]
) -> dict[str, tuple[float, list[tuple[str, ...]]]]:
    """Return, for each version, the boost of its words (0 takes the default) and what it says for each query.

    taught: a teacher's words, which know the judgments. feedback: Bo1's words. words: the catalogue's.
    """
    random = np.random.default_rng(0)
    count = len(taught)
    junk = [tuple(random.choice(words, size=4).tolist()) for _ in range(count)]
    turned = [taught[place] for place in np.roll(np.arange(count), 1)]

    def part(share: float, one: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        chosen = random.random(count) < share
        return [said if there else () for said, there in zip(one, chosen, strict=True)]

    return {
        RAW: (0, [()] * count),
        "taught": (0, list(taught)),
        "taught, three quarters": (0, part(0.75, taught)),
        "taught, half": (0, part(0.5, taught)),
        "taught, a quarter": (0, part(0.25, taught)),
        "taught, a tenth": (0, part(0.1, taught)),
        "taught, one word": (0, [said[:1] for said in taught]),
        "feedback": (0, list(feedback)),
        "feedback, heavy": (HEAVY, list(feedback)),
        "another query's words, heavy": (HEAVY, turned),
        "another query's words, heavy, half": (HEAVY, part(0.5, turned)),
        "junk": (0, junk),
        "junk, heavy": (HEAVY, junk),
        "junk, heavy, half": (HEAVY, part(0.5, junk)),
    }


def main() -> None:
    """Index the catalogue, search with every version, and keep the rankings."""
    from search_env.catalogue.corpora import Ranking, load_corpus
    from search_env.catalogue.term_matrices import Catalogue
    from search_env.engine.client import ElasticsearchSettings, connect
    from search_env.engine.index import build_index
    from search_env.engine.searching import ExpandedQuery, RetrievalSettings, Searcher
    from search_env.leser.feedback_terms import FeedbackTerms
    from search_env.leser.teachers import Teacher, TeacherSettings
    from search_env.queries.intents import IntentSettings, make_intents
    from services.local import LocalServices
    from services.settings import LocalSettings
    from streams.events import Context

    parser = argparse.ArgumentParser(description="Make rankings of versions of graded quality.")
    parser.add_argument("corpus", type=Path, help="Catalogue with attributes (JSONL).")
    parser.add_argument("--queries", type=int, default=400, help="Queries of each of the two sets.")
    options = parser.parse_args()
    documents = list(load_corpus(options.corpus))
    catalogue = Catalogue(documents)
    intents = make_intents(documents, IntentSettings())
    asked = [*intents.queries["dev"][: options.queries], *intents.queries["test_value"][: options.queries]]
    qrels = {**intents.qrels["dev"], **intents.qrels["test_value"]}
    teacher = Teacher(catalogue, TeacherSettings(), RetrievalSettings())
    with tempfile.TemporaryDirectory(prefix="searchloop-rankings-") as folder, contextlib.ExitStack() as closing:
        services = LocalServices(Path(folder), LocalSettings(quick_start=True), attached=True)
        closing.callback(services.remove)
        url = services.up().elasticsearch
        client = closing.enter_context(contextlib.closing(connect(ElasticsearchSettings(url=url))))
        index = build_index(client, "rankings", documents, installation="foretelling", directory=Path(folder) / "index")
        searcher = closing.enter_context(contextlib.closing(Searcher(client, index.name, RetrievalSettings())))
        texts = [query.text for query in asked]
        raw = searcher.search_many(texts, size=20)
        found = FeedbackTerms(catalogue)
        feedback = [
            tuple(
                term.word for term in found.terms("bo1", each.ids, each.scores, count=10, without=text, documents_min=3)
            )
            for text, each in zip(texts, raw, strict=True)
        ]
        taught = []
        for number, query in enumerate(asked):
            rows = np.array([catalogue.row_of[name] for name in qrels[query.id] if name in catalogue.row_of])
            taught.append(teacher.teach(query, Context(), rows).words)
            if number % 50 == 0:
                print(f"{number} of {len(asked)} queries taught", flush=True)
        rankings: dict[str, list[Ranking]] = {}
        said = words_by_version(taught, feedback, [word for word in catalogue.surface_forms if word])
        for name, (weight, words) in said.items():
            expanded = [ExpandedQuery(text, each) if each else text for text, each in zip(texts, words, strict=True)]
            settings = RetrievalSettings(weight=weight) if weight else RetrievalSettings()
            with contextlib.closing(Searcher(client, index.name, settings)) as weighing:
                rankings[name] = weighing.search_many(expanded, size=SHOWN)
    shown = {name: [each.ids for each in found] for name, found in rankings.items()}
    shown["reversed"] = [ids[::-1] for ids in shown[RAW]]
    keep(options.corpus.parent.name, shown, [qrels[query.id] for query in asked], held_out=options.queries)


def keep(corpus: str, shown: dict[str, list[list[str]]], grades: list[dict[str, int]], *, held_out: int) -> None:
    """Write rankings to the file."""
    numbers: list[dict[str, int]] = [{} for _ in grades]
    documents = [
        [
            [*(numbers[query].setdefault(name, len(numbers[query])) for name in ids), *[-1] * (SHOWN - len(ids))]
            for query, ids in enumerate(by_query)
        ]
        for by_query in shown.values()
    ]
    found = Rankings(
        corpus=corpus,
        versions=tuple(shown),
        documents=documents,
        grades=[[grades[query].get(name, 0) for name in row] for query, row in enumerate(numbers)],
        relevant=[sum(grade > 0 for grade in row.values()) for row in grades],
        held_out=held_out,
    )
    RANKINGS.write_bytes(gzip.compress(msgspec.json.encode(found), mtime=0))


if __name__ == "__main__":
    main()
