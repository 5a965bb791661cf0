"""Routes: which parts of the queries a version may serve, and how. Elsewhere people get raw results. All of it is pure.

A part is told from the query alone, before anything is searched: by the words that training asked, by the number of
words, by how often people ask, or by the category of the products whose texts use its words. A query of a part without
evidence is raw.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Literal

import msgspec

from search_env.catalogue.analysis import plain_words
from search_env.serving.categories import category_of
from streams.descriptions import describe

By = Literal["all", "known", "words", "traffic", "category"]
RouteAction = Literal["raw", "below", "helped"]
Phase = Literal["exploring", "serving"]
SHORT_WORDS = 2
HEAD_SEARCHES = 20


class RouteSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the rule by which a version serves some parts of the queries and not others."""

    by: Annotated[
        By,
        describe(
            'How queries are parted: "known" (whether training asked all words), "words" (at most two, or more), '
            '"traffic" (at least 20 searches, or fewer), "category" (of products with their words), or "all".'
        ),
    ] = "words"
    category_field: Annotated[
        str,
        describe(
            'Attribute of documents that holds the category, for by = "category". Empty: the first of product_type, '
            "category and type that a document has."
        ),
    ] = ""
    categories_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=100),
        describe("Categories that are told apart, the most common ones. More need more evidence: they share alpha."),
    ] = 6
    protect: Annotated[str, describe("Measure in which people must lose nothing, as `evaluate` names it.")] = "nDCG@10"
    gain: Annotated[
        str, describe("Measure that must gain where a version's results stand below the first raw ones.")
    ] = "R@100"
    top: Annotated[
        int,
        msgspec.Meta(ge=1, le=1_000),
        describe("Number of raw results that stay first where a version's results stand below them."),
    ] = 10
    # A recipe may search a query of one word as it is, because a version's words harm its first results. Below them the
    # words harm nothing: on half of icecat's human queries five gain R@100 with them, three without, and none loses.
    terms_min: Annotated[
        int,
        msgspec.Meta(ge=1, le=10),
        describe(
            "Least number of different terms in a query that gets a version's results below the first raw ones. "
            "`retrieval.expanded_terms_min` is that of all other searches."
        ),
    ] = 1
    loss_max: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe("Loss in the protected measure that a part may have. 0 asks for a proven gain."),
    ] = 0.0
    alpha: Annotated[
        float,
        msgspec.Meta(gt=0, lt=0.5),
        describe("Probability that a version without gain serves any part: it is shared among all comparisons."),
    ] = 0.05
    shared_queries: Annotated[
        float,
        msgspec.Meta(ge=0, le=10_000),
        describe("Weight of all queries' mean gain in that of a part, in queries. Small parts lean on the others."),
    ] = 10.0


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A mean gain over raw results: of a part's own queries, and shrunk towards all queries with one-sided bounds."""

    own: float
    value: float
    low: float
    high: float


class PartGains(msgspec.Struct, frozen=True, kw_only=True):
    """The gains over raw results that one source of evidence has for one part of the queries.

    queries: judged ones, or searches in a log. protect, gain: of a version's results, in the two measures. below: of
    the first raw results with a version's below them, in `gain`. below_protect: the same in `protect`, own mean.
    """

    queries: int
    protect: Bound
    gain: Bound
    below: Bound
    below_protect: float = 0.0


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the queries. action: what the evidence allows. explored: what a small share may see, to learn more.

    seen: the evidence by source: "log" (people's actions), "judged" (a user's queries) or "dev" (made ones).
    """

    action: RouteAction
    explored: RouteAction
    seen: dict[str, PartGains] = {}


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """A version's routes, as the server reads them.

    terms_min: as in `RouteSettings`; None, in an older file, is the run's `retrieval.expanded_terms_min`.
    known: words that training asked, for parts by "known". head: queries that people ask often, for parts by "traffic".
    categories: the category of each word that has one, for parts by "category". queries: number of the judged queries
    behind it; queries_sha256: of them and their judgments. evidence: figures of the gate. status: a withdrawn version
    serves nobody.
    """

    version: str
    by: By
    top: Annotated[int, msgspec.Meta(ge=1)]
    parts: dict[str, Part]
    terms_min: int | None = None
    known: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    categories: dict[str, str] = {}
    queries: int = 0
    queries_sha256: str = ""
    evidence: dict[str, float] = {}
    status: Literal["admitted", "withdrawn"] = "admitted"
    made_at_ms: int = 0


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """A query's part, and how a version may answer it."""

    part: str
    action: RouteAction

    def __str__(self) -> str:
        return f"{self.part}: {self.action}"


def part_of(
    query: str,
    by: By,
    *,
    known: Collection[str] = (),
    head: Collection[str] = (),
    categories: Mapping[str, str] | None = None,
) -> str:
    """Return the name of a query's part."""
    if by == "category":
        return category_of(query, categories or {})
    plain = plain_words(query)
    words = plain.split()
    if by == "known":
        return "known words" if words and all(word in known for word in words) else "new words"
    if by == "words":
        return "short" if len(words) <= SHORT_WORDS else "long"
    if by == "traffic":
        return "head" if plain in head else "tail"
    return "all"


class Router:
    """Looks queries up in a version's routes."""

    def __init__(self, routes: Routes) -> None:
        self.routes = routes
        self._known, self._head = frozenset(routes.known), frozenset(routes.head)

    def route(self, query: str, phase: Phase) -> Routed:
        """Return how the version may answer a query; raw if nothing is known about the query's part."""
        name = part_of(query, self.routes.by, known=self._known, head=self._head, categories=self.routes.categories)
        part = self.routes.parts.get(name)
        if part is None or self.routes.status == "withdrawn":
            return Routed(part=name, action="raw")
        return Routed(part=name, action=part.action if phase == "serving" else part.explored)


def below(raw: Sequence[str], helped: Sequence[str], *, top: int, size: int) -> list[str]:
    """Return the first `top` raw results, then helped and raw ones in turn, each once.

    In turn, because helped results alone push out raw ones that were right.
    """
    first = set(raw[:top])
    mixed = (name for pair in zip_longest((name for name in helped if name not in first), raw[top:]) for name in pair)
    return [name for name in dict.fromkeys([*raw[:top], *mixed]) if name is not None][:size]


def explored(base: str, versions: Collection[str], *, epsilon: float) -> dict[str, float]:
    """Return the probability of each choice while versions are explored: each gets the floor, the base the rest.

    base: what people get now, "" for raw results. The floor is epsilon / n for n choices, as in `probabilities`.
    """
    names = sorted({base, *versions})
    floor = epsilon / len(names)
    return {name: 1 - floor * (len(names) - 1) if name == base else floor for name in names}


def shown_as(routes: Mapping[str, Routed]) -> dict[str, str]:
    """Return routes by version as an impression logs them."""
    return {version: str(route) for version, route in sorted(routes.items())}
