"""The titles and grades that a report's page takes from the index's folder, and what it does without."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import msgspec
import pytest

import infra.runs.reporting as reporting
from infra.app.home import Home
from infra.runs.reporting import opening, page_of, report_of, shelf_of
from search_env.catalogue.corpora import Query, write_qrels, write_queries
from streams.errors import SettingsError
from streams.records import Received
from tests.stored_events import record, reward
from tests.unit.test_report import run_folder

QUERY = "wireless noise cancelling headphones"


def found_by(number: int, *documents: str) -> Received:
    """A group for query q1 whose searches found these documents."""
    event = reward(number)
    named = tuple(
        msgspec.structs.replace(hit, document_id=name) for hit, name in zip(event.raw_hits, documents, strict=False)
    )
    request = msgspec.structs.replace(event.generation.request, query_id="q1")
    outcomes = tuple(msgspec.structs.replace(each, hits=named[::-1]) for each in event.outcomes)
    group = msgspec.structs.replace(event.generation, request=request)
    return record(msgspec.structs.replace(event, generation=group, outcomes=outcomes, raw_hits=named), number)


def home_with_index(root: Path, *, asked: str = QUERY, titles: str = "Red mug") -> Home:
    """A home with a run, and an index that has one title and one judgment."""
    home = Home(root)
    folder = run_folder(root, [found_by(0, "d1", "d2")])
    settings = {"index": "shop", "settings": {"batch": {"staleness_max": 3}, "train": {"recipe": "relsum"}}}
    (folder / "settings.json").write_text(json.dumps(settings))
    index = home.index("shop")
    index.intents.mkdir(parents=True)
    lines = [{"_id": "d1", "title": titles, "text": ""}, {"_id": "d9", "title": "Other", "text": ""}]
    (index / "documents.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    write_queries(index.intents / "queries.train.jsonl", [Query(id="q1", text=asked)])
    write_qrels(index.intents / "qrels.train.tsv", {"q1": {"d2": 2, "d9": 1}})
    return home


def test_titles_and_grades_come_from_the_folder_of_the_runs_index(tmp_path: Path) -> None:
    home = home_with_index(tmp_path)
    report = report_of(home.run("demo"))
    shelf = shelf_of(home, home.run("demo"), report)
    assert shelf.titles == {"d1": "Red mug"} and shelf.grades == {"q1": {"d2": 2, "d9": 1}} and shelf.note == ""
    assert shelf.baseline == "lead" and f"--home {os.path.relpath(tmp_path)}" in shelf.program
    assert shelf.folder.endswith("runs/demo")
    page = page_of(home, home.run("demo"), report)
    assert "Red mug" in page and '<span class="grade">grade 2</span>' in page and "Other" not in page


def test_judgments_of_another_query_under_the_same_id_are_not_taken(tmp_path: Path) -> None:
    home = home_with_index(tmp_path, asked="garden chair")
    assert shelf_of(home, home.run("demo"), report_of(home.run("demo"))).grades == {}


def test_a_report_without_its_index_says_what_is_missing(tmp_path: Path) -> None:
    home = home_with_index(tmp_path)
    (home.index("shop") / "documents.jsonl.gz").unlink()
    report = report_of(home.run("demo"))
    page = page_of(home, home.run("demo"), report)
    assert "Titles are missing: shop has no catalogue in this home." in page and "d1" in page
    (home.index("shop") / "documents.jsonl.gz").write_bytes(gzip.compress(b'{"_id": 7}'))
    assert "Titles and grades are missing: " in page_of(home, home.run("demo"), report)


def test_a_catalogue_that_takes_long_to_read_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "CATALOGUE_BYTES_MAX", 10)
    home = home_with_index(tmp_path)
    shelf = shelf_of(home, home.run("demo"), report_of(home.run("demo")))
    assert shelf.titles == {} and "larger than" in shelf.note and shelf.grades


def test_a_run_without_settings_has_a_report_and_damaged_settings_are_an_error(tmp_path: Path) -> None:
    home = home_with_index(tmp_path)
    folder = home.run("demo")
    folder.settings_file.unlink()
    report = report_of(folder)
    assert shelf_of(home, folder, report).titles == {} and "d1" in page_of(home, folder, report)
    folder.settings_file.write_text("{")
    with pytest.raises(SettingsError, match=r"settings\.json"):
        report_of(folder)


def test_the_command_that_opens_a_page_can_be_pasted_whatever_its_name() -> None:
    assert opening(Path("/a b/r'.html")) == "python3 -m webbrowser file:///a%20b/r%27.html"
