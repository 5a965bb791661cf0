"""One world: its days, its arms, and what people would have clicked under each arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from infra.app.app import App
from infra.simulating.world import WorldSettings, asked, days
from search_env.catalogue.corpora import Query
from search_env.engine.searching import ExpandedQuery
from search_env.leser.neighbours import Neighbours
from streams.events import Request, Reward
from tests.drift.arms import copy_checkpoints, learn_on, restart, try_words, untaught, written
from tests.drift.people import PeopleEnvironment, Tried, expected_clicks, lessons_of, search
from tests.drift.shop import Remembering, Shop, opened

LOOK_UP_COUNTS = (1, 2, 3, 4, 6, 8)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes.

    searches: served in a day, in so many parts. updates: of the policy without pause, after each part. people: who see
    each candidate's results. relearned: batches of the log that a
    night learns from. first: updates on the first day, before anything is measured. tried: searches whose results
    people see with random words before that. words: that the log's lesson for a query keeps.
    """

    days: int = 6
    searches: int = 150
    parts: int = 3
    updates: int = 2
    people: int = 24
    first: int = 48
    tried: int = 900
    relearned: int = 48
    words: int = 6


class WorldResult(msgspec.Struct, frozen=True, kw_only=True):
    """What people would have clicked, per search, in expectation: {arm: [a number for each day]}. "best" knows all."""

    world: WorldSettings
    clicks: dict[str, list[float]]
    words_of_look_up: int


def run_world(app: App, name: str, world: WorldSettings, plan: Plan) -> WorldResult:
    """Live through a world with all arms."""
    seed = world.seed
    embedder = Remembering(app.settings.embedding)
    runs = {arm: app.home.run(f"{name}-{arm}") for arm in ("beginning", "frozen", "restarted", "pause")}
    batch = app.settings.batch.groups
    tried: list[list[Tried]] = []
    log: list[list[list[Reward]]] = []
    requests: list[Request] = []

    def memory_of() -> Neighbours:
        lessons = [each for each in lessons_of(tried, words_max=plan.words) if each.words]
        return Neighbours(lessons, embedder, app.settings.neighbours)

    def learn(shop: Shop, queries: Sequence[Query], memory: Neighbours, number: int) -> None:
        environment = PeopleEnvironment(shop.searcher, shop.day.grades, people=plan.people, seed=seed * 1_000 + number)
        requests.extend(shop.requests(runs["pause"].name, queries, memory))
        learn_on(app, runs["pause"], requests, environment, seed)
        tried[-1] += environment.tried
        log[-1] += [environment.rewards[start : start + batch] for start in range(0, len(environment.rewards), batch)]

    passing = days(world)
    today = next(passing)
    with opened(app, name, today) as shop:
        queries = asked(today, plan.tried, seed)
        tried.append(try_words(shop, queries, people=plan.people, seed=seed))
        log.append([])
        first = memory_of()
        untaught(app, runs["beginning"], shop, first, seed)
        copy_checkpoints(runs["beginning"], runs["pause"])
        learn(shop, asked(today, plan.first * batch, seed + 1), first, 0)
        copy_checkpoints(runs["pause"], runs["frozen"])
        copy_checkpoints(runs["pause"], runs["restarted"])
        count = _best_count(shop, first, asked(today, plan.searches, seed + 2))
    newest = night = first = memory_of()
    clicks: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(1, plan.days + 1):
        today = next(passing)
        tried.append([])
        log.append([])
        with opened(app, name, today) as shop:
            served: defaultdict[str, list[float]] = defaultdict(list)
            size = plan.searches // plan.parts
            for part in range(plan.parts):
                queries = asked(today, size, seed * 100_000 + number * 100 + part)
                texts = [query.text for query in queries]
                old, last, new = (shop.requests(name, queries, each) for each in (first, night, newest))
                words: dict[str, list[tuple[str, ...]]] = {
                    "raw": [()] * size,
                    "look-up each night": night.words(texts, count=count),
                    "look-up without pause": newest.words(texts, count=count),
                    "frozen": written(app, runs["frozen"], old, seed),
                    "frozen, look-up without pause": written(app, runs["frozen"], new, seed),
                    "restarted each night": written(app, runs["restarted"], last, seed),
                    "without pause": written(app, runs["pause"], new, seed),
                }
                for arm, values in _clicks(shop, queries, words).items():
                    served[arm] += values
                learn(shop, queries[: plan.updates * batch], newest, number * 10 + part)
                newest = memory_of()
            for arm, values in served.items():
                clicks[arm].append(float(np.mean(values)))
        night = newest
        restart(app, runs["beginning"], runs["restarted"], [each for day in log for each in day][-plan.relearned :])
        said = ", ".join(f"{arm} {values[-1]:.3f}" for arm, values in clicks.items())
        print(f"{name} day {number}: {said}", flush=True)
    return WorldResult(world=world, clicks=dict(clicks), words_of_look_up=count)


def _clicks(shop: Shop, queries: Sequence[Query], words: dict[str, list[tuple[str, ...]]]) -> dict[str, list[float]]:
    """Return the expected clicks of each search by arm, and of the best of raw and all of today's sellers' words."""
    known = words | {"all words": [shop.day.words[query.id] for query in queries]}
    wanted = [
        ExpandedQuery(query.text, tuple(said)) for of in known.values() for query, said in zip(queries, of, strict=True)
    ]
    rankings = search(shop.searcher, wanted)
    found = {
        arm: [
            expected_clicks(rankings[ExpandedQuery(query.text, tuple(said))].ids, shop.day.grades[query.id])
            for query, said in zip(queries, of, strict=True)
        ]
        for arm, of in known.items()
    }
    found["best"] = [max(values) for values in zip(*found.values(), strict=True)]
    del found["all words"]
    return found


def _best_count(shop: Shop, memory: Neighbours, queries: Sequence[Query]) -> int:
    """Return the number of words with which the look-up is best on the first day, by the hidden truth."""
    texts = [query.text for query in queries]
    found = _clicks(shop, queries, {str(count): memory.words(texts, count=count) for count in LOOK_UP_COUNTS})
    return max(LOOK_UP_COUNTS, key=lambda count: float(np.mean(found[str(count)])))
