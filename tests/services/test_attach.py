"""An index that knows nothing of searchloop, with its owner's search, attached with a key that may only read."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from elasticsearch import Elasticsearch, helpers

from infra.app.app import App
from infra.app.attaching import AttachSummary, Wanted, attach_index
from infra.app.home import Home
from infra.app.settings import Settings
from infra.commands.relevance import train_and_check
from infra.recipes.leser.index import open_leser_index
from infra.recipes.leser.judging import JUDGED
from infra.recipes.leser.people import People
from search_env.catalogue.corpora import Document, Query
from search_env.engine.attachments import LOOK_SECONDS
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.errors import EngineUnavailable
from search_env.engine.index import IndexingError, load_documents
from search_env.engine.opening import open_catalogue, open_searcher
from search_env.engine.rights import RightsError
from search_env.engine.searching import ExpandedQuery, RetrievalSettings
from search_env.models.training_pairs import GbdtSettings
from search_env.queries.intents import IntentSettings
from streams.secrets import reveal
from tests.loop.conftest import quiet
from tests.secure_services import as_role, secure_home

COLOURS = ["red", "green", "blue", "black", "white"]
KINDS = ["mug", "lamp", "chair", "table", "shelf", "jacket"]
MATERIALS = ["steel", "oak", "glass", "cotton"]
DOCUMENTS = 900
MAPPING = {
    "properties": {
        "sku": {"type": "keyword"},
        "naam": {"type": "text", "analyzer": "english", "fields": {"raw": {"type": "keyword"}}},
        "omschrijving": {"type": "text", "analyzer": "english"},
        "kenmerken": {"type": "flattened"},
        "voorraad": {"type": "integer"},
        "populair": {"type": "float"},
    }
}
SEARCH = {
    "query": {
        "function_score": {
            "query": {
                "bool": {
                    "must": [{"multi_match": {"query": "{{query}}", "fields": ["naam^3", "omschrijving"]}}],
                    "filter": [{"range": {"voorraad": {"gte": 1}}}],
                }
            },
            "field_value_factor": {"field": "populair"},
        }
    },
    "_source": False,
    "size": 24,
}
SMALL = Settings(
    intents=IntentSettings(queries=200),
    gbdt=GbdtSettings(trees=20),
)


def rows() -> Iterator[dict[str, Any]]:
    chosen = random.Random(5)
    for number in range(DOCUMENTS):
        colour, kind = chosen.choice(COLOURS), chosen.choice(KINDS)
        yield {
            "sku": f"s{number:04d}",
            "naam": f"{colour} {kind} model{number}",
            "omschrijving": f"a {kind} for the {chosen.choice(['kitchen', 'garden', 'office'])}",
            "kenmerken": {"material": chosen.choice(MATERIALS), "colour": colour},
            "voorraad": number % 4,
            "populair": 1 + number % 3 / 10,
        }


@pytest.fixture(scope="module")
def secure() -> Iterator[Home]:
    with secure_home() as home:
        yield home


@pytest.fixture(scope="module")
def owner(secure: Home) -> Iterator[Elasticsearch]:
    """Give the owner's client, which may do everything."""
    client = connect(as_role(secure).connections.elasticsearch)
    yield client
    client.close()


@pytest.fixture(scope="module")
def winkel(owner: Elasticsearch) -> Iterator[str]:
    """Give an alias over two indexes of three shards each."""
    names = ["winkel-2024", "winkel-2025"]
    for name in names:
        owner.indices.create(index=name, mappings=MAPPING, settings={"number_of_shards": 3, "number_of_replicas": 0})
    helpers.bulk(
        owner, ({"_index": names[number % 2], "_id": f"x{number}", **row} for number, row in enumerate(rows()))
    )
    owner.indices.refresh(index="winkel-*")
    owner.indices.update_aliases(actions=[{"add": {"index": "winkel-*", "alias": "winkel"}}])
    yield "winkel"
    for name in names:
        owner.indices.delete(index=name)


@pytest.fixture
def reader(secure: Home, owner: Elasticsearch, tmp_path: Path) -> App:
    """Give an app with a home of its own and a key that may read the shop's indexes, and nothing else."""
    role = {"reader": {"cluster": [], "indices": [{"names": ["winkel*", "los*"], "privileges": ["read"]}]}}
    key = made_key(secure, role)
    kafka, engine = as_role(secure).connections.kafka, as_role(secure).connections.elasticsearch
    mine = ElasticsearchSettings(url=engine.url, ca_certs=engine.ca_certs, api_key=key)
    return App(Home(tmp_path), settings=msgspec.structs.replace(SMALL, kafka=kafka, elasticsearch=mine))


