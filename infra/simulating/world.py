"""A world that changes from day to day: new products, new words for old things, and demand that moves.

Products and shoppers' words are those of the generated catalogue (`search_env/catalogue/generated.py`). Day after day,
some products are replaced by new ones, some brands take a new word for an attribute value, and some of the things that
people search for change places in popularity. One seed draws everything, so all arms of a comparison live in the same
world. Nothing that learns may read `Day.grades` or `Day.words`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Annotated, NamedTuple

import msgspec

from search_env.catalogue.corpora import Document, Qrels, Query
from search_env.catalogue.generated import BRANDS, FILLERS, KINDS, TRAITS, Kind

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]

SAID_SHARE = 0.2
ZIPF = 0.8  # Exponent of the popularity of queries by rank.
SYLLABLES = ("ba", "do", "fe", "gri", "ka", "lu", "mo", "ne", "pra", "ro", "sti", "ta", "vel", "wi", "xo", "zu")
RELEVANT_MIN = 3


class WorldSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The size of the world, and the shares of it that change in a day.

    products: at any time. replaced: of the products, by new ones. renamed: of the words that brands use for attribute
    values, by made-up ones that nobody has used before. moved: of the queries, which exchange their popularity.
    """

    products: Count = 1_500
    replaced: Share = 0.0
    renamed: Share = 0.0
    moved: Share = 0.0
    seed: int = 0


class Day(NamedTuple):
    """The world on one day.

    grades: the hidden relevance of products, by query id. words: all words that the products' sellers use now for what
    a query asks, by query id. popularity: how often each query is asked, in any unit, in the queries' order.
    """

    documents: list[Document]
    queries: list[Query]
    popularity: list[float]
    grades: Qrels
    words: dict[str, tuple[str, ...]]


class _Product(NamedTuple):
    """The part of a product that stays the same for as long as it is sold."""

    id: str
    kind: Kind
    brand: str
    attributes: dict[str, str]
    shown: int
    said: tuple[str, ...]
    called: str
    noun: str
    code: str
    fillers: tuple[str, str]


class _Intent(NamedTuple):
    """The wish behind a query: a kind of product and two attribute values."""

    query: Query
    kind: Kind
    wanted: tuple[tuple[str, str], tuple[str, str]]


def days(settings: WorldSettings) -> Iterator[Day]:
    """Yield one day after the other, for ever. The first day is the generated catalogue's own."""
    draw = random.Random(settings.seed)
    habits = {
        (brand, key, value): draw.choice(words)
        for brand in BRANDS
        for key, trait in TRAITS.items()
        for value, words in trait.values.items()
    }
    used = {word for trait in TRAITS.values() for words in trait.values.values() for word in words}
    products = [_new_product(number, draw) for number in range(settings.products)]
    born = settings.products
    intents = _intents()
    popularity = [(rank + 1) ** -ZIPF for rank in range(len(intents))]
    draw.shuffle(popularity)
    while True:
        yield _day(products, habits, intents, popularity)
        for place in draw.sample(range(len(products)), round(settings.replaced * len(products))):
            products[place] = _new_product(born, draw)
            born += 1
        for key in draw.sample(sorted(habits), round(settings.renamed * len(habits))):
            habits[key] = _new_word(used, draw)
        places = draw.sample(range(len(intents)), round(settings.moved * len(intents)))
        for place, value in zip(places, draw.sample([popularity[p] for p in places], len(places)), strict=True):
            popularity[place] = value


def asked(day: Day, count: int, seed: int) -> list[Query]:
    """Return the searches of a day in their order: queries drawn by their popularity, among those with products."""
    known = [place for place, query in enumerate(day.queries) if query.id in day.grades]
    weights = [day.popularity[place] for place in known]
    return [day.queries[place] for place in random.Random(seed).choices(known, weights=weights, k=count)]


def _intents() -> list[_Intent]:
    found = []
    for kind in KINDS:
        for one, other in combinations(kind.traits, 2):
            for first, second in product(TRAITS[one].values, TRAITS[other].values):
                text = f"{first} {second} {kind.shopper}"
                query = Query(
                    id="w-" + text.replace(" ", "-"),
                    text=text,
                    metadata={"attributes": [[one, first], [other, second]]},
                )
                found.append(_Intent(query, kind, ((one, first), (other, second))))
    return found


def _new_product(number: int, draw: random.Random) -> _Product:
    kind, brand = draw.choice(KINDS), draw.choice(BRANDS)
    traits = draw.sample(kind.traits, k=min(len(kind.traits), draw.choice((3, 4, 4, 5))))
    attributes = {key: draw.choice(list(TRAITS[key].values)) for key in traits}
    noun = draw.choice(kind.trade)
    return _Product(
        id=f"p{number:06d}",
        kind=kind,
        brand=brand,
        attributes=attributes,
        shown=max(2, len(attributes) - 1),
        said=tuple(value for value in attributes.values() if draw.random() < SAID_SHARE),
        called=kind.shopper if draw.random() < SAID_SHARE else noun,
        noun=noun,
        code=f"{brand[:2].upper()}{draw.randint(100, 999)}",
        fillers=(draw.choice(FILLERS), draw.choice(FILLERS)),
    )


def _new_word(used: set[str], draw: random.Random) -> str:
    while (word := "".join(draw.choice(SYLLABLES) for _ in range(3))) in used:
        pass
    used.add(word)
    return word


def _day(
    products: Sequence[_Product],
    habits: dict[tuple[str, str, str], str],
    intents: Sequence[_Intent],
    popularity: Sequence[float],
) -> Day:
    holders: dict[tuple[str, str, str], set[str]] = {}
    for each in products:
        for key, value in each.attributes.items():
            holders.setdefault((each.kind.shopper, key, value), set()).add(each.id)
    grades: Qrels = {}
    words: dict[str, tuple[str, ...]] = {}
    for intent in intents:
        one, other = (holders.get((intent.kind.shopper, *wanted), set()) for wanted in intent.wanted)
        if len(relevant := sorted(one & other)) >= RELEVANT_MIN:
            grades[intent.query.id] = dict.fromkeys(relevant, 1)
            words[intent.query.id] = tuple(
                dict.fromkeys(habits[brand, *wanted] for wanted in intent.wanted for brand in BRANDS)
            )
    return Day(
        documents=[_document(each, habits) for each in products],
        queries=[intent.query for intent in intents],
        popularity=list(popularity),
        grades=grades,
        words=words,
    )


def _document(each: _Product, habits: dict[tuple[str, str, str], str]) -> Document:
    words = [habits[each.brand, key, value] for key, value in each.attributes.items()]
    title = " ".join(
        [each.brand, *(word.capitalize() for word in words[: each.shown]), each.noun.capitalize(), each.code]
    )
    text = " ".join([each.fillers[0], *words[each.shown :], *each.said, each.called, each.fillers[1]])
    return Document(
        id=each.id,
        title=title,
        text=text,
        metadata={"brand": each.brand, "attributes": {"product_type": each.kind.shopper, **each.attributes}},
    )
