"""Indexing into the real Elasticsearch: versions, the alias, failures, and terms and scores that equal our own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from elasticsearch import Elasticsearch

from search_env.catalogue.analysis import analyze
from search_env.catalogue.corpora import CorpusError, Document
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.index import (
    IndexingError,
    Summaries,
    build_index,
    current_version,
    load_documents,
    load_manifest,
)
from search_env.engine.layout import IndexLayout
from search_env.engine.reranking import ShownTexts, shown_documents
from search_env.engine.searching import ExpandedQuery, RetrievalError, RetrievalSettings, Searcher
from search_env.leser.feedback_terms import FeedbackSettings, FeedbackTerms, search_with_feedback

WORD_LIST = """
    running runs ran shoes shoe wireless mouse batteries battery universe universal generous general hopping hoped
    relational conditional valency hesitancy digitizer conformably radically differently vileness analogously
    vietnamization predication operator feudalism decisiveness hopefulness callousness formality sensitivity
    sensibility triplicate formative formalize electricity electrical goodness revival allowance inference airliner
    gyroscopic adjustable defensible irritant replacement adjustment dependent adoption homologous communism
    activate angularity effective bowdlerize probate rate cease controll roll caresses ponies ties caress cats feed
    agreed plastered bled motoring sing conflated troubled sized falling hissing fizzed failing filing happy sky
    dying says by day the of and not with women's o'brien u.s.a. usb-c 3.5 1,200 4x4 wi-fi c++ c# at&t don't café
    naïve 10/100/1000base-t(x) ps/2 a.b.c foo_bar _x_ __ 3.5mm 43.2 rock'n'roll mp3 the's cat's dogs' archæology
    straße ps3™ 17" ½ 100% e.g. i.e. 2.0.1 v2.0b x86_64