def made_key(secure: Home, role: dict[str, Any]) -> str:
    from services.security import SecurityFolder

    engine = as_role(secure).connections.elasticsearch
    password = SecurityFolder(secure.root).engine_password.read_text().strip()
    with contextlib.closing(
        connect(ElasticsearchSettings(url=engine.url, ca_certs=engine.ca_certs, username="elastic", password=password))
    ) as superuser:
        return str(superuser.security.create_api_key(name="reader", role_descriptors=role)["encoded"])


def template(tmp_path: Path, body: Any = SEARCH) -> Path:
    path = tmp_path / f"search-{len(list(tmp_path.iterdir()))}.json"
    path.write_text(json.dumps(body))
    return path


def attach(app: App, tmp_path: Path, **changes: Any) -> AttachSummary:
    options: dict[str, Any] = {"index": "winkel", "id_field": "sku", "template": template(tmp_path), "sample": 200}
    return attach_index(app, Wanted(**(options | changes)), name="shop", report=quiet)


def test_an_attached_index_is_searched_as_its_owner_does_and_helped_within_the_owners_filters(
    winkel: str, reader: App, owner: Elasticsearch, tmp_path: Path
) -> None:
    summary = attach(reader, tmp_path, title="naam", texts=("omschrijving",), attributes=("kenmerken",))
    assert (summary.documents, summary.sample, summary.kind) == (DOCUMENTS, 200, "attributes")
    assert summary.queries["train"] > 0
    folder = reader.home.index("shop")
    with (
        contextlib.closing(reader.engine()) as client,
        contextlib.closing(open_searcher(client, folder, RetrievalSettings())) as searcher,
    ):
        raw, helped = searcher.search_many(["red mug", ExpandedQuery("red mug", ("cup shelf", "oak"))], size=500)
    body = json.loads(json.dumps(SEARCH).replace("{{query}}", "red mug")) | {"size": 500, "docvalue_fields": ["sku"]}
    hits = owner.search(index=winkel, body=body)["hits"]["hits"]
    expected = {hit["fields"]["sku"][0]: hit["_score"] for hit in hits}
    assert dict(zip(raw.ids, raw.scores, strict=True)) == pytest.approx(expected)
    assert raw.scores == sorted(raw.scores, reverse=True)
    assert set(raw.ids) < set(helped.ids), "expansions add documents"
    in_stock = {row["sku"] for row in rows() if row["voorraad"]}
    assert set(helped.ids) <= in_stock
    assert not owner.indices.get(index="shop*").body, "nothing is written to the cluster"


def test_documents_outside_the_sample_are_read_and_scored_as_if_all_were_here(
    winkel: str, reader: App, tmp_path: Path
) -> None:
    attach(reader, tmp_path, title="naam", texts=("omschrijving",), attributes=("kenmerken",))
    folder = reader.home.index("shop")
    sample = {document.id for document in load_documents(folder, sample=True)}
    with open_leser_index(folder, reader.settings, reader.engine, quiet) as opened:
        (ranking,) = opened.searcher.search_many(["steel mug"], size=50)
        assert not set(ranking.ids) <= sample
        (together,) = opened.relevance.score_many([("steel mug", ranking.ids)])
        alone = [float(opened.relevance.score("steel mug", [name])[0]) for name in ranking.ids]
        np.testing.assert_array_equal(together, np.array(alone, dtype=np.float32))
        material = {row["sku"]: row["kenmerken"]["material"] for row in rows()}
        strangers = [place for place, name in enumerate(ranking.ids) if name not in sample]
        steel = [together[place] for place in strangers if material[ranking.ids[place]] == "steel"]
        other = [together[place] for place in strangers if material[ranking.ids[place]] != "steel"]
        assert np.mean(steel) > np.mean(other), "the material stands in the attributes alone, which are read"
        context, again = opened.contexts(["steel mug", "oak shelf"])[0], opened.contexts(["steel mug"])[0]
        assert context == again
        assert context.documents > 0


