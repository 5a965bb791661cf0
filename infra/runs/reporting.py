"""A run's report with what lies beside its log: its limit of staleness, and the index's titles and grades."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import msgspec

from infra.app.command_line import pasteable
from infra.app.home import SETTINGS_FILE, Home, IndexFolder, RunFolder, read_settings_file
from search_env.catalogue.corpora import load_corpus, load_qrels, load_queries
from storage.reports.page import render_page
from storage.reports.report import Report, read_report
from storage.reports.sums import Tell
from storage.shelf import Shelf
from streams.errors import SearchloopError

CATALOGUE_BYTES_MAX = 50_000_000  # Compressed. A larger one takes longer to read than anybody waits for titles.
BASELINES = {"relsum": "lead", "resume": "lead"}  # Rows of texts that no policy wrote; queries have "none".
SPLITS_JUDGED = ("train", "dev", "test_value", "test_pair")


class ReportedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a run's batch settings that its report needs."""

    staleness_max: int = 0


class ReportedTrain(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a run's training settings that its report needs: the recipe whose files were read."""

    recipe: str = ""


class ReportedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a run's settings that its report needs."""

    batch: ReportedBatch = ReportedBatch()
    train: ReportedTrain = ReportedTrain()


class ReportedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a run's file that its report needs."""

    index: str = ""
    settings: ReportedSettings = ReportedSettings()


def report_of(folder: RunFolder, tell: Tell = lambda _: None) -> Report:
    """Return the report of the run in this folder. tell: is told why sums that were kept there do not count.

    Raises StorageError if the run's log cannot be read.
    """
    return read_report(folder, staleness_max=_kept(folder).settings.batch.staleness_max, tell=tell)


def page_of(home: Home, folder: RunFolder, report: Report) -> str:
    """Return the report as a page, with titles and grades as far as the index's folder has them."""
    return render_page(report, shelf_of(home, folder, report))


def opening(page: Path) -> str:
    """Return a command line that opens a page in the user's browser."""
    return shlex.join(["python3", "-m", "webbrowser", page.absolute().as_uri()])


def shelf_of(home: Home, folder: RunFolder, report: Report) -> Shelf:
    """Return the titles and grades of the documents in the report's examples.

    What cannot be read is left out, and the shelf's note says why: a report must not fail because an index is gone.
    """
    kept = _kept(folder)
    baseline = BASELINES.get(kept.settings.train.recipe, "none")
    shelf = Shelf(program=pasteable(home), folder=shlex.quote(os.path.relpath(folder)), baseline=baseline)
    wanted = {hit.document_id for each in report.comparisons for hit in (*each.raw, *each.helped)}
    wanted |= {each.product_id for each in report.comparisons if each.product_id}
    if not wanted or not kept.index:
        return shelf
    try:
        index = home.index(kept.index)
        grades = _grades(index, {each.query_id: each.query for each in report.comparisons})
        titles, note = _titles(index, wanted)
    except (SearchloopError, OSError) as error:
        return msgspec.structs.replace(shelf, note=f"Titles and grades are missing: {error}")
    return msgspec.structs.replace(shelf, grades=grades, titles=titles, note=note)


def _titles(index: IndexFolder, wanted: Iterable[str]) -> tuple[dict[str, str], str]:
    path, ids = index / "documents.jsonl.gz", set(wanted)
    if not path.exists():
        return {}, f"Titles are missing: {path.parent.name} has no catalogue in this home."
    if path.stat().st_size > CATALOGUE_BYTES_MAX:
        return {}, f"Titles are missing: the catalogue is larger than {CATALOGUE_BYTES_MAX // 1_000_000} MB."
    return {each.id: each.title for each in load_corpus(path, kept=True) if each.id in ids and each.title}, ""


def _grades(index: IndexFolder, queries: dict[str, str]) -> dict[str, dict[str, int]]:
    """Return the judgments of these queries. An index made anew may have another query under the same id."""
    found: dict[str, dict[str, int]] = {}
    for split in SPLITS_JUDGED:
        asked, qrels = index.intents / f"queries.{split}.jsonl", index.intents / f"qrels.{split}.tsv"
        if not asked.exists() or not qrels.exists():
            continue
        same = {each.id for each in load_queries(asked) if queries.get(each.id) == each.text}
        if same:
            judged = load_qrels(qrels)
            found |= {query: judged[query] for query in same if query in judged}
    return found


def _kept(folder: RunFolder) -> ReportedRun:
    """Return the run's settings, or none for a run that has no file of them."""
    if not (folder / SETTINGS_FILE).exists():
        return ReportedRun()
    return read_settings_file(folder, ReportedRun)
