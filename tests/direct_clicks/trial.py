"""One way to learn from clicks: what is tried before any policy exists, the policy's training, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from infra.app.app import App
from search_env.catalogue.corpora import Qrels, Query
from search_env.engine.searching import ExpandedQuery, Searcher
from search_env.environments import Environment, ShuffledWaitingRewards
from search_env.leser.clicked import ClickedEnvironment
from search_env.leser.expansions import choices_of
from search_env.leser.neighbours import Neighbours
from search_env.leser.teachers import Lesson, Teacher
from search_env.models.click_labels import click_labels
from search_env.models.clicked_lists import BiasModel, ClientBounds, ShownList
from search_env.models.embeddings import Embedder
from search_env.serving.candidates import OpenGroup
from storage.evaluation.measures import measure_run
from streams.click_rewards import ClickRewardSettings
from streams.events import Request
from tests.direct_clicks.certain import CertainEnvironment
from tests.direct_clicks.crowd import Averaged, Crowd, Lists
from tests.drift.arms import SUBSET_MAX, copy_checkpoints, learn_on, untaught
from tests.drift.people import SHOWN
from tests.drift.shop import Shop

MEASURES = ("nDCG@10", "R@100")
DEPTH = 100
EXPLORED_AT_ONCE = 64
LABEL_MIN = 0.5  # Of a document that counts as relevant for a lesson.
EXAMINATION_MIN = 0.01
FIRST_SHARE = 0.8  # Of the first words of its prompt, which the first policy says.

Values = dict[str, dict[str, dict[str, float]]]
"""{set: {measure: {query id: value}}}"""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes. updates: of each training; a group asks a query of its own. people: at least, who see each of its choices.

    explored: queries for which people see raw results and so many lists of random words before any policy exists, and
    first_people: who see each of these lists. Queries that training asks are among them. held_out: queries of each
    held-out set. dev: queries that choose the look-up's number of words.
    """

    updates: int = 40
    people: int = 24
    explored: int = 5_000
    lists: int = 2
    first_people: int = 12
    held_out: int = 500
    dev: int = 200


class Way(NamedTuple):
    """A way to reward. position: of `leser.clicks`. fraud: whether a client cheats. shuffled: the control.

    certain: rewards without chance, as if everybody came. slower: divides the recipe's learning rate. same_results: of
    `leser.clicks`.
    """

    position: Literal["seen", "dcg"]
    fraud: bool = False
    shuffled: bool = False
    certain: bool = False
    slower: float = 3.0
    same_results: Literal["one", "apart"] = "one"


class HeldOutSet(NamedTuple):
    """Judged queries that no arm asks."""

    queries: Sequence[Query]
    qrels: Qrels


class Street(NamedTuple):
    """The world that all ways of one seed share. sold: products of the fraud client's seller."""

    app: App
    name: str
    shop: Shop
    lists: Lists
    embedder: Embedder
    grades: Mapping[str, Mapping[str, int]]
    sold: frozenset[str]
    plan: Plan
    seed: int


def crowd_of(street: Street, live: Path, *, people: int, fraud: bool) -> Crowd:
    """Return the people who search in a live run's folder."""
    return Crowd(
        live,
        street.lists,
        street.grades,
        people=people,
        seed=street.seed,
        sold=street.sold if fraud else None,
    )


def environment_of(
    street: Street, way: Way, run: str, examination: Sequence[float]
) -> tuple[ClickedEnvironment, Crowd]:
    """Return the product's environment of clicks with people who come to it. examination: of ranks, for "dcg"."""
    app, plan = street.app, street.plan
    live = app.home.run(f"{run}-live")
    crowd = crowd_of(street, live, people=plan.people, fraud=way.fraud)
    settings = ClickRewardSettings(
        live=live.name,
        impressions_min=plan.people,
        position=way.position,
        examination=tuple(examination),
        same_results=way.same_results,
    )
    environment = ClickedEnvironment(
        crowd,
        live,
        run=run,
        index=street.shop.searcher.index,
        settings=settings,
        utility=app.settings.utility,
        expansions=app.settings.leser.expansions,
    )
    return environment, crowd


def explored(street: Street, *, fraud: bool) -> list[ShownList]:
    """Show raw results and lists with random words to people, before any policy exists; return what they did."""
    run, plan = f"{street.name}-first", street.plan
    crowd = crowd_of(street, street.app.home.run(run), people=plan.first_people, fraud=fraud)
    random = np.random.default_rng(street.seed)
    requests = street.shop.requests(run, street.shop.day.queries, None)
    for start in range(0, len(requests), EXPLORED_AT_ONCE):
        crowd.visit([_group(request, plan.lists, random) for request in requests[start : start + EXPLORED_AT_ONCE]])
    return crowd.shown


