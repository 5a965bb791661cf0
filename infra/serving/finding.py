"""Finding the results of a search: raw, helped by a policy's words, or two of these interleaved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec

from infra.serving.offering import Offer, make_offer, may_serve
from infra.serving.service import Service, Wrong
from infra.serving.tail import Helped
from search_env.catalogue.corpora import Ranking
from search_env.serving.candidates import with_candidates
from search_env.serving.choosing import RAW, Chosen, choose, hashed_share
from search_env.serving.routing import RouteAction, Routes, below, shown_as
from search_env.serving.team_draft import interleave
from streams.clock import now_ms

Words = tuple[str, ...]
AUTO = "auto"
NOT_CHOSEN = Chosen(RAW, None, {})


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a search. teams: of an interleaved list, the policy of each result. seconds: of the engine.

    routes: of each version with an answer, what it may show for this query; see `Impression`.
    """

    ids: list[str]
    scores: list[float]
    choice: Chosen
    words: Words
    teams: tuple[str, ...]
    seconds: float
    routes: dict[str, str] = {}


async def find(service: Service, query: str, *, size: int, impression_id: str, person: str, helped: object) -> Found:
    """Search, with what a query is answered with. helped: "auto", "raw", or a version that has answered the query.

    person: the client's name in the log; "" for nobody. On a ramp one person always gets the same side, and no list is
    interleaved: a mixed list would belong to neither side.

    Raises Wrong for another `helped`, EngineUnavailable or RetrievalError from the engine.
    """
    by_policy = await _ready_words(service, query, helped)
    began = time.perf_counter()
    if helped != AUTO:
        choice, words = _asked_for(by_policy, helped)
        found = await _ranking(service, query, words, "helped", size=size)
        return _found(found, choice, words, {}, began)
    offer = _offer(service, query, by_policy, size)
    routes = shown_as(offer.routes)
    if offer.rivals and hashed_share("interleave", impression_id) < service.settings.interleave:
        return await _interleaved(service, query, by_policy, offer, size=size, impression_id=impression_id)
    choice, words = _draw(service, query, by_policy, offer, impression_id, person)
    found = await _ranking(
        service, query, words, offer.action(choice.policy).action, size=size, routes=_routes(service, choice.policy)
    )
    return _found(found, choice, words, routes, began)


async def choose_words(service: Service, query: str, impression_id: str, helped: object) -> tuple[Chosen, Words]:
    """Return the words that a query is answered with. helped: as in `find`.

    Where a version may stand only below raw results, the raw query serves: the words alone cannot say that.
    """
    by_policy = await _ready_words(service, query, helped)
    if helped != AUTO:
        return _asked_for(by_policy, helped)
    return _draw(service, query, by_policy, _offer(service, query, by_policy, None), impression_id, "")


async def _interleaved(
    service: Service,
    query: str,
    by_policy: Mapping[str, Words],
    offer: Offer,
    *,
    size: int,
    impression_id: str,
) -> Found:
    """Interleave two of the raw results and the versions' results; the impression's id chooses the pair."""
    names = [RAW, *offer.rivals]
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    pair = pairs[int(hashed_share("pair", impression_id) * len(pairs))]
    began = time.perf_counter()
    rankings = await asyncio.gather(
        *(
            _ranking(
                service,
                query,
                by_policy.get(name, ()),
                offer.action(name).action,
                size=size,
                routes=_routes(service, name),
            )
            for name in pair
        )
    )
    by_name = dict(zip(pair, rankings, strict=True))
    scores = {name: dict(zip(found.ids, found.scores, strict=True)) for name, found in by_name.items()}
    ids, teams = interleave(
        {name: found.ids for name, found in by_name.items()}, size=size, impression_id=impression_id
    )
    shown = Ranking(ids=ids, scores=[scores[team][name] for name, team in zip(ids, teams, strict=True)])
    return _found(shown, NOT_CHOSEN, (), shown_as(offer.routes), began, tuple(teams))