"""
WORDS = WORD_LIST.split()


@pytest.fixture(scope="module")
def client(local_services: object) -> Iterator[Elasticsearch]:
    made = connect(ElasticsearchSettings(url=local_services.elasticsearch))  # type: ignore[attr-defined]
    yield made
    made.close()


@pytest.fixture
def index(client: Elasticsearch, unique_name: str) -> Iterator[str]:
    yield unique_name
    for name in list(client.indices.get(index=f"{unique_name}-*").body):
        client.indices.delete(index=name)


def products(count: int = 300, seed: int = 1) -> list[Document]:
    generator = random.Random(seed)
    return [
        Document(
            id=f"p{number}",
            title=" ".join(generator.choices(WORDS, k=generator.randint(1, 8))),
            text=" ".join(generator.choices(WORDS, k=generator.randint(0, 20))),
            metadata={"attributes": {"colour": generator.choice(["Red", "Blue"])}},
        )
        for number in range(count)
    ]


def test_our_analyzer_makes_the_same_terms_as_the_engine(client: Elasticsearch, index: str) -> None:
    version = build_index(client, index, products(5), installation="test").name
    texts = [*WORDS, "The Red-Hot CHILLI (2-pack), 3.5mm/1.2m", 'Intel® Core™2 Duo 4GB 43.2 cm (17") 1440 x 900']
    for text in texts:
        tokens = client.indices.analyze(index=version, field="contents", text=text)["tokens"]
        assert analyze(text) == [token["token"] for token in tokens], text


def test_search_scores_equal_our_own_bm25(client: Elasticsearch, index: str) -> None:
    documents = products()
    version = build_index(client, index, documents, installation="test")
    catalogue = Catalogue(documents)
    retriever = Searcher(client, version.name, RetrievalSettings())
    for query in ("wireless mouse", "running shoes for cats", "batteries 3.5", "electricity electricity sing"):
        ranking = retriever.search_many([query], size=200)[0]
        scores = catalogue.contents.bm25_scores(catalogue.vocabulary.known(analyze(query)))
        expected = sorted(
            ((-float(score), document.id) for score, document in zip(scores, documents, strict=True) if score > 0)
        )[:200]
        assert len(ranking.ids) == len(expected)
        for document_id, score in zip(ranking.ids, ranking.scores, strict=True):
            # Lucene keeps a document's length in one byte, exact up to 40 terms.
            assert score == pytest.approx(float(scores[catalogue.row_of[document_id]]), rel=1e-4)


def test_shards_replicas_and_merging_are_those_of_the_layout(client: Elasticsearch, index: str) -> None:
    layout = IndexLayout(shards=3, replicas=1, segments=0, segments_per_tier=4, merged_segment_max_mib=64)
    version = build_index(client, index, products(90), installation="test", layout=layout)
    made = client.indices.get_settings(index=version.name, flat_settings=True)[version.name]["settings"]
    assert (made["index.number_of_shards"], made["index.number_of_replicas"]) == ("3", "1")
    assert made["index.merge.policy.segments_per_tier"] == "4"
    assert made["index.merge.policy.max_merged_segment"] == "64mb"
    catalogue = Catalogue(products(90))
    scores = catalogue.contents.bm25_scores(catalogue.vocabulary.known(analyze("wireless mouse")))
    found = Searcher(client, version.name, RetrievalSettings()).search_many(["wireless mouse"], size=90)[0]
    assert {catalogue.row_of[each] for each in found.ids} == {row for row, score in enumerate(scores) if score > 0}


def test_ties_are_broken_by_id_also_where_the_list_is_cut(client: Elasticsearch, index: str) -> None:
    documents = [Document(id=f"d{number:03d}", title="same words", text="") for number in range(50)]
    random.Random(3).shuffle(documents)
    version = build_index(client, index, documents, installation="test")
    retriever = Searcher(client, version.name, RetrievalSettings())
    assert retriever.search_many(["words"], size=7)[0].ids == [f"d{number:03d}" for number in range(7)]


def test_the_weighted_query_adds_up_the_scores_of_its_parts(client: Elasticsearch, index: str) -> None:
    version = build_index(client, index, products(), installation="test")
    settings = RetrievalSettings(mode="weighted", weight=0.5, rank_discount=1.0, whole_boost=0.0)
    retriever = Searcher(client, version.name, settings)
    parts = [dict(zip(*retriever.search_many([text], size=300)[0], strict=True)) for text in ("wireless", "sky", "day")]
    both = retriever.search_many([ExpandedQuery("wireless", ("sky", "day"))], size=300)[0]
    for document_id, score in zip(*both, strict=True):
        raw, first, second = (part.get(document_id, 0) for part in parts)
        assert score == pytest.approx(raw + 0.5 * first + 0.25 * second, rel=1e-4)


@pytest.mark.parametrize(
    "query", ['")) OR *:* --', "AND OR NOT", "a" * 5000, '{"match_all": {}}', "\u0000\u202e", "title:red~2^9", "/re.*/"]
)
def test_hostile_queries_are_just_words(client: Elasticsearch, index: str, query: str) -> None:
    version = build_index(client, index, products(20), installation="test")
    retriever = Searcher(client, version.name, RetrievalSettings())
    raw, expanded = retriever.search_many([query, ExpandedQuery("mouse", (query,))], size=20)
    assert len(raw.ids) <= 20
    assert set(retriever.search_many(["mouse"], size=20)[0].ids) <= set(expanded.ids)


def test_a_new_version_takes_the_alias_and_the_old_one_goes(client: Elasticsearch, index: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    first = build_index(
        client, index, products(10), lambda *step: seen.append(step), directory=tmp_path, total=10, installation="test"
    )
    second = build_index(client, index, products(20, seed=2), directory=tmp_path, installation="test")
    assert (first.name, second.name) == (f"{index}-1", f"{index}-2")
    assert current_version(client, index) == second.name
    assert list(client.indices.get(index=f"{index}-*").body) == [second.name]
    assert ("indexing", 10, 10) in seen
    assert load_manifest(tmp_path) == second
    assert load_documents(tmp_path) == products(20, seed=2)
    segments = client.indices.segments(index=second.name)["indices"][second.name]["shards"]["0"][0]["segments"]
    assert len(segments) == 1


def test_a_failed_load_leaves_the_old_version_serving(client: Elasticsearch, index: str, tmp_path: Path) -> None:
    first = build_index(client, index, products(10), directory=tmp_path, installation="test")

    def broken() -> Iterator[Document]:
        yield from products(5)
        raise CorpusError("line 6: broken")

    with pytest.raises(CorpusError, match="line 6"):
        build_index(client, index, broken(), directory=tmp_path, installation="test")
    twice = [Document(id="same", title="a", text=""), Document(id="same", title="b", text="")]
    with pytest.raises(IndexingError, match=r"document 'same'.*version conflict"):
        build_index(client, index, twice, directory=tmp_path, installation="test")
    assert current_version(client, index) == first.name
    assert list(client.indices.get(index=f"{index}-*").body) == [first.name]
    assert load_manifest(tmp_path) == first
    assert load_documents(tmp_path) == products(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents.jsonl.gz", "manifest.json"]


def test_versions_keep_growing_after_the_index_was_lost(client: Elasticsearch, index: str, tmp_path: Path) -> None:
    first = build_index(client, index, products(5), directory=tmp_path, installation="test")
    client.indices.delete(index=first.name)
    assert build_index(client, index, products(5), directory=tmp_path, installation="test").name == f"{index}-2"


def test_a_changed_corpus_file_is_noticed(client: Elasticsearch, index: str, tmp_path: Path) -> None:
    build_index(client, index, products(5), directory=tmp_path, installation="test")
    other = tmp_path / "other"
    build_index(client, index, products(6), directory=other, installation="test")
    (tmp_path / "documents.jsonl.gz").write_bytes((other / "documents.jsonl.gz").read_bytes())
    with pytest.raises(IndexingError, match="expected the corpus"):
        load_documents(tmp_path)


def test_an_index_of_somebody_else_is_never_touched(client: Elasticsearch, unique_name: str) -> None:
    client.indices.create(index=unique_name)
    try:
        with pytest.raises(IndexingError, match="never touches an index that it did not make"):
            build_index(client, unique_name, products(3), installation="test")
    finally:
        client.indices.delete(index=unique_name)


@pytest.mark.parametrize("name", ["Upper", "a b", "icecat-2", "", "../x"])
def test_bad_names_are_refused(client: Elasticsearch, name: str) -> None:
    with pytest.raises(IndexingError, match="expected an index name"):
        build_index(client, name, products(1), installation="test")


def test_a_missing_index_names_those_there_are(client: Elasticsearch, index: str) -> None:
    build_index(client, index, products(3), installation="test")
    with pytest.raises(IndexingError, match=rf"no index 'nowhere' \(there are: .*{index}.*searchloop index"):
        current_version(client, "nowhere")
    with pytest.raises(RetrievalError, match=r"searchloop index|no such index"):
        Searcher(client, "nowhere-1", RetrievalSettings()).search_many(["x"], size=1)


def test_feedback_baselines_find_more_than_the_query(client: Elasticsearch, index: str) -> None:
    documents = [Document(id=f"a{n}", title="printer", text="toner" if n < 4 else "paper tray") for n in range(8)] + [
        Document(id=f"b{n}", title="toner cartridge", text="black") for n in range(4)
    ]
    version = build_index(client, index, documents, installation="test")
    retriever = Searcher(client, version.name, RetrievalSettings())
    feedback = FeedbackTerms(Catalogue(documents))
    raw = retriever.search_many(["printer"], size=20)[0]
    assert not {"b0", "b1"} & set(raw.ids)
    for method in ("bo1", "rm3"):
        settings = FeedbackSettings(documents=4, terms=3, weight=0.5)
        found = search_with_feedback(retriever, feedback, method, ["printer"], settings, size=20)[0]  # type: ignore[arg-type]
        assert {"b0", "b1", "b2", "b3"} <= set(found.ids)
        assert found.ids[0] in {"a0", "a1", "a2", "a3"}


def test_summaries_are_indexed_beside_titles_and_change_no_search(
    client: Elasticsearch, index: str, tmp_path: Path
) -> None:
    titles = {"a": "lamp", "b": "lamp", "c": "red chair"}
    documents = [Document(id=name, title=title, text="", metadata={}) for name, title in titles.items()]
    first = build_index(client, index, documents, directory=tmp_path, installation="test")
    written = Summaries(policy="1-abc-000005", by_document={"a": "red, brass"})
    second = build_index(
        client, index, documents, directory=tmp_path, summaries=written, keep={first.name}, installation="test"
    )
    assert (first.summaries, second.summaries) == ("", "1-abc-000005")
    assert load_manifest(tmp_path) == second
    assert current_version(client, index) == second.name
    assert shown_documents(client, second.name, ["b", "a", "a"]) == {
        "a": ShownTexts("lamp", "red, brass"),
        "b": ShownTexts("lamp"),
    }
    assert shown_documents(client, first.name, ["a"]) == {"a": ShownTexts("lamp")}, (
        "a version that a run was begun on must stay"
    )
    assert client.get(index=second.name, id="a")["_source"]["summary_policy"] == "1-abc-000005"
    for version in (first.name, second.name):
        with contextlib.closing(Searcher(client, version, RetrievalSettings())) as retriever:
            assert retriever.search_many(["red"], size=9)[0].ids == ["c"]
    with pytest.raises(IndexingError, match="document 'x' was found but cannot be read"):
        shown_documents(client, second.name, ["x"])
    third = build_index(client, index, documents, directory=tmp_path, installation="test")
    assert sorted(client.indices.get(index=f"{index}-*").body) == [third.name]
