"""The offer to one search: which choices it has, with their probabilities, by gate, ramp and routes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from search_env.serving.choosing import RAW, probabilities
from search_env.serving.ramp import Ramp, offered_by, took_back
from search_env.serving.routing import Phase, Routed, Router, explored
from search_env.serving.settings import ServeSettings

EVERYWHERE = Routed(part="all", action="helped")


class Offer(NamedTuple):
    """The choices of a search. routes: of each version that has an answer and routes.

    ramping: the version that is on its ramp; its name and the person's seed the draw. "" for an impression's own draw.
    """

    offered: dict[str, float]
    routes: dict[str, Routed]
    ramping: str = ""

    @property
    def rivals(self) -> list[str]:
        """Return the versions that may be interleaved; none while a ramp is under way, whose sides must stay whole."""
        return [] if self.ramping else sorted(set(self.offered) - {RAW})

    def action(self, version: str) -> Routed:
        """Return how a version's results are shown."""
        return self.routes.get(version, EVERYWHERE)


def make_offer(
    query: str,
    available: Collection[str],
    *,
    ramp: Ramp | None,
    routers: Mapping[str, Router],
    settings: ServeSettings,
    size: int | None,
) -> Offer:
    """Return what a search is offered. available: versions with words for the query. size: of the list; None: unknown.

    A version serves only after its gate: on its ramp, or admitted, at the floor of `serve.epsilon`. With
    `serve.ungated`, every available version is offered.
    """
    under_way = ramp is not None and ramp.status in ("ramping", "held")
    if settings.ungated:
        if ramp is not None:
            return Offer(offered_by(ramp, set(available)), {}, ramp.version if under_way else "")
        scores = {RAW: 0.0, **dict.fromkeys(available, settings.preference)}
        return Offer(probabilities(scores, epsilon=settings.epsilon, temperature=settings.temperature), {})
    promoted = set(promoted_by(ramp))
    routes: dict[str, Routed] = {}
    shown = set()
    for version in sorted(available):
        router = routers.get(version)
        if router is None:
            shown |= {version} & promoted  # A ramp without routes, of a home that had none yet.
            continue
        phase: Phase = "serving" if version in promoted else "exploring"
        route = _within(router, query, phase, size)
        if took_back(ramp, version, router.routes.made_at_ms):
            route = Routed(part=route.part, action="raw")
        routes[version] = route
        if route.action != "raw":
            shown.add(version)
    if under_way:
        assert ramp is not None
        return Offer(offered_by(ramp, shown & promoted), routes, ramp.version)
    base = next((name for name in promoted_by(ramp) if name in shown), RAW)
    newcomers = shown - promoted if settings.epsilon > 0 else set()
    return Offer(explored(base, newcomers, epsilon=settings.epsilon), routes)


def may_serve(version: str, *, ramp: Ramp | None, routers: Mapping[str, Router], settings: ServeSettings) -> bool:
    """Return whether a version may answer any search now, so that it is worth to wait for its words."""
    routes = routers[version].routes if version in routers else None
    admitted = routes is not None and routes.status == "admitted" and not took_back(ramp, version, routes.made_at_ms)
    return settings.ungated or admitted or version in promoted_by(ramp)


def promoted_by(ramp: Ramp | None) -> tuple[str, ...]:
    """Return the versions that a ramp brings to people, the newer one first; a version that is rolled back is none."""
    if ramp is None:
        return ()
    versions = (ramp.before,) if ramp.status == "rolled back" else (ramp.version, ramp.before)
    return tuple(version for version in versions if version != RAW)


def _within(router: Router, query: str, phase: Phase, size: int | None) -> Routed:
    """Return a query's route for a list of this size: if the raw results fill the list, it is raw."""
    route = router.route(query, phase)
    if route.action == "below" and (size is None or size <= router.routes.top):
        return Routed(part=route.part, action="raw")
    return route
