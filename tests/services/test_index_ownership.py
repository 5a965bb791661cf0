"""Nothing of the user's on a cluster is ever touched: a real Elasticsearch, and what somebody else has on it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from elastic_transport import ConnectionTimeout
from elasticsearch import Elasticsearch

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.commands.search import index
from search_env.catalogue.corpora import Document
from search_env.engine import index_changes
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.index import MAPPING, SIMILARITY, IndexingError, adopt_versions, build_index, claim_name
from search_env.engine.ownership import Place, claim
from services.local import Endpoints
from streams.errors import SettingsError
from tests.commands import command, environment

DOCUMENTS = [Document(id="p1", title="red lamp", text=""), Document(id="p2", title="blue lamp", text="")]
MINE, OTHER = "1" * 32, "2" * 32
OLD_MAPPING = {
    "dynamic": "strict",
    "properties": {
        name: field for name, field in MAPPING["properties"].items() if name not in ("summary", "summary_policy")
    },
}


@pytest.fixture(scope="module")
def client(local_services: Endpoints) -> Iterator[Elasticsearch]:
    made = connect(ElasticsearchSettings(url=local_services.elasticsearch))
    yield made
    made.close()


@pytest.fixture
def name(client: Elasticsearch, unique_name: str) -> Iterator[str]:
    yield unique_name
    for found in list(client.indices.get(index=f"{unique_name}*", expand_wildcards="all").body):
        client.indices.delete(index=found)


def user_index(client: Elasticsearch, index: str, *, alias: str = "", **options: Any) -> None:
    """An index as a user makes one, with a document in it."""
    client.indices.create(index=index, aliases={alias: {}} if alias else {}, **options)
    client.index(index=index, id="mine", document={"id": "mine", "title": "of the user"}, refresh=True)


def cluster(client: Elasticsearch, name: str) -> dict[str, Any]:
    """Everything of these indexes that a user could miss: settings, mappings, aliases and documents."""
    told = dict(client.indices.get(index=f"{name}*", expand_wildcards="all").body)
    for each in told:
        told[each]["state"] = client.cat.indices(index=each, h="status", expand_wildcards="all").body
        if "open" in told[each]["state"]:
            told[each]["documents"] = client.search(index=each, size=100, seq_no_primary_term=True, version=True)[
                "hits"
            ]["hits"]
    return told


def index_of(client: Elasticsearch, name: str) -> list[str]:
    """The indexes behind an alias."""
    return sorted(client.indices.get_alias(name=name).body)


def run_index(services: Endpoints, home: Path, *arguments: str) -> Result:
    """Run `searchloop index` in this process; an error that the command line would print is raised."""
    app = App(Home(home), settings=Settings()).at(services)
    return CliRunner().invoke(index, arguments, obj=app, catch_exceptions=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": d.id, "title": d.title, "text": d.text}) + "\n" for d in DOCUMENTS))
    return path


def test_the_users_indexes_and_alias_survive_the_command_which_says_so_and_fails(
    client: Elasticsearch, name: str, local_services: Endpoints, corpus: Path, tmp_path: Path
) -> None:
    for number in (1, 2023):
        user_index(client, f"{name}-{number}", alias=name)
    before = cluster(client, name)
    call = command(tmp_path / "home", "index", str(corpus), "--name", name)
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment(local_services))
    assert done.returncode == 1
    assert f"the name '{name}' is taken: the alias '{name}' points to '{name}-1'" in done.stderr
    assert done.stderr.count("\n") == 1 and "Choose another name" in done.stderr
    assert cluster(client, name) == before
    assert not (tmp_path / "home" / "indexes").exists(), "a refused name must leave nothing"


def test_a_version_takes_the_place_of_the_one_before_and_two_homes_never_share_a_name(
    client: Elasticsearch, name: str, local_services: Endpoints, corpus: Path, tmp_path: Path
) -> None:
    for number in (1, 2):
        assert (
            f"{name}-{number}: 2 documents"
            in run_index(local_services, tmp_path / "home", str(corpus), f"--name={name}").output
        )
        assert index_of(client, name) == [f"{name}-{number}"]
        assert sorted(client.indices.get(index=f"{name}*").body) == [f"{name}-{number}"]
    before = cluster(client, name)
    with pytest.raises(IndexingError, match="of another installation of searchloop"):
        run_index(local_services, tmp_path / "other", str(corpus), f"--name={name}")
    assert cluster(client, name) == before
    assert not (tmp_path / "other" / "indexes").exists()
    own = f"{name}-of-the-other"
    run_index(local_services, tmp_path / "other", str(corpus), f"--name={own}")
    run_index(local_services, tmp_path / "home", str(corpus), f"--name={name}")
    assert (index_of(client, name), index_of(client, own)) == ([f"{name}-3"], [f"{own}-1"])


@pytest.mark.parametrize(
    "wrong", ["-x", "_all", "*", "a,b", "Shop", "shop*", "shop-2", "a" * 300, "", ".", "..", "<a>"]
)
def test_a_name_that_elasticsearch_reads_as_several_is_refused_before_a_service_is_asked(
    wrong: str, corpus: Path, tmp_path: Path
) -> None:
    nowhere = Endpoints(kafka="127.0.0.1:1", elasticsearch="http://127.0.0.1:1")
    with pytest.raises((IndexingError, SettingsError), match="expected"):
        run_index(nowhere, tmp_path / "home", str(corpus), f"--name={wrong}")
    assert not (tmp_path / "home").exists()


def closed(client: Elasticsearch, index: str) -> None:
    user_index(client, index)
    client.indices.close(index=index)


SOMEBODYS: dict[str, Callable[[Elasticsearch, str], object]] = {
    "index of the name": user_index,
    "closed index of the name": closed,
    "hidden index of the name": lambda client, name: user_index(client, name, settings={"index.hidden": True}),
    "index with our mapping": lambda client, name: user_index(client, f"{name}-1", mappings=MAPPING),
    "index named as a version": lambda client, name: user_index(client, f"{name}-7"),
    "closed index named as a version": lambda client, name: closed(client, f"{name}-7"),
    "alias to an index of another name": lambda client, name: user_index(client, f"{name}x", alias=name),
    "alias to a closed index": lambda client, name: (
        user_index(client, f"{name}x", alias=name),
        client.indices.close(index=f"{name}x"),
    ),
    "alias named as a version": lambda client, name: user_index(client, f"{name}x", alias=f"{name}-4"),
    "mark of another installation": lambda client, name: build_index(client, name, DOCUMENTS, installation=OTHER),
    "mark that is none": lambda client, name: user_index(
        client, f"{name}-1", mappings={"_meta": {"searchloop": {"installation": MINE}}}
    ),
    "mark that is a text": lambda client, name: user_index(
        client, f"{name}-1", mappings={"_meta": {"searchloop": MINE}}
    ),
    "vectors' mark": lambda client, name: user_index(
        client,
        f"{name}-1",
        mappings={
            "_meta": {
                "searchloop": {"installation": MINE, "index": f"{name}-1", "alias": name, "kind": "vectors"},
            }
        },
    ),
}


@pytest.mark.parametrize("what", SOMEBODYS)
def test_a_name_that_somebody_else_has_is_refused_and_theirs_stays_as_it_was(
    client: Elasticsearch, name: str, what: str, tmp_path: Path
) -> None:
    SOMEBODYS[what](client, name)
    before = cluster(client, name)
    with pytest.raises(IndexingError, match=rf"the name '{name}' is taken: .*Nothing was changed"):
        build_index(client, name, DOCUMENTS, installation=MINE, directory=tmp_path / "index")
    assert cluster(client, name) == before
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("pattern", ["{name}-*", "{name}*", "*{name}-?".replace("?", "1")])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_name_that_a_template_is_meant_for_is_refused(
    client: Elasticsearch, name: str, pattern: str, legacy: bool
) -> None:
    patterns = [pattern.format(name=name)]
    aliases: dict[str, Any] = {f"{name}-everything": {}}
    if legacy:
        client.indices.put_template(name=name, index_patterns=patterns, aliases=aliases)
    else:
        client.indices.put_index_template(name=name, index_patterns=patterns, template={"aliases": aliases})
    try:
        with pytest.raises(IndexingError, match=f"the template '{name}' of this cluster is meant for"):
            build_index(client, name, DOCUMENTS, installation=MINE)
        assert cluster(client, name) == {}
    finally:
        remove = client.indices.delete_template if legacy else client.indices.delete_index_template
        remove(name=name)


def test_an_index_that_a_template_for_all_puts_behind_somebodys_alias_goes_again(
    client: Elasticsearch, name: str
) -> None:
    user_index(client, f"{name}-logs", alias=f"{name}-everything")
    before = cluster(client, name)
    client.indices.put_index_template(
        name=name, index_patterns=["*"], priority=1, template={"aliases": {f"{name}-everything": {}}}
    )
    try:
        with pytest.raises(IndexingError, match=f"puts it behind aliases \\({name}-everything\\)"):
            build_index(client, name, DOCUMENTS, installation=MINE)
    finally:
        client.indices.delete_index_template(name=name)
    assert cluster(client, name) == before


def test_a_data_stream_of_the_name_is_refused() -> None:
    # The embedded distribution has no data streams; what a cluster with some answers is written down here.
    answer = {
        "indices": [],
        "aliases": [],
        "data_streams": [{"name": "shop", "backing_indices": [".ds-shop-000001"], "timestamp_field": "@timestamp"}],
    }
    indices = SimpleNamespace(resolve_index=lambda **_: SimpleNamespace(body=answer))
    empty = SimpleNamespace(body={}, meta=SimpleNamespace(status=200))
    fake = SimpleNamespace(
        indices=indices, options=lambda **_: SimpleNamespace(indices=SimpleNamespace(get=lambda **_: empty))
    )
    with pytest.raises(IndexingError, match="'shop' is a data stream"):
        claim(fake, Place(installation=MINE, alias="shop", kind="documents"), lambda index: False)  # type: ignore[arg-type]


def test_a_clone_of_our_index_carries_its_mark_and_is_still_the_users(client: Elasticsearch, name: str) -> None:
    first = build_index(client, name, DOCUMENTS, installation=MINE).name
    client.indices.clone(index=first, target=f"{name}-9", wait_for_active_shards=1)
    before = cluster(client, name)
    with pytest.raises(IndexingError, match=f"'{name}-9' is an index, a copy of '{first}'"):
        build_index(client, name, DOCUMENTS, installation=MINE)
    assert cluster(client, name) == before


def test_an_index_beside_ours_with_a_longer_name_is_nobodys_business(client: Elasticsearch, name: str) -> None:
    for other in (f"{name}s-1", f"{name}-backup", f"{name}-1-old"):
        user_index(client, other, alias=f"{name}-other")
    before = cluster(client, name)
    for _ in range(2):
        build_index(client, name, DOCUMENTS, installation=MINE)
    after = cluster(client, name)
    assert after.pop(f"{name}-2")["aliases"] == {name: {}}
    assert after == before


@pytest.mark.parametrize("alias", ["{name}-of-the-user", "{name}-1.live", "{name}-1.20261128"])
def test_a_version_that_the_user_has_put_an_alias_on_is_kept_with_it(
    client: Elasticsearch, name: str, caplog: pytest.LogCaptureFixture, alias: str
) -> None:
    first = build_index(client, name, DOCUMENTS, installation=MINE).name
    theirs = alias.format(name=name)
    client.indices.put_alias(index=first, name=theirs)
    build_index(client, name, DOCUMENTS, installation=MINE)
    assert index_of(client, theirs) == [first]
    assert index_of(client, name) == [f"{name}-2"]
    assert f"'{first}' is kept" in caplog.text


def test_an_index_that_takes_the_place_of_ours_while_it_is_filled_gets_no_document_and_stays(
    client: Elasticsearch, name: str
) -> None:
    first = build_index(client, name, DOCUMENTS, installation=MINE).name
    theirs: dict[str, Any] = {}

    def documents() -> Iterator[Document]:
        yield DOCUMENTS[0]
        client.indices.delete(index=f"{name}-2")
        user_index(client, f"{name}-2")
        theirs.update(cluster(client, f"{name}-2"))

    with pytest.raises(IndexingError, match="refused"):
        build_index(client, name, documents(), installation=MINE)
    assert cluster(client, f"{name}-2") == theirs
    assert index_of(client, name) == [first]


def test_an_index_that_is_gone_while_it_is_filled_is_not_made_anew(client: Elasticsearch, name: str) -> None:
    def documents() -> Iterator[Document]:
        yield DOCUMENTS[0]
        client.indices.delete(index=f"{name}-1")

    with pytest.raises(IndexingError, match="refused"):
        build_index(client, name, documents(), installation=MINE)
    assert cluster(client, name) == {}


def test_an_alias_that_somebody_takes_while_ours_is_filled_stays_theirs(client: Elasticsearch, name: str) -> None:
    def documents() -> Iterator[Document]:
        yield from DOCUMENTS
        user_index(client, f"{name}x", alias=name)

    with pytest.raises(IndexingError, match="is taken"):
        build_index(client, name, documents(), installation=MINE)
    assert index_of(client, name) == [f"{name}x"]
    assert sorted(cluster(client, name)) == [f"{name}x"]


def test_an_older_version_that_was_replaced_meanwhile_is_not_deleted(
    client: Elasticsearch, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = build_index(client, name, DOCUMENTS, installation=MINE).name
    switch = index_changes.switch_alias

    def then_somebody_comes(*arguments: Any) -> None:
        switch(*arguments)
        client.indices.delete(index=first)
        user_index(client, first)

    monkeypatch.setattr("search_env.engine.index.switch_alias", then_somebody_comes)
    build_index(client, name, DOCUMENTS, installation=MINE)
    assert client.get(index=first, id="mine")["found"]
    assert "replaced by one that is not ours" in caplog.text


def test_a_switch_whose_answer_is_lost_has_happened(
    client: Elasticsearch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(client, name, DOCUMENTS, installation=MINE)
    switch = client.indices.update_aliases

    def lost(**options: Any) -> None:
        switch(**options)
        raise ConnectionTimeout("no answer")

    monkeypatch.setattr(client.indices, "update_aliases", lost)
    assert build_index(client, name, DOCUMENTS, installation=MINE).name == f"{name}-2"
    assert sorted(cluster(client, name)) == [f"{name}-2"]
    assert index_of(client, name) == [f"{name}-2"]


def old_version(client: Elasticsearch, name: str, number: int = 3, mapping: dict[str, Any] = MAPPING) -> str:
    """An index as a searchloop made it that knew no marks."""
    index = f"{name}-{number}"
    client.indices.create(index=index, mappings=mapping, settings={"similarity": SIMILARITY}, aliases={name: {}})
    client.index(index=index, id="p1", document={"id": "p1", "title": "red lamp"}, refresh=True)
    client.indices.put_settings(index=index, settings={"index.blocks.write": True})
    return index


@pytest.mark.parametrize("mapping", [MAPPING, OLD_MAPPING], ids=["newer", "older"])
def test_an_index_without_a_mark_stays_until_it_is_adopted(
    client: Elasticsearch, name: str, mapping: dict[str, Any]
) -> None:
    old = old_version(client, name, mapping=mapping)
    before = cluster(client, name)
    with pytest.raises(IndexingError, match=f"searchloop index CORPUS --name {name} --adopt"):
        build_index(client, name, DOCUMENTS, installation=MINE)
    assert cluster(client, name) == before
    assert adopt_versions(client, name, installation=MINE) == [old]
    assert [each.name for each in claim_name(client, name, installation=MINE)] == [old]
    assert cluster(client, name)[old]["documents"] == before[old]["documents"]
    assert adopt_versions(client, name, installation=MINE) == []
    assert build_index(client, name, DOCUMENTS, installation=MINE).name == f"{name}-4"
    assert sorted(cluster(client, name)) == [f"{name}-4"]


@pytest.mark.parametrize("what", sorted(set(SOMEBODYS) - {"index with our mapping"}))
def test_adoption_takes_nothing_that_is_not_ours_by_its_mapping(client: Elasticsearch, name: str, what: str) -> None:
    SOMEBODYS[what](client, name)
    if what not in ("index of the name", "closed index of the name", "hidden index of the name"):
        client.indices.create(index=f"{name}-30", mappings=MAPPING)
    before = cluster(client, name)
    with pytest.raises(IndexingError, match=rf"the name '{name}' is taken: .*Nothing was changed"):
        adopt_versions(client, name, installation=MINE)
    assert cluster(client, name) == before


def test_the_command_adopts_and_says_what(
    client: Elasticsearch, name: str, local_services: Endpoints, corpus: Path, tmp_path: Path
) -> None:
    old = old_version(client, name)
    done = run_index(local_services, tmp_path / "home", str(corpus), f"--name={name}", "--adopt")
    assert f"taken over: {old}" in done.output
    assert sorted(cluster(client, name)) == [f"{name}-4"]
