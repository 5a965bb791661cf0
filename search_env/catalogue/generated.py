"""A generated catalogue with the vocabulary gap that query expansion bridges: shoppers and titles use different words.

Every attribute value has a shopper's word and trade words. The shopper's word is in the attributes, and seldom in the
text. The trade words are in the titles; some belong to one brand. "waterproof" is sold as "HydraTex" by one brand and
as "SealedSeam" by another. A search for the shopper's word finds the few products whose text contains it, and their
common words are the bridge. One seeded generator draws everything: the same seed gives the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec

from search_env.catalogue.corpora import Document
from streams.descriptions import describe


class DemoSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The size of the catalogue and of its vocabulary gap."""

    products: Annotated[int, msgspec.Meta(ge=100, le=10_000_000), describe("Number of generated products.")] = 3000
    said_share: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe(
            "Share of products whose text contains the shopper's own word for a value. A smaller share makes "
            "search harder."
        ),
    ] = 0.2
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the catalogue and its queries.")] = 7


class Trait(NamedTuple):
    """One attribute: its key, and for each value the shopper's word and the trade words."""

    key: str
    values: dict[str, tuple[str, ...]]


class Kind(NamedTuple):
    """One product type: the shopper's word for it, the titles' words for it, and its traits."""

    shopper: str
    trade: tuple[str, ...]
    traits: tuple[str, ...]


TRAITS = {
    trait.key: trait
    for trait in (
        Trait(
            "colour",
            {
                "black": ("onyx", "jet", "midnight"),
                "white": ("ivory", "snowfield", "alabaster"),
                "red": ("crimson", "scarlet", "garnet"),
                "blue": ("cobalt", "navy", "lagoon"),
                "green": ("moss", "fern", "jade"),
                "grey": ("slate", "graphite", "pewter"),
                "brown": ("walnut", "umber", "cognac"),
                "yellow": ("saffron", "canary", "amber"),
            },
        ),
        Trait(
            "weather_protection",
            {
                "waterproof": ("hydratex", "sealedseam", "drymembrane"),
                "windproof": ("galestop", "stormshell"),
                "breathable": ("airmesh", "ventro"),
                "insulated": ("thermaloft", "downcore"),
            },
        ),
        Trait(
            "activity",
            {
                "hiking": ("trek", "summit", "trailhead"),
                "running": ("stride", "tempo", "marathon"),
                "cycling": ("peloton", "velo", "gravel"),
                "climbing": ("crag", "belay", "boulder"),
                "camping": ("bivouac", "basecamp", "campfire"),
                "office": ("executive", "commuter", "desk"),
            },
        ),
        Trait(
            "material",
            {
                "leather": ("nappa", "fullgrain", "suede"),
                "wool": ("merino", "lambswool"),
                "cotton": ("pima", "canvas"),
                "aluminium": ("alloy", "anodised"),
                "steel": ("inox", "tempered"),
                "bamboo": ("cane", "grasswood"),
                "plastic": ("polycarbonate", "resin"),
            },
        ),
        Trait(
            "power_source",
            {
                "rechargeable": ("lithium", "usbcell", "dockcharge"),
                "solar": ("sunfold", "photovolt"),
                "mains": ("plugin", "wallpower"),
                "manual": ("handcrank", "unpowered"),
            },
        ),
        Trait(
            "noise_level",
            {
                "quiet": ("whisper", "hush", "silentdrive"),
                "loud": ("turbo", "boost"),
                "silent": ("fanless", "zerodb"),
            },
        ),
        Trait(
            "user_group",
            {
                "children": ("junior", "mini", "playmate"),
                "women": ("femme", "ladyfit"),
                "men": ("homme", "gents"),
                "professional": ("pro", "studio", "workshop"),
                "beginner": ("starter", "easystart"),
            },
        ),
        Trait(
            "storage",
            {
                "foldable": ("flatpack", "collapse", "tuck"),
                "stackable": ("nest", "tower"),
                "wall-mounted": ("bracket", "rail"),
                "portable": ("carry", "roam", "takeaway"),
            },
        ),
        Trait(
            "care",
            {
                "washable": ("launder", "rinse"),
                "scratch-resistant": ("armourcoat", "hardface"),
                "stain-resistant": ("repel", "cleanguard"),
                "dishwasher-safe": ("rackwash", "cycleproof"),
            },
        ),
        Trait(
            "connection",
            {
                "wireless": ("bluelink", "cordless", "airpair"),
                "wired": ("tethered", "jackline"),
                "smart": ("appready", "homehub"),
            },
        ),
    )
}

KINDS = (
    Kind(
        "shoes",
        ("trainer", "sneaker", "footwear"),
        ("colour", "weather_protection", "activity", "material", "user_group"),
    ),
    Kind(
        "jacket", ("parka", "anorak", "shell"), ("colour", "weather_protection", "activity", "material", "user_group")
    ),
    Kind("backpack", ("rucksack", "daypack"), ("colour", "weather_protection", "activity", "storage", "user_group")),
    Kind("headphones", ("earset", "earphones"), ("colour", "connection", "power_source", "user_group", "storage")),
    Kind("lamp", ("luminaire", "lantern"), ("colour", "material", "power_source", "storage", "connection")),
    Kind("fan", ("ventilator", "blower"), ("colour", "noise_level", "power_source", "storage", "connection")),
    Kind("chair", ("seat", "recliner"), ("colour", "material", "activity", "storage", "care")),
    Kind("pan", ("skillet", "casserole"), ("colour", "material", "care", "user_group", "storage")),
    Kind("drill", ("driver", "borer"), ("noise_level", "power_source", "user_group", "connection", "material")),
    Kind("blanket", ("throw", "quilt"), ("colour", "material", "care", "user_group", "weather_protection")),
)

BRANDS = (
    "Aldor",
    "Brennex",
    "Calvik",
    "Dornay",
    "Elmstad",
    "Fjorna",
    "Gessler",
    "Halvorn",
    "Istrel",
    "Jorvig",
    "Kestner",
    "Lumeck",
)
FILLERS = ("edition", "series", "line", "set", "classic", "plus", "model", "range")


def demo_catalogue(settings: DemoSettings) -> Iterator[Document]:
    """Yield the products, in the order of their ids; each has a title, a short text, and metadata with attributes."""
    draw = random.Random(settings.seed)
    # Each brand always uses the same one of the trade words, so that no single word covers a value.
    habits = {
        (brand, key, value): draw.choice(words)
        for brand in BRANDS
        for key, trait in TRAITS.items()
        for value, words in trait.values.items()
    }
    for number in range(settings.products):
        kind, brand = draw.choice(KINDS), draw.choice(BRANDS)
        traits = draw.sample(kind.traits, k=min(len(kind.traits), draw.choice((3, 4, 4, 5))))
        attributes = {key: draw.choice(list(TRAITS[key].values)) for key in traits}
        words = [habits[brand, key, value] for key, value in attributes.items()]
        draw.shuffle(words)
        code = f"{brand[:2].upper()}{draw.randint(100, 999)}"
        noun = draw.choice(kind.trade)
        shown = words[: max(2, len(words) - 1)]
        title = " ".join([brand, *(word.capitalize() for word in shown), noun.capitalize(), code])
        said = [value for value in attributes.values() if draw.random() < settings.said_share]
        called = kind.shopper if draw.random() < settings.said_share else noun
        text = " ".join([draw.choice(FILLERS), *words[len(shown) :], *said, called, draw.choice(FILLERS)])
        yield Document(
            id=f"p{number:05d}",
            title=title,
            text=text,
            metadata={"brand": brand, "attributes": {"product_type": kind.shopper, **attributes}},
        )