async def _ranking(
    service: Service, query: str, words: Words, action: RouteAction, *, size: int, routes: Routes | None = None
) -> Ranking:
    """Return the results with a version's words: alone, or as the version's routes say, below the first raw ones."""
    if action != "below" or not words or routes is None:
        return await service.searcher.search(query, words, size=size)
    raw, helped = await asyncio.gather(
        service.searcher.search(query, (), size=size),
        service.searcher.search(query, words, size=size, terms_min=routes.terms_min),
    )
    scores = dict(zip(helped.ids, helped.scores, strict=True)) | dict(zip(raw.ids, raw.scores, strict=True))
    ids = below(raw.ids, helped.ids, top=routes.top, size=size)
    return Ranking(ids=ids, scores=[scores[name] for name in ids])


def _found(
    ranking: Ranking,
    choice: Chosen,
    words: Words,
    routes: dict[str, str],
    began: float,
    teams: tuple[str, ...] = (),
) -> Found:
    return Found(
        ids=ranking.ids,
        scores=ranking.scores,
        choice=choice,
        words=words,
        teams=teams,
        seconds=time.perf_counter() - began,
        routes=routes,
    )


async def _ready_words(service: Service, query: str, helped: object) -> Mapping[str, Words]:
    """Return the words for a query by policy: the ready ones, and the policy's own if they come in time.

    Nobody waits for a version that may not serve. With `serve.shadow` its process is asked all the same.
    """
    by_policy: Mapping[str, Words] = service.policies.answers.of(query)
    policies, settings = service.policies, service.settings
    tail = policies.tail
    if tail is not None and tail.policy not in by_policy and helped in (AUTO, tail.policy):
        words = tail.known(query)
        found = None if words is None else Helped(tail.policy, words)
        if found is None:
            gate = may_serve(tail.policy, ramp=policies.ramp, routers=policies.routers, settings=settings)
            if gate or helped == tail.policy:
                found = await tail.ask(query, budget_seconds=settings.tail_budget_ms / 1000)
            elif settings.shadow > 0:
                tail.ask_aside(query)
        if found is not None:
            by_policy = {**by_policy, found.policy: found.words}
    return by_policy


def _offer(service: Service, query: str, by_policy: Mapping[str, Words], size: int | None) -> Offer:
    policies = service.policies
    available = {policy for policy, words in by_policy.items() if words}
    return make_offer(
        query, available, ramp=policies.ramp, routers=policies.routers, settings=service.settings, size=size
    )


def _routes(service: Service, version: str) -> Routes | None:
    router = service.policies.routers.get(version)
    return router.routes if router is not None else None


def _draw(
    service: Service, query: str, by_policy: Mapping[str, Words], offer: Offer, impression_id: str, person: str
) -> tuple[Chosen, Words]:
    """Draw among the offer's choices, and among the candidates of groups that wait for people who ask this query.

    While a version is on its ramp, no candidate is shown: nothing else may change what a person sees.
    """
    if offer.ramping:
        choice = choose(f"{offer.ramping} {person}" if person else impression_id, offer.offered)
        return choice, by_policy.get(choice.policy, ())
    candidates = service.policies.open_groups.of(query, at_ms=now_ms())
    choice = choose(impression_id, with_candidates(offer.offered, candidates, share=service.settings.candidates_share))
    return choice, candidates.get(choice.policy) or by_policy.get(choice.policy, ())


def _asked_for(by_policy: Mapping[str, Words], helped: object) -> tuple[Chosen, Words]:
    """Return what a request asks for by name. Raises Wrong if there is no such answer."""
    if helped == "raw":
        return Chosen(RAW, 1.0, {RAW: 1.0}), ()
    if helped not in by_policy:
        known = ", ".join(sorted(by_policy)) or "none yet"
        raise Wrong(404, f"helped: auto, raw, or a version that has answered this query ({known})", str(helped)[:100])
    return Chosen(str(helped), 1.0, {str(helped): 1.0}), by_policy[str(helped)]
