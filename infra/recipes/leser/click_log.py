"""The clicks of a run's log, which a relevance model learns from: final outcomes of people, and older feedback."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from infra.app.home import Home
from search_env.models.clicked_lists import ShownList
from storage.ledger import LEDGER
from storage.log import open_log
from streams.errors import SettingsError

CLICK_KINDS = ("click", "add_to_cart", "purchase")

_OUTCOMES = "SELECT query, shown, actions, client FROM trusted_outcomes"
_FEEDBACK = """
    SELECT query, shown, actions, client FROM first_feedback
    WHERE feedback_id NOT IN (SELECT impression_id FROM first_impressions)
"""
_WINDOW = """
    SELECT topic, partition, min(record_offset) AS first, max(record_offset) + 1 AS next
    FROM impression_outcomes WHERE final GROUP BY ALL ORDER BY ALL
"""
_BOTS = "SELECT count(*) AS bots FROM final_outcomes WHERE coalesce(bot, '') <> ''"


class ClickedLog(NamedTuple):
    """The lists of a run's log. window: by "topic/partition", the first offset and the one behind the last.

    bots: outcomes of bots, which are not among the lists.
    """

    run: str
    lists: Sequence[ShownList]
    window: dict[str, tuple[int, int]]
    bots: int


def shown_lists(home: Home, traffic: str) -> ClickedLog:
    """Return what the searches of a run of live traffic showed, with the clicks that are final.

    A click, a cart and a purchase count once for each search and document. Impressions of bots are left out.
    Raises SettingsError without any list, or if no list says what it showed at which rank.
    """
    folder = home.existing_run(traffic)
    if not (folder / LEDGER).exists():
        raise SettingsError(
            f"--traffic: run {traffic!r} has stored no traffic yet. Run: searchloop listen --run {traffic} --until-read"
        )
    with open_log(folder) as log:
        rows = [*log.rows(_OUTCOMES), *log.rows(_FEEDBACK)]  # Their actions have different columns.
        window = {f"{row['topic']}/{row['partition']}": (row["first"], row["next"]) for row in log.rows(_WINDOW)}
        (marked,) = log.rows(_BOTS)
    lists = [
        ShownList(
            query=row["query"],
            shown=[(each["document_id"], each["rank"]) for each in row["shown"] or ()],
            clicked=frozenset(each["document_id"] for each in row["actions"] or () if each["kind"] in CLICK_KINDS),
            client=row["client"] or "",
        )
        for row in rows
        if row["query"]
    ]
    if not lists:
        raise SettingsError(
            f"--traffic: expected final outcomes of searches in run {traffic!r}, got none. They are final "
            "join.window_seconds after the search"
        )
    if not any(each.shown for each in lists):
        raise SettingsError(
            f"--traffic: expected searches with the documents that they showed, each with its rank, got "
            f"{len(lists)} searches in run {traffic!r} without any. A click alone says nothing: send impressions, too "
            "(infra/LIVE.md)"
        )
    return ClickedLog(traffic, lists, window, int(marked["bots"]))


def of_some_clients(lists: Sequence[ShownList], share: float) -> list[ShownList]:
    """Return the lists of this share of clients, chosen by a hash; lists without a client always stay."""
    if share >= 1:
        return list(lists)
    chosen: dict[str, bool] = {"": True}
    for client in {each.client for each in lists} - {""}:
        drawn = int(hashlib.sha256(f"fit\t{client}".encode()).hexdigest()[:13], 16) / 16**13
        chosen[client] = drawn < share
    return [each for each in lists if chosen[each.client]]