def test_the_judge_of_an_attached_index_is_trained_and_checked_on_documents_outside_the_sample(
    winkel: str, reader: App, tmp_path: Path
) -> None:
    attach(reader, tmp_path, title="naam", texts=("omschrijving",), attributes=("kenmerken",))
    shop = {row["sku"]: row for row in rows()}
    sample = {document.id for document in load_documents(reader.home.index("shop"), sample=True)}
    queries, qrels = [], {}
    for colour in COLOURS:
        for material in MATERIALS:
            query = Query(id=f"{colour}-{material}", text=f"{colour} {material}")
            queries.append(query)
            qrels[query.id] = {
                name: int(row["kenmerken"] == {"material": material, "colour": colour})
                for name, row in shop.items()
                if row["kenmerken"]["colour"] == colour and row["voorraad"]
            }
    assert not {name for grades in qrels.values() for name in grades} <= sample
    people = People(judged=(queries, qrels))
    trained, check, verdict = train_and_check(reader, "shop", people, train=True, samples=200, report=quiet)
    assert trained["judgments"] == sum(map(len, qrels.values()))
    judged = check.of(JUDGED)
    assert judged is not None and judged.reliability is not None
    assert judged.queries == len(queries)
    assert judged.reliability.pairs > 0
    assert judged.gain.low is not None and judged.gain.low > 0, "the material stands in the attributes alone"
    assert {each.kind: each.trains for each in verdict.kinds}[JUDGED]


def test_fields_are_guessed_and_without_a_template_the_words_are_searched(
    winkel: str, reader: App, tmp_path: Path
) -> None:
    with pytest.raises(IndexingError, match="--title FIELD"):
        attach(reader, tmp_path, template=None)
    summary = attach(reader, tmp_path, template=None, title="naam", texts=("omschrijving",))
    assert summary.searched == ("naam^2", "omschrijving")


def test_a_mapping_without_source_is_read_from_stored_fields_and_doc_values(
    owner: Elasticsearch, reader: App, tmp_path: Path
) -> None:
    properties = {
        "name": {"type": "text", "store": True},
        "colour": {"type": "keyword"},
        "hidden": {"type": "text"},
    }
    with made_index(owner, "los-1", {"_source": {"enabled": False}, "properties": properties}) as name:
        for number in range(40):
            document = {"name": f"mug {number}", "colour": COLOURS[number % 5], "hidden": "x"}
            owner.index(index=name, id=str(number), document=document)
        owner.indices.refresh(index=name)
        options: dict[str, Any] = {"index": name, "id_field": "_id", "template": None, "attributes": ("colour",)}
        attach(reader, tmp_path, **options, title="name")
        documents = load_documents(reader.home.index("shop"), sample=True)
        assert documents[0] in [
            Document(id=str(n), title=f"mug {n}", text="", metadata={"attributes": {"colour": COLOURS[n % 5]}})
            for n in range(40)
        ]
        with pytest.raises(IndexingError, match="none of 40 documents has a text in 'hidden'"):
            attach(reader, tmp_path, **options, title="hidden")


def test_attributes_in_an_object_stay_the_fields_that_they_were(
    owner: Elasticsearch, reader: App, tmp_path: Path
) -> None:
    specs = {"properties": {"colour": {"type": "keyword"}, "size": {"properties": {"cm": {"type": "integer"}}}}}
    with made_index(owner, "los-specs", {"properties": {"name": {"type": "text"}, "specs": specs}}) as name:
        document = {"name": "red mug", "specs": {"colour": "red", "size": {"cm": 9}}}
        owner.index(index=name, id="1", document=document, refresh=True)
        attach(reader, tmp_path, index=name, id_field="_id", template=None, title="name", attributes=("specs",))
        folder = reader.home.index("shop")
        assert load_documents(folder, sample=True)[0].metadata["attributes"] == {"colour": "red", "size.cm": 9}
        with (
            contextlib.closing(reader.engine()) as client,
            contextlib.closing(open_searcher(client, folder, RetrievalSettings())) as searcher,
        ):
            assert searcher.search_many(["mug"], size=10)[0].ids == ["1"], "the fields are looked at before"


