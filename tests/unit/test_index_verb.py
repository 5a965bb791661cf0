"""`searchloop index` reads its corpus document by document, and refuses a bad one before any service starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import infra.app.indexing
from infra.app.app import App
from infra.app.home import Home
from infra.app.indexing import IndexSummary
from infra.app.settings import Settings
from infra.commands.search import index
from search_env.catalogue.corpora import Document

DOCUMENTS = [Document(id=f"d{number}", title=f"title {number}", text="text") for number in range(3)]
LINE = '{{"_id": "{0.id}", "title": "{0.title}", "text": "{0.text}"}}\n'


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Iterable[Document]]:
    """Give what was handed to each indexing; no service starts."""
    given: list[Iterable[Document]] = []

    @contextmanager
    def running(self: App, report: object) -> Iterator[App]:
        yield self

    def indexed(app: App, *, name: str, documents: Iterable[Document], report: object, adopt: bool) -> IndexSummary:
        given.append(documents)
        return IndexSummary(name=f"{name}-1", alias=name, documents=0, sha256="", queries={}, kind="documents")

    monkeypatch.setattr(App, "running_services", running)
    monkeypatch.setattr(infra.app.indexing, "index_corpus", indexed)
    return given


def called(tmp_path: Path, lines: str) -> Result:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(lines)
    app = App(Home(tmp_path / "home"), settings=Settings())
    return CliRunner().invoke(index, [str(corpus), "--name", "shop"], obj=app, prog_name="index")


def test_a_corpus_is_handed_on_document_by_document(tmp_path: Path, started: list[Iterable[Document]]) -> None:
    done = called(tmp_path, "".join(map(LINE.format, DOCUMENTS)))
    assert done.exit_code == 0, done.output
    (documents,) = started
    assert isinstance(documents, Iterator), "a catalogue may not fit into memory"
    assert list(documents) == DOCUMENTS


def test_a_bad_line_stops_it_before_any_service_starts(tmp_path: Path, started: list[Iterable[Document]]) -> None:
    done = called(tmp_path, LINE.format(DOCUMENTS[0]) + "no JSON\n")
    assert done.exit_code != 0 and "line 2" in f"{done.exception} {done.output}"
    assert started == []
