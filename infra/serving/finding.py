"""Finding the results of a search: raw, helped by a policy's words, or two of these interleaved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec

from infra.serving.service import Service, Wrong
from infra.serving.tail import Helped
from search_env.serving.candidates import with_candidates
from search_env.serving.choosing import RAW, Chosen, choose, hashed_share, probabilities
from search_env.serving.ramp import offered_by
from search_env.serving.team_draft import interleave
from streams.clock import now_ms

Words = tuple[str, ...]
AUTO = "auto"
NOT_CHOSEN = Chosen(RAW, None, {})


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a search. teams: of an interleaved list, the policy of each result. seconds: of the engine."""

    ids: list[str]
    scores: list[float]
    choice: Chosen
    words: Words
    teams: tuple[str, ...]
    seconds: float


async def find(service: Service, query: str, *, size: int, impression_id: str, person: str, helped: object) -> Found:
    """Search, with what a query is answered with. helped: "auto", "raw", or a version that has answered the query.

    person: the client's name in the log; "" for nobody. On a ramp one person always gets the same side.

    Raises Wrong for another `helped`, EngineUnavailable or RetrievalError from the engine.
    """
    by_policy = await _ready_words(service, query, helped)
    rivals = sorted(policy for policy, words in by_policy.items() if words)
    if helped == AUTO and rivals and hashed_share("interleave", impression_id) < service.settings.interleave:
        return await _interleaved(service, query, by_policy, rivals, size=size, impression_id=impression_id)
    choice, words = _drawn(service, query, by_policy, impression_id, helped, person)
    began = time.perf_counter()
    ranking = await service.searcher.search(query, words, size=size)
    seconds = time.perf_counter() - began
    return Found(ids=ranking.ids, scores=ranking.scores, choice=choice, words=words, teams=(), seconds=seconds)


async def _interleaved(
    service: Service,
    query: str,
    by_policy: Mapping[str, Words],
    rivals: list[str],
    *,
    size: int,
    impression_id: str,
) -> Found:
    """Interleave two of the raw results and the versions' results; the impression's id chooses the pair."""
    names = [RAW, *rivals]
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    pair = pairs[int(hashed_share("pair", impression_id) * len(pairs))]
    began = time.perf_counter()
    rankings = await asyncio.gather(
        *(service.searcher.search(query, by_policy.get(name, ()), size=size) for name in pair)
    )
    seconds = time.perf_counter() - began
    by_name = dict(zip(pair, rankings, strict=True))
    scores = {name: dict(zip(found.ids, found.scores, strict=True)) for name, found in by_name.items()}
    ids, teams = interleave(
        {name: found.ids for name, found in by_name.items()}, size=size, impression_id=impression_id
    )
    return Found(
        ids=ids,
        scores=[scores[team][name] for name, team in zip(ids, teams, strict=True)],
        choice=NOT_CHOSEN,
        words=(),
        teams=tuple(teams),
        seconds=seconds,
    )


async def choose_words(service: Service, query: str, impression_id: str, helped: object) -> tuple[Chosen, Words]:
    """Return what a query is answered with. helped: "auto", "raw", or the name of a version that has answered it."""
    by_policy = await _ready_words(service, query, helped)
    return _drawn(service, query, by_policy, impression_id, helped, "")


async def _ready_words(service: Service, query: str, helped: object) -> Mapping[str, Words]:
    """Return the words for a query by policy: the ready ones, and the policy's own if they come in time."""
    by_policy: Mapping[str, Words] = service.policies.answers.of(query)
    tail = service.policies.tail
    if tail is not None and tail.policy not in by_policy and helped in (AUTO, tail.policy):
        words = tail.known(query)
        found = None if words is None else Helped(tail.policy, words)
        if found is None:
            found = await tail.ask(query, budget_seconds=service.settings.tail_budget_ms / 1000)
        if found is not None:
            by_policy = {**by_policy, found.policy: found.words}
    return by_policy


def _drawn(
    service: Service, query: str, by_policy: Mapping[str, Words], impression_id: str, helped: object, person: str
) -> tuple[Chosen, Words]:
    if helped == "raw":
        return Chosen(RAW, 1.0, {RAW: 1.0}), ()
    if helped != AUTO:
        if helped not in by_policy:
            known = ", ".join(sorted(by_policy)) or "none yet"
            raise Wrong(
                404, f"helped: auto, raw, or a version that has answered this query ({known})", str(helped)[:100]
            )
        return Chosen(str(helped), 1.0, {str(helped): 1.0}), by_policy[str(helped)]
    ramp = service.policies.ramp
    # While a version is on its ramp, nothing else may change what a person sees.
    ramping = ramp is not None and ramp.status in ("ramping", "held")
    candidates = {} if ramping else service.policies.open_groups.of(query, at_ms=now_ms())
    drawn_by = impression_id
    if ramp is not None:
        offered = offered_by(ramp, {policy for policy, words in by_policy.items() if words})
        drawn_by = f"{ramp.version} {person}" if person and not candidates else impression_id
    else:
        preference = service.settings.preference
        scores = {RAW: 0.0, **{policy: preference for policy, words in by_policy.items() if words}}
        offered = probabilities(scores, epsilon=service.settings.epsilon, temperature=service.settings.temperature)
    choice = choose(drawn_by, with_candidates(offered, candidates, share=service.settings.candidates_share))
    return choice, candidates.get(choice.policy) or by_policy.get(choice.policy, ())
