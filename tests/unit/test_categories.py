"""The category of a query, from the words of the catalogue: by hand, with hostile names, and in a version's routes."""

from __future__ import annotations

import msgspec
import pytest

from infra.app.settings import Settings
from infra.promotion.evidence import routes_with_log
from infra.promotion.held_out import HeldOutRuns, judge_version
from infra.serving.offering import make_offer
from search_env.catalogue.corpora import Document
from search_env.serving.categories import NAME_CHARACTERS_MAX, OTHER, category_of, learn_categories
from search_env.serving.ramp import RampSettings
from search_env.serving.routing import Part, Router, Routes, RouteSettings, part_of, shown_as
from search_env.serving.settings import ServeSettings
from storage.offpolicy.reading import parts_of
from tests.unit.test_logged_traffic import GOOD, simulated

VERSION = "1-new-000001"


def product(number: int, title: str, category: object, field: str = "product_type") -> Document:
    return Document(id=f"d{number}", title=title, text="", metadata={"attributes": {field: category}})


def shop() -> list[Document]:
    """Six mugs, six lamps, one kettle; "red" is said of all kinds, "handle" nearly only of mugs."""
    found = [product(n, f"red mug handle {n}", "Mug") for n in range(6)]
    found += [product(10 + n, f"red lamp {'handle' if n == 0 else 'bulb'} {n}", "Lamp") for n in range(6)]
    return [*found, product(20, "red kettle", "Kettle")]


def test_a_word_has_the_category_of_most_products_that_use_it() -> None:
    found = learn_categories(shop(), field="", count=6)
    assert found["mug"] == found["handl"] == "mug", "six of seven"
    assert found["lamp"] == found["bulb"] == "lamp"
    assert "red" not in found, "six of thirteen are not half"
    assert "kettl" not in found, "one product is too few"


def test_only_the_most_common_categories_are_told_apart() -> None:
    documents = [*shop(), product(30, "red mug handle", "Mug")]
    assert set(learn_categories(documents, field="", count=1).values()) == {"mug"}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("blue mugs", "mug"),
        ("lamp mug", "mug"),
        ("mug lamp", "lamp"),
        ("mug with handle for a lamp", "mug"),
        ("kettle", OTHER),
        ("", OTHER),
        ("<script>alert(1)</script>", OTHER),
    ],
)
def test_the_words_of_a_query_vote_and_the_last_one_breaks_a_tie(query: str, name: str) -> None:
    categories = learn_categories(shop(), field="", count=6)
    assert category_of(query, categories) == name
    assert part_of(query, "category", categories=categories) == name


def test_the_attribute_is_a_setting_and_a_list_gives_its_first_value() -> None:
    documents = [product(n, "red mug", ["Cups and mugs", "Kitchen"], field="department") for n in range(6)]
    assert learn_categories(documents, field="", count=6) == {}
    assert set(learn_categories(documents, field="department", count=6).values()) == {"cups and mugs"}


def test_a_hostile_name_is_words_alone_and_short() -> None:
    documents = [product(n, "red mug", "<script>\u202e" + "evil: raw " * 20) for n in range(6)]
    (name,) = set(learn_categories(documents, field="", count=6).values())
    assert name.startswith("script evil raw")
    assert len(name) <= NAME_CHARACTERS_MAX
    assert not set(name) & set("<>:\u202e")


def held(count: int) -> HeldOutRuns:
    """Mug queries, for which the version is better, and lamp queries, for which it is worse."""
    texts = {f"{kind}{number}": f"{kind} number {number}" for kind in ("mug", "lamp") for number in range(count)}
    good, bad = {"right": 1.0, "wrong": 0.5}, {"right": 0.5, "wrong": 1.0}
    return HeldOutRuns(
        texts=texts,
        raw={query: bad if query.startswith("mug") else good for query in texts},
        helped={query: good if query.startswith("mug") else bad for query in texts},
        qrels={query: {"right": 1} for query in texts},
    )


def judged() -> Routes:
    verdict = judge_version(
        VERSION,
        {"judged": held(40)},
        known=(),
        head=(),
        settings=RouteSettings(by="category"),
        ramp=RampSettings(),
        now_ms=1,
        categories=learn_categories(shop(), field="", count=6),
    )
    return verdict.routes


def test_a_version_is_routed_to_the_category_where_it_wins_and_the_route_is_logged() -> None:
    routes = msgspec.json.decode(msgspec.json.encode(judged()), type=Routes)
    assert {name: part.action for name, part in routes.parts.items()} == {"mug": "helped", "lamp": "raw"}
    router = Router(routes)
    for query, offered, logged in (
        ("blue mug", {"", VERSION}, "mug: helped"),
        ("blue lamp", {""}, "lamp: raw"),
        ("kettle", {""}, "other: raw"),
    ):
        found = make_offer(query, {VERSION}, ramp=None, routers={VERSION: router}, settings=ServeSettings(), size=10)
        assert set(found.offered) == offered
        assert shown_as(found.routes) == {VERSION: logged}
        assert parts_of(list(shown_as(found.routes).items())) == logged.split(":")[0]


def test_the_log_finds_the_same_categories() -> None:
    traffic = simulated(4_000)
    queries = [f"{'mug' if number % 2 else 'lamp'} {number % 50}" for number in range(4_000)]
    routes = msgspec.structs.replace(
        judged(), version=GOOD, parts={name: Part(action="raw", explored="helped") for name in ("mug", "lamp", "other")}
    )
    found = routes_with_log(msgspec.structs.replace(traffic, queries=queries), routes, "", Settings())
    assert {name: part.seen["log"].queries for name, part in found.parts.items() if "log" in part.seen} == {
        "mug": 2_000,
        "lamp": 2_000,
    }
