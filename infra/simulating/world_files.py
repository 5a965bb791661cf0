"""Days of the changing world as files, which `searchloop index` and `searchloop simulate` read."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import msgspec

from infra.app.progress import Report
from infra.simulating.world import Day, WorldSettings, days
from search_env.catalogue.corpora import Document, Query, write_qrels, write_queries, write_whole
from streams.errors import SettingsError

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels.tsv"


def write_days(folder: Path, settings: WorldSettings, count: int, report: Report) -> list[Path]:
    """Write so many days, a folder each (`day-01` …), and return the folders in their order.

    corpus.jsonl: the products of the day. queries.jsonl: what people ask, the most popular first, as `simulate` asks
    them. qrels.tsv: the hidden relevance, for simulated people alone.
    Raises SettingsError, before it writes anything, if one of the folders exists.
    """
    places = [folder / f"day-{number:02d}" for number in range(1, count + 1)]
    if there := [place for place in places if place.exists()]:
        raise SettingsError(f"{there[0]}: expected no such folder yet. Name another one, or remove it")
    for number, (place, day) in enumerate(zip(places, islice(days(settings), count), strict=True)):
        report("days", number, count)
        place.mkdir(parents=True)
        write_whole(place / CORPUS, b"".join(_line(each) for each in day.documents))
        asked = by_popularity(day)
        write_queries(place / QUERIES, asked)
        write_qrels(place / QRELS, {query.id: day.grades[query.id] for query in asked})
    report("days", count, count)
    return places


def by_popularity(day: Day) -> list[Query]:
    """Return the queries of a day that have products, the most popular first."""
    known = [
        (popularity, query)
        for popularity, query in zip(day.popularity, day.queries, strict=True)
        if query.id in day.grades
    ]
    return [query for _, query in sorted(known, key=lambda each: (-each[0], each[1].id))]


def _line(document: Document) -> bytes:
    """Return a document as a line of a BEIR corpus."""
    return (
        msgspec.json.encode(
            {"_id": document.id, "title": document.title, "text": document.text, "metadata": document.metadata}
        )
        + b"\n"
    )
