"""One way to learn from clicks: what is tried before any policy exists, the policy's training, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from infra.app.app import App
from search_env.catalogue.corpora import Qrels, Query
from search_env.engine.searching import ExpandedQuery, Searcher
from search_env.environments import ShuffledWaitingRewards
from search_env.leser.clicked import ClickedEnvironment
from search_env.leser.expansions import choices_of
from search_env.leser.neighbours import Neighbours
from search_env.models.click_labels import click_labels
from search_env.models.embeddings import Embedder
from storage.evaluation.measures import measure_run
from streams.click_rewards import ClickRewardSettings
from streams.codec import content_sha256, encode_event
from streams.events import Completion, Generation, PolicyRef, Position, Request, Sampling
from streams.ids import group_id
from streams.pointers import pointer
from tests.direct_clicks.crowd import Crowd, Lists, Remembered, tried_of
from tests.drift.arms import SUBSET_MAX, copy_checkpoints, learn_on, untaught
from tests.drift.people import Tried, lessons_of
from tests.drift.shop import Shop

MEASURES = ("nDCG@10", "R@100")
DEPTH = 100
EXPLORED_AT_ONCE = 64
EXAMINED_LISTS = 60_000  # Searches from which the examination of ranks is estimated.
EXAMINATION_MIN = 0.01

Values = dict[str, dict[str, dict[str, float]]]
"""{set: {measure: {query id: value}}}"""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes. updates: of each training; a group asks a query of its own. people: who see each choice at least.

    explored: queries for which people see so many lists of random words before any policy exists; those that training
    asks are among them. held_out: queries of each held-out set. dev: queries that choose the look-up's number of words.
    words: that a query's lesson keeps.
    """

    updates: int = 40
    explored: int = 2_000
    lists: int = 4
    people: int = 24
    held_out: int = 500
    dev: int = 200
    words: int = 6


class Way(NamedTuple):
    """A way to reward. position: of `leser.clicks`. fraud: whether a client cheats. shuffled: the control."""

    position: Literal["seen", "dcg"]
    fraud: bool = False
    shuffled: bool = False


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


def environment_of(
    street: Street, way: Way, run: str, examination: Sequence[float]
) -> tuple[ClickedEnvironment, Crowd]:
    """Return the product's environment of clicks with people who come to it. examination: of ranks, for "dcg"."""
    app, plan = street.app, street.plan
    live = app.home.run(f"{run}-live")
    crowd = Crowd(
        live,
        street.lists,
        street.grades,
        people=plan.people,
        seed=street.seed,
        sold=street.sold if way.fraud else None,
    )
    settings = ClickRewardSettings(
        live=live.name, impressions_min=plan.people, position=way.position, examination=tuple(examination)
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


def explored(
    street: Street, way: Way, queries: Sequence[Query], examination: Sequence[float]
) -> tuple[list[Tried], Crowd]:
    """Show lists with random words of the raw results to people, before any policy exists, and return their gains."""
    run = f"{street.name}-first"
    environment, crowd = environment_of(street, way, run, examination)
    remembered = Remembered(environment)
    random = np.random.default_rng(street.seed)
    requests = street.shop.requests(run, queries, None)
    for start in range(0, len(requests), EXPLORED_AT_ONCE):
        inputs = []
        for offset, request in enumerate(requests[start : start + EXPLORED_AT_ONCE], start=start):
            group = _random_group(request, offset, street.plan.lists, random)
            source = Position(topic=f"{run}.generations", partition=0, offset=offset)
            inputs.append((group, source, content_sha256(encode_event(group))))
        remembered.score_many(inputs)
    return tried_of(remembered.rewards), crowd


def examination_of(crowd: Crowd) -> tuple[float, ...]:
    """Return the examination of ranks, relative to the first, as the product estimates it from clicks (PBM, EM)."""
    found = click_labels(crowd.shown[:EXAMINED_LISTS], exponent=1.0, model="pbm")
    return tuple(float(np.clip(each, EXAMINATION_MIN, 1.0)) for each in found.theta[:10])


def memory_of(street: Street, tried: Sequence[Tried]) -> Neighbours:
    """Return the look-up of the words that earned clicks."""
    lessons = [each for each in lessons_of([tried], words_max=street.plan.words) if each.words]
    return Neighbours(lessons, street.embedder, street.app.settings.neighbours)


def begun(street: Street, run: str, memory: Neighbours) -> None:
    """Make a policy that says half of the first words of its prompt, and was taught nothing else."""
    untaught(street.app, street.app.home.run(run), street.shop, memory, street.seed)


def trained(
    street: Street,
    way: Way,
    run: str,
    queries: Sequence[Query],
    memory: Neighbours,
    examination: Sequence[float],
    *,
    beginning: str,
) -> list[Tried]:
    """Train a copy of the beginning's policy by GRPO on what people click, and return what was tried."""
    app = street.app
    folder = app.home.run(run)
    copy_checkpoints(app.home.run(beginning), folder)
    environment, _ = environment_of(street, way, run, examination)
    remembered = Remembered(ShuffledWaitingRewards(environment) if way.shuffled else environment)
    learn_on(app, folder, street.shop.requests(run, queries, memory, hide_own=True), remembered, street.seed)
    return tried_of(remembered.rewards)


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


def _random_group(request: Request, offset: int, lists: int, random: np.random.Generator) -> Generation:
    """Return a group whose candidates point to random words of the prompt."""
    source = Position(topic=f"{request.run}.requests", partition=0, offset=offset)
    count = len(choices_of(request.context) or ())
    texts = []
    for _ in range(lists):
        size = int(random.integers(1, min(SUBSET_MAX, count) + 1)) if count else 0
        places = random.choice(count, size=size, replace=False).tolist() if size else []
        texts.append("".join(pointer(place + 1) for place in places))
    return Generation(
        group_id=group_id(request.run, source),
        request=request,
        source=source,
        policy=PolicyRef(lineage="random", step=0, sha256=""),
        tokenizer_sha256="",
        prompt_sha256="",
        sampling=Sampling(candidates=lists, temperature=1.0, tokens_max=SUBSET_MAX),
        prompt_token_ids=(),
        completions=tuple(Completion(text=text, token_ids=(), logprobs=(), finish="stop") for text in texts),
    )
