"""Clicks out of a run's ledger: joined outcomes of people and older feedback, each search once."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.app.home import Home
from infra.app.settings import Settings
from infra.recipes.leser.click_log import ClickedLog, shown_lists
from infra.recipes.leser.people import People, peoples_blocks
from search_env.catalogue.corpora import Document
from search_env.catalogue.term_matrices import Catalogue
from search_env.models.clicked_lists import ShownList
from storage.ledger import LEDGER, build_batch, open_ledger, store_batch
from streams.codec import encode_event
from streams.errors import SettingsError
from streams.events import Position
from streams.records import Received
from streams.traffic_events import Action, Feedback, Impression, ImpressionOutcome, Shown, UserAction

SHOWN = (Shown(document_id="d1", rank=1), Shown(document_id="d2", rank=2))


def outcome(name: str, *kinds: str, final: bool = True, bot: str = "") -> ImpressionOutcome:
    impression = Impression(impression_id=name, query_id="q", query="red mug", shown=SHOWN, at_ms=1)
    actions = tuple(
        UserAction(action_id=f"{name}/{n}", impression_id=name, kind=kind, document_id="d2", at_ms=2)
        for n, kind in enumerate(kinds)
    )
    return ImpressionOutcome(impression=impression, actions=actions, final=final, bot=bot)


def feedback(name: str) -> Feedback:
    clicked = (Action(kind="click", document_id="d1"),)
    return Feedback(feedback_id=name, query_id="q", query="lamp", application="a", shown=SHOWN, actions=clicked)


def store(home: Home, run: str, events: dict[str, list[ImpressionOutcome | Feedback | Impression]]) -> None:
    folder = home.run(run)
    folder.mkdir(parents=True)
    records = [
        Received(
            position=Position(topic=f"{run}.{kind}", partition=0, offset=n),
            timestamp_ms=1,
            key=None,
            value=encode_event(event),
        )
        for kind, of in events.items()
        for n, event in enumerate(of)
    ]
    connection = open_ledger(folder / LEDGER, memory_mib=256, threads=1)
    store_batch(connection, build_batch(records))
    connection.close()


def test_final_outcomes_of_people_and_feedback_are_read_each_search_once(tmp_path: Path) -> None:
    home = Home(tmp_path)
    both = feedback("known")
    known = Impression(impression_id="known", query_id="q", query="lamp", shown=SHOWN, at_ms=1)
    store(
        home,
        "live",
        {
            "impression-outcomes": [
                outcome("i1", "click", "purchase"),
                outcome("i2", "hover"),
                outcome("open", "click", final=False),
                outcome("robot", "click", bot="rate"),
            ],
            "feedback": [feedback("old"), both],
            "impressions": [known],
        },
    )
    log = shown_lists(home, "live")
    found = log.lists
    assert (log.run, log.bots, log.window) == ("live", 1, {"live.impression-outcomes/0": (0, 4)})
    shown = [("d1", 1), ("d2", 2)]
    assert sorted(found) == sorted(
        [
            ShownList("red mug", shown, frozenset({"d2"})),
            ShownList("red mug", shown, frozenset()),
            ShownList("lamp", shown, frozenset({"d1"})),
        ]
    )


def test_a_run_without_final_outcomes_says_when_they_come(tmp_path: Path) -> None:
    home = Home(tmp_path)
    store(home, "live", {"impression-outcomes": [outcome("open", "click", final=False)]})
    with pytest.raises(SettingsError, match="expected final outcomes of searches in run 'live', got none"):
        shown_lists(home, "live")
    home.run("empty").mkdir()
    with pytest.raises(SettingsError, match="run 'empty' has stored no traffic yet"):
        shown_lists(home, "empty")


def test_clicks_of_few_queries_train_nothing_and_say_so(tmp_path: Path) -> None:
    catalogue = Catalogue([Document(id=f"d{n}", title=f"mug number{n}", text="") for n in range(5)])
    folder = Home(tmp_path).index("shop")

    def lists(queries: int) -> list[ShownList]:
        shown = [("d1", 1), ("d2", 2), ("gone", 3)]
        return [ShownList(f"mug {n}", shown, frozenset({"d2"})) for n in range(queries) for _ in range(4)]

    told: list[str] = []

    def clicked(queries: int) -> People:
        return People(log=ClickedLog("live", lists(queries), {}, 0))

    blocks, numbers, _ = peoples_blocks(folder, Settings(), catalogue, clicked(19), lambda what, *_: told.append(what))
    assert blocks == []
    assert numbers["clicked_queries"] == 19
    assert told == ["leaving out the clicks: expected at least 20 clicked queries, got 19"]
    blocks, numbers, fit = peoples_blocks(folder, Settings(), catalogue, clicked(20), lambda *_: None)
    assert fit is not None and (fit.run, fit.lists, fit.clicks) == ("live", 80, 80)
    assert len(blocks) == numbers["clicked_queries"] == 20
    assert all(len(each.block.labels) == 2 for each in blocks)  # `gone` is not in the catalogue.
    assert all(each.block.labels[1] > each.block.labels[0] for each in blocks)