def test_two_indexes_with_one_id_give_it_once(owner: Elasticsearch, reader: App, tmp_path: Path) -> None:
    mapping = {"properties": {"name": {"type": "text"}}}
    with made_index(owner, "los-a", mapping) as one, made_index(owner, "los-b", mapping) as two:
        for name, title in ((one, "red mug"), (two, "red mug again")):
            owner.index(index=name, id="1", document={"name": title}, refresh=True)
        attach(reader, tmp_path, index="los-*", id_field="_id", template=None)
        folder = reader.home.index("shop")
        with (
            contextlib.closing(reader.engine()) as client,
            contextlib.closing(open_searcher(client, folder, RetrievalSettings())) as searcher,
        ):
            assert searcher.search_many(["mug"], size=10)[0].ids == ["1"]
            assert open_catalogue(client, folder).holding(["1"]).ids == ["1"]


def test_an_index_that_changes_or_goes_stops_searches_with_the_reason_and_comes_back(
    owner: Elasticsearch, reader: App, tmp_path: Path
) -> None:
    text, keyword = ({"properties": {"name": {"type": kind}}} for kind in ("text", "keyword"))
    with made_index(owner, "los-old", text) as old, made_index(owner, "los-new", keyword) as new:
        for name in (old, new):
            owner.index(index=name, id="1", document={"name": "red mug"}, refresh=True)
        owner.indices.put_alias(index=old, name="los")
        attach(reader, tmp_path, index="los", id_field="_id", template=None)
        with (
            contextlib.closing(reader.engine()) as client,
            contextlib.closing(open_searcher(client, reader.home.index("shop"), RetrievalSettings())) as searcher,
        ):
            form: Any = searcher.form

            def look_again() -> None:
                form._checked_at -= 2 * LOOK_SECONDS

            assert searcher.search_many(["mug"], size=10)[0].ids == ["1"]
            move = [{"remove": {"index": old, "alias": "los"}}, {"add": {"index": new, "alias": "los"}}]
            owner.indices.update_aliases(actions=move)
            look_again()
            with pytest.raises(EngineUnavailable, match=r"expected the field 'name' to be text.*got keyword"):
                searcher.search_many(["mug"], size=10)
            owner.indices.update_aliases(actions=[{"remove": {"index": new, "alias": "los"}}])
            look_again()
            with pytest.raises(EngineUnavailable, match="is gone"):
                searcher.search_many(["mug"], size=10)
            owner.indices.put_alias(index=old, name="los")
            assert searcher.search_many(["mug"], size=10)[0].ids == ["1"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"index": "winkel-1999"}, "is gone"),
        ({"title": "titel"}, "no field 'titel'"),
        ({"id_field": "naam"}, "expected a keyword or an integer, got text"),
        (
            {"index": "winkel-2024", "template": {"query": {"match": {"naam": {"query": "{{query}}", "oops": 1}}}}},
            "oops",
        ),
        ({"template": {"query": {"match_all": {}}}}, r"expected \{\{query\}\}"),
    ],
)
def test_an_attachment_that_cannot_work_is_refused_with_the_reason(
    winkel: str, reader: App, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    if isinstance(changes.get("template"), dict):
        changes = changes | {"template": template(tmp_path, changes["template"])}
    with pytest.raises((IndexingError, EngineUnavailable), match=said):
        attach(reader, tmp_path, **({"title": "naam"} | changes))
    assert not (reader.home.index("shop") / "manifest.json").exists()


def test_an_empty_index_is_refused(owner: Elasticsearch, reader: App, tmp_path: Path) -> None:
    with (
        made_index(owner, "los-empty", {"properties": {"name": {"type": "text"}}}) as name,
        pytest.raises(IndexingError, match="is empty"),
    ):
        attach(reader, tmp_path, index=name, id_field="_id", template=None)


def test_a_key_without_the_right_to_read_is_refused(winkel: str, secure: Home, reader: App, tmp_path: Path) -> None:
    key = made_key(secure, {"none": {"cluster": [], "indices": [{"names": ["other"], "privileges": ["read"]}]}})
    engine = msgspec.structs.replace(reader.connections.elasticsearch, api_key=key)
    assert reveal(engine.api_key) == key
    stranger = App(reader.home, settings=msgspec.structs.replace(SMALL, elasticsearch=engine))
    with pytest.raises(RightsError, match="may not read on winkel"):
        attach(stranger, tmp_path, title="naam")


@contextlib.contextmanager
def made_index(owner: Elasticsearch, name: str, mapping: dict[str, Any]) -> Iterator[str]:
    owner.indices.create(index=name, mappings=mapping, settings={"number_of_shards": 3, "number_of_replicas": 0})
    try:
        yield name
    finally:
        owner.indices.delete(index=name)
