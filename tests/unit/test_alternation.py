"""When an alternation ends, which turn is its best, and what it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import AlternationSettings, Settings
from infra.recipes.resume.measuring import reciprocal_rank
from infra.recipes.resume.partner import RetrieverPartner
from infra.runs.alternation import Alternation, Turn, alternate, read_alternation, reason_to_end
from learner.learning import LearnerSettings
from learner.objectives import ObjectiveSettings
from search_env.catalogue.corpora import Ranking
from streams.errors import SettingsError


def turns(*scores: float) -> tuple[Turn, ...]:
    return tuple(
        Turn(
            turn=number,
            run=f"r-t{number}",
            policy="1-a-000001",
            scored_by="r0-a",
            adapted=f"r{number}-a",
            before=0.0,
            after=score,
        )
        for number, score in enumerate(scores, start=1)
    )


@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ((0.5,), 1, ""),
        ((0.5, 0.6), 1, ""),
        ((0.5, 0.6, 0.6005), 1, "dev queries gained no more"),
        ((0.5, 0.4), 1, "dev queries gained no more"),
        ((0.5, 0.4), 2, ""),
        ((0.5, 0.4, 0.45), 2, "dev queries gained no more"),
        ((0.5, 0.4, 0.6), 2, ""),
        ((0.1, 0.2, 0.3, 0.4), 1, "turns_max was reached"),
    ],
)
def test_it_ends_when_dev_queries_gain_no_more(scores: tuple[float, ...], patience: int, expected: str) -> None:
    rules = AlternationSettings(turns_max=4, gain_min=0.002, patience=patience)
    assert reason_to_end(turns(*scores), Settings(alternation=rules)) == expected


def test_settings_that_cannot_train_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    objective = ObjectiveSettings(surrogate="likelihood", aggregation="sequence")
    app = App(Home(tmp_path), settings=Settings(learner=LearnerSettings(objective=objective)))
    with pytest.raises(SettingsError, match=r"^learner\.objective\.aggregation: expected 'constant' or 'token'"):
        alternate(
            app,
            RetrieverPartner(),
            recipe="resume",
            index="none is needed",
            seed=0,
            name="alt",
            held_out=[],
            report=lambda *_: None,
        )
    assert not list(tmp_path.iterdir())


def test_the_best_turn_is_the_first_of_the_highest() -> None:
    state = Alternation(
        name="r",
        index="i",
        seed=0,
        setting="resume.retriever",
        measure="RR@10",
        first="r0-a",
        turns=turns(0.5, 0.7, 0.7, 0.6),
    )
    assert state.best.turn == 2


def test_reciprocal_rank_counts_the_first_relevant_of_ten_worked_by_hand() -> None:
    late = [f"x{number}" for number in range(10)]
    rankings = {
        "a": Ranking(["x", "good", "good2"], [3, 2, 1]),
        "b": Ranking([*late, "good"], list(range(11))),
        "c": Ranking(["good"], [1]),
    }
    qrels = {"a": {"good": 1, "good2": 2}, "b": {"good": 1}, "c": {"good": 0}}
    assert reciprocal_rank(rankings, qrels) == pytest.approx((1 / 2 + 0) / 2)
    assert reciprocal_rank({}, qrels) == 0.0


def test_a_damaged_state_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "alternation.json").write_text("{")
    with pytest.raises(SettingsError, match=r"alternation\.json.*Start a new one"):
        read_alternation(tmp_path / "alternation.json")
