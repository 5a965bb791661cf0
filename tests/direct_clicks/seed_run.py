"""All ways of one seed: they share the people, the queries and the first policy's making."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from infra.app.app import App
from infra.simulating.lists import sellers
from infra.simulating.world import Day
from search_env.catalogue.attributes import document_brand
from search_env.catalogue.corpora import Qrels, Query, load_qrels, load_queries, write_whole
from search_env.engine.index import load_documents
from search_env.engine.opening import open_searcher
from search_env.engine.searching import ExpandedQuery
from search_env.leser.neighbours import Neighbours
from search_env.models.clicked_lists import ShownList
from search_env.models.embeddings import Embedder
from search_env.queries.intents import load_intents
from storage.evaluation.measures import mean
from tests.direct_clicks.crowd import Lists
from tests.direct_clicks.trial import (
    HeldOutSet,
    Plan,
    Street,
    Taught,
    Values,
    Way,
    begun,
    explored,
    measured,
    taught,
    trained,
)
from tests.drift.arms import written
from tests.drift.shop import Shop

CORRECTED, AS_SEEN, FRAUD, SHUFFLED = "clicks, corrected", "clicks, not corrected", "with fraud", "shuffled rewards"
CERTAIN, FASTER = "corrected, as if everybody came", "corrected, three times the learning rate"
APART = "corrected, same results apart"
WAYS = {
    CORRECTED: Way("dcg"),
    SHUFFLED: Way("dcg", shuffled=True),
    AS_SEEN: Way("seen"),
    FRAUD: Way("dcg", fraud=True),
    APART: Way("dcg", same_results="apart"),
    CERTAIN: Way("dcg", certain=True),
    FASTER: Way("dcg", slower=1.0),
}
ONE_SEED = (CERTAIN, FASTER)
"""Ways that are tried with the first seed alone."""

RAW, PROMPT, FIRST_LOOK_UP, LOOK_UP = "raw", "prompt's words", "look-up, first clicks", "look-up, all clicks"
UNTAUGHT, REFRESHED = "before GRPO", "clicks, corrected, newest look-up in its prompt"
PAIRS, VALUES, HUMAN = "held-out value pairs", "held-out values", "human queries"
PROMPT_WORDS = 24
LOOK_UP_COUNTS = (1, 2, 3, 4, 6, 8, 14, 20)

Words = dict[str, list[tuple[str, ...]]]
"""{set: words of each query}"""


class SeedResult(msgspec.Struct, kw_only=True):
    """The result of a seed so far.

    arms: {arm: values}. rewards: mean reward of each update's texts. searches: of people, in training.
    """

    arms: dict[str, Values] = {}
    rewards: dict[str, list[float]] = {}
    searches: dict[str, int] = {}
    examination: tuple[float, ...] = ()
    words_of_look_up: dict[str, int] = {}


def run_seed(street: Street, sets: Mapping[str, HeldOutSet], dev: HeldOutSet, result: SeedResult) -> Iterator[None]:
    """Fill in what is missing in the result, and pause after each arm."""
    plan, searcher = street.plan, street.shop.searcher
    queries = street.shop.day.queries
    count = plan.updates * street.app.settings.batch.groups
    texts = {name: [query.text for query in held.queries] for name, held in sets.items()}

    def keep(arm: str, words: Words) -> None:
        result.arms[arm] = measured(searcher, sets, words)
        said = ", ".join(
            f"{name} {mean(of['nDCG@10']):.4f}/{mean(of['R@100']):.4f}" for name, of in result.arms[arm].items()
        )
        print(f"{street.name} {arm}: {said}", flush=True)

    def served(run: str, memory: Neighbours) -> Words:
        return {
            name: written(
                street.app, street.app.home.run(run), street.shop.requests(run, held.queries, memory), street.seed
            )
            for name, held in sets.items()
        }

    keep(RAW, {name: [()] * len(asked) for name, asked in texts.items()})
    lessons = FirstLessons(street)
    found = lessons.of(CORRECTED)
    memory, result.examination = found.memory(street), found.examination
    beginning = f"{street.name}-beginning"
    yield
    if not (street.app.home.run(beginning).checkpoints / "CURRENT").exists():
        begun(street, beginning, memory)
    if UNTAUGHT not in result.arms:
        keep(PROMPT, _prompt_words(street, sets, memory))
        keep(FIRST_LOOK_UP, _look_up(street, sets, dev, memory, result, FIRST_LOOK_UP))
        keep(UNTAUGHT, served(beginning, memory))
        yield
    for arm, way in WAYS.items():
        if arm in result.arms or (street.seed and arm in ONE_SEED):
            continue
        run = f"{street.name}-{arm.replace(' ', '-').replace(',', '')}"
        first = lessons.of(arm)
        shown = first.memory(street)
        theta = first.examination if way.position == "dcg" else (1.0,)
        more, result.rewards[arm] = trained(street, way, run, queries[:count], shown, theta, beginning=beginning)
        result.searches[arm] = len(more)
        if arm == CORRECTED:
            newest = taught(street, [*lessons.clicks(), *more], "pbm").memory(street)
            keep(LOOK_UP, _look_up(street, sets, dev, newest, result, LOOK_UP))
            keep(REFRESHED, served(run, newest))
        keep(arm, served(run, shown))
        yield


class FirstLessons:
    """The lessons of what people clicked before any policy existed, kept in files of the home."""

    def __init__(self, street: Street) -> None:
        self._street = street
        self._clicks: list[ShownList] = []

    def clicks(self) -> list[ShownList]:
        """Return what honest people saw and clicked."""
        self._clicks = self._clicks or explored(self._street, fraud=False)
        return self._clicks

    def of(self, arm: str) -> Taught:
        """Return the lessons with which an arm begins: of its own clicks, if a fraud is among them or bias stays in."""
        kind = arm if arm in (AS_SEEN, FRAUD) else CORRECTED
        path = self._street.app.home.runs / f"{self._street.name}-lessons-{list(WAYS).index(kind)}.json"
        if not path.exists():
            clicks = explored(self._street, fraud=True) if kind == FRAUD else self.clicks()
            found = taught(self._street, clicks, "none" if kind == AS_SEEN else "pbm")
            write_whole(path, msgspec.json.encode(found))
        return msgspec.json.decode(path.read_bytes(), type=Taught)


def _prompt_words(street: Street, sets: Mapping[str, HeldOutSet], memory: Neighbours) -> Words:
    """Return the words that each prompt shows first."""
    found = {}
    for name, held in sets.items():
        contexts = [request.context for request in street.shop.requests("prompt", held.queries, memory)]
        found[name] = [(context.neighbours or context.terms)[:PROMPT_WORDS] for context in contexts]
    return found


def _look_up(
    street: Street, sets: Mapping[str, HeldOutSet], dev: HeldOutSet, memory: Neighbours, result: SeedResult, arm: str
) -> Words:
    """Return the look-up's words, as many as are best on dev by the hidden relevance, in its favour."""
    asked = [query.text for query in dev.queries]

    def worth(count: int) -> float:
        found = measured(street.shop.searcher, {"dev": dev}, {"dev": memory.words(asked, count=count)})
        return mean(found["dev"]["nDCG@10"])

    count = result.words_of_look_up[arm] = max(LOOK_UP_COUNTS, key=worth)
    return {name: memory.words([query.text for query in held.queries], count=count) for name, held in sets.items()}