class Taught(msgspec.Struct, frozen=True):
    """The lessons of a log of clicks: words for its queries. examination: of ranks, relative to the first."""

    lessons: list[Lesson]
    examination: tuple[float, ...]

    def memory(self, street: Street) -> Neighbours:
        """Return the look-up of the lessons."""
        said = [each for each in self.lessons if each.words]
        return Neighbours(said, street.embedder, street.app.settings.neighbours)


def taught(street: Street, shown: Sequence[ShownList], model: BiasModel) -> Taught:
    """Return words that find the documents that people clicked, for each query, and the examination of ranks.

    The product's estimate from clicks (`click_labels`) says which documents are relevant, and its teacher, which words
    find them. model: "pbm" takes the bias of ranks out, "none" does not.
    """
    settings, catalogue, sources = street.app.settings, street.shop.catalogue, street.app.settings.relevance.sources
    found = click_labels(
        shown,
        exponent=sources.click_position_exponent,
        model=model,
        bounds=ClientBounds(sources.click_pair_max, sources.click_lists_max),
    )
    teacher = Teacher(catalogue, settings.teacher, settings.retrieval)
    lessons = []
    for request in street.shop.requests("lessons", street.shop.day.queries, None):
        labels = found.labels.get(request.query, {})
        rows = sorted(catalogue.row_of[name] for name, (label, _) in labels.items() if label >= LABEL_MIN)
        query = Query(id=request.query_id, text=request.query)
        lessons.append(teacher.teach(query, request.context, np.array(rows, dtype=np.int64)))
    theta = tuple(float(np.clip(each, EXAMINATION_MIN, 1.0)) for each in found.theta[:SHOWN])
    return Taught(lessons, theta)


def begun(street: Street, run: str, memory: Neighbours) -> None:
    """Make a policy that says most of the first words of its prompt, and was taught nothing else.

    A policy that learned to choose the words that find clicked documents was tried. On held-out pairs it was below raw
    results (nDCG@10 .141 for .167, seed 0): the words are those of the few documents that people saw.
    """
    untaught(street.app, street.app.home.run(run), street.shop, memory, street.seed, share=FIRST_SHARE)


def trained(
    street: Street,
    way: Way,
    run: str,
    queries: Sequence[Query],
    memory: Neighbours,
    examination: Sequence[float],
    *,
    beginning: str,
) -> tuple[list[ShownList], list[float]]:
    """Train a copy of the beginning's policy by GRPO on what people click.

    Return what they saw and clicked, and the mean reward of each update's texts.
    """
    app = street.app
    folder = app.home.run(run)
    copy_checkpoints(app.home.run(beginning), folder)
    environment, crowd = environment_of(street, way, run, examination)
    rewarding: Environment = ShuffledWaitingRewards(environment) if way.shuffled else environment
    if way.certain:
        rewarding = CertainEnvironment(
            street.lists,
            street.grades,
            settings=environment.settings,
            utility=app.settings.utility,
            expansions=app.settings.leser.expansions,
        )
    averaged = Averaged(rewarding)
    rate = app.settings.learner.update.learning_rate / way.slower
    app = app.with_changes("tests.direct_clicks", {"learner": {"update": {"learning_rate": rate}}})
    learn_on(app, folder, street.shop.requests(run, queries, memory, hide_own=True), averaged, street.seed)
    return crowd.shown, averaged.means


def measured(
    searcher: Searcher, sets: Mapping[str, HeldOutSet], words: Mapping[str, Sequence[tuple[str, ...]]]
) -> Values:
    """Return the worth of words on each held-out set. words: {set: words of each query}."""
    found: Values = {}
    for name, held in sets.items():
        asked = [ExpandedQuery(query.text, said) for query, said in zip(held.queries, words[name], strict=True)]
        rankings = searcher.search_many(asked, size=DEPTH)
        run = {
            query.id: dict(zip(ranking.ids, ranking.scores, strict=True))
            for query, ranking in zip(held.queries, rankings, strict=True)
        }
        qrels = {query.id: held.qrels[query.id] for query in held.queries}
        measures = measure_run(run, qrels, list(MEASURES))
        found[name] = {
            measure: {query: round(value, 5) for query, value in measures[measure].items()} for measure in MEASURES
        }
    return found


def _group(request: Request, lists: int, random: np.random.Generator) -> OpenGroup:
    """Return a group of so many choices of random words of the prompt."""
    words = list(choices_of(request.context) or ())
    choices = {}
    for place in range(lists if words else 0):
        size = int(random.integers(1, min(SUBSET_MAX, len(words)) + 1))
        choices[f"first-{place}"] = tuple(random.choice(words, size=size, replace=False).tolist())
    return OpenGroup(
        group_id=request.query_id,
        run=request.run,
        query=request.query,
        index=request.index,
        choices=choices,
        since_ms=0,
        until_ms=0,
    )
