"""The queries that people asked, as training queries of a new run. Those of bots are left out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from infra.app.home import Home
from search_env.catalogue.analysis import plain_words
from search_env.catalogue.corpora import Query, write_whole
from storage.ledger import LEDGER
from storage.log import open_log
from streams.errors import SettingsError
from streams.traffic_events import JUDGING

FOLDER = "asked"

_SQL = f"""
    SELECT query, count(*) AS times FROM (
        SELECT impression_id, query FROM first_impressions
        WHERE impression_id NOT IN (SELECT impression_id FROM final_outcomes WHERE coalesce(bot, '') <> '')
            AND coalesce(application, '') <> '{JUDGING}'
        UNION ALL SELECT feedback_id, query FROM first_feedback
        WHERE feedback_id NOT IN (SELECT impression_id FROM first_impressions)
    ) GROUP BY query ORDER BY times DESC, query
"""


def asked_queries(home: Home, traffic: str, *, run: str) -> Path:
    """Return the file of the queries that people asked in the run `traffic`, for the new run `run`.

    Queries with the same words are one. The first call writes the file, and later calls find it: a run goes on with the
    queries that it began with, however the traffic grows. Raises SettingsError if there is no traffic.
    """
    folder = home.existing_run(traffic)
    path = folder / FOLDER / f"{run}.jsonl"
    if path.exists():
        return path
    if not (folder / LEDGER).exists():
        raise SettingsError(
            f"--traffic: run {traffic!r} has stored no traffic yet. Run: searchloop listen --run {traffic} --until-read"
        )
    with open_log(folder) as log:
        rows = log.rows(_SQL)
    found: dict[str, tuple[str, int]] = {}
    for row in rows:
        words = plain_words(row["query"])
        text, times = found.get(words, (row["query"], 0))
        found[words] = (text, times + row["times"])
    found.pop("", None)
    if not found:
        raise SettingsError(f"--traffic: expected queries in run {traffic!r}, got none")
    lines = b""
    for words, (text, times) in sorted(found.items(), key=lambda item: (-item[1][1], item[0])):
        name = f"asked-{hashlib.sha256(words.encode()).hexdigest()[:16]}"
        query = Query(id=name, text=text, metadata={"times": times})
        lines += msgspec.json.encode({"_id": query.id, "text": query.text, "metadata": query.metadata}) + b"\n"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, lines)
    return path