@contextlib.contextmanager
def opened(app: App, index: str, name: str, plan: Plan, seed: int, embedder: Embedder) -> Iterator[Street]:
    """Give the world of one seed: the index, and the queries that people ask most."""
    folder = app.home.index(index)
    queries, qrels = load_intents(folder.intents, "train")
    # Ids are hashes, so any order by them is a random sample; each seed's people ask other queries.
    asked = sorted((query for query in queries if query.id in qrels), key=lambda query: query.id)
    order = np.random.default_rng(seed).permutation(len(asked))[: plan.explored]
    queries = [asked[place] for place in order.tolist()]
    documents = load_documents(folder)
    with (
        contextlib.closing(app.engine()) as client,
        contextlib.closing(open_searcher(client, folder, app.settings.retrieval)) as searcher,
    ):
        grades = {query.id: qrels[query.id] for query in queries}
        day = Day(documents=documents, queries=queries, popularity=[1.0] * len(queries), grades=grades, words={})
        lists = Lists(searcher)
        yield Street(
            app=app,
            name=name,
            shop=Shop(app, day, searcher),
            lists=lists,
            embedder=embedder,
            grades={query.text: qrels[query.id] for query in queries},
            sold=_sold(documents, queries, lists),
            plan=plan,
            seed=seed,
        )


def held_out(
    app: App, index: str, plan: Plan, human: tuple[Path, Path] | None
) -> tuple[dict[str, HeldOutSet], HeldOutSet]:
    """Return the sets to measure on, and dev: of each the first queries by id, which is a hash."""
    folder = app.home.index(index)

    def some(queries: Sequence[Query], qrels: Qrels, count: int) -> HeldOutSet:
        judged = (query for query in queries if any(grade > 0 for grade in qrels.get(query.id, {}).values()))
        return HeldOutSet(sorted(judged, key=lambda query: query.id)[:count], qrels)

    sets = {
        name: some(*load_intents(folder.intents, split), plan.held_out)
        for name, split in ((PAIRS, "test_pair"), (VALUES, "test_value"))
    }
    if human is not None:
        queries = load_queries(human[0])
        sets[HUMAN] = some(queries, load_qrels(human[1]), len(queries))
    return sets, some(*load_intents(folder.intents, "dev"), plan.dev)


def _sold(documents: Sequence, queries: Sequence[Query], lists: Lists) -> frozenset[str]:  # type: ignore[type-arg]
    """Return the products of the brand whose products stand in the raw lists of the most queries."""
    from infra.simulating.lists import QueryLists

    brand_of = {document.id: document_brand(document) for document in documents}
    raw = lists.of([ExpandedQuery(query.text) for query in queries])
    brands = sellers(brand_of, {query.id: QueryLists(ids, ()) for query, ids in zip(queries, raw, strict=True)}, 10)
    return frozenset(name for name, brand in brand_of.items() if brands and brand == brands[0])
