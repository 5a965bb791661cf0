"""Click models: probabilities worked by hand, planted parameters that come back, and files that hold no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_env.clicks.fitting import FITS, Sessions, fit_position_based
from search_env.clicks.models import (
    Cascade,
    ClickModel,
    DynamicBayesian,
    PositionBased,
    TrustBias,
    UserBrowsing,
    click_probabilities,
    draw,
    perplexity,
)
from search_env.clicks.published import ClickModelError, read_click_model

EXAMINATION = (1.0, 0.61, 0.48, 0.34, 0.28, 0.2, 0.11, 0.1, 0.08, 0.06)
BROWSING = ((1.0,), (0.9, 0.8), (0.7, 0.6, 0.5))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (PositionBased(examination=(1.0, 0.5, 0.25)), [0.5, 0.2, 0.2]),
        # The first result is clicked, the second not: distance 0 at rank 2, distance 1 at rank 3.
        (UserBrowsing(examination=BROWSING), [0.5, 0.9 * 0.4, 0.6 * 0.8]),
        (Cascade(), [0.5, 0.0, 0.0]),
        # After the click: .9 (1 - .25) = .675. After no click at .4: .9 · .675 · .6 / (1 - .675 · .4) = .49932.
        (DynamicBayesian(going_on=0.9, satisfaction=0.25), [0.5, 0.675 * 0.4, 0.9 * 0.675 * 0.6 / 0.73 * 0.8]),
        (
            TrustBias(examination=(1.0, 0.5, 0.25), relevant=(0.9, 0.8, 0.7), irrelevant=(0.6, 0.3, 0.2)),
            [0.9 * 0.5 + 0.6 * 0.5, 0.5 * (0.8 * 0.4 + 0.3 * 0.6), 0.25 * (0.7 * 0.8 + 0.2 * 0.2)],
        ),
    ],
)
def test_each_model_gives_the_probabilities_worked_by_hand(model: ClickModel, expected: list[float]) -> None:
    attraction = np.array([[0.5, 0.4, 0.8]])
    clicks = np.array([[True, False, False]])
    np.testing.assert_allclose(click_probabilities(model, attraction, clicks)[0], expected)


def test_drawn_clicks_come_as_often_as_the_model_says() -> None:
    attraction = np.tile([0.5, 0.4, 0.8], (200_000, 1))
    for model in (UserBrowsing(examination=BROWSING), DynamicBayesian(going_on=0.9, satisfaction=0.25), Cascade()):
        clicks = draw(model, attraction, np.random.default_rng(0))
        expected = click_probabilities(model, attraction, clicks)
        for above in (False, True):
            here = clicks[:, 0] == above
            found = clicks[here, 1:].mean(axis=0)
            np.testing.assert_allclose(found, expected[here, 1:].mean(axis=0), atol=0.006)


def test_planted_propensities_come_back_within_five_percent() -> None:
    random = np.random.default_rng(1)
    queries, documents, sessions = 200, 20, 100_000
    asked = random.integers(queries, size=sessions)
    # Each search shows ten of the query's documents in random order, so examination and attraction can be told apart.
    order = np.argsort(random.random((sessions, documents)), axis=1)[:, :10]
    pairs = asked[:, None] * documents + order
    planted = random.beta(1, 2, size=queries * documents)
    clicks = draw(PositionBased(examination=EXAMINATION), planted[pairs], random)
    found = fit_position_based(Sessions(pairs=pairs, clicks=clicks, size=len(planted)))
    assert isinstance(found.model, PositionBased)
    np.testing.assert_allclose(found.model.examination, EXAMINATION, rtol=0.05)
    assert np.corrcoef(found.attraction, planted)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("planted", "best"),
    [
        (PositionBased(examination=EXAMINATION), "PBM"),
        (DynamicBayesian(going_on=1.0, satisfaction=0.7), "DBN"),
        (Cascade(), "cascade"),
    ],
)
def test_the_model_that_made_the_clicks_foretells_them_best(planted: ClickModel, best: str) -> None:
    random = np.random.default_rng(2)
    truth = random.beta(1, 2, size=400)

    def sessions(count: int) -> Sessions:
        asked = random.integers(40, size=count)
        pairs = asked[:, None] * 10 + np.argsort(random.random((count, 10)), axis=1)
        return Sessions(pairs=pairs, clicks=draw(planted, truth[pairs], random), size=400)

    train, held_out = sessions(20_000), sessions(5_000)
    found = {name: fit(train).perplexity(held_out) for name, fit in FITS.items()}
    assert found[best] <= min(found.values()) + 0.002, found
    assert found[best] < found["positions alone"]


def test_perplexity_is_the_one_worked_by_hand() -> None:
    probabilities = np.array([[0.5, 0.25], [0.5, np.nan]])
    clicks = np.array([[True, False], [False, False]])
    assert perplexity(probabilities, clicks) == pytest.approx((0.5 * 0.75 * 0.5) ** (-1 / 3))


def test_a_session_without_clicks_or_of_unknown_pairs_is_fitted_too() -> None:
    pairs = np.array([[0, 1, -1], [1, 0, 2]])
    none = Sessions(pairs=pairs, clicks=np.zeros((2, 3), dtype=bool), size=5)
    for fit in FITS.values():
        fitted = fit(none)
        assert np.all(np.isfinite(fitted.attraction))
        assert fitted.perplexity(none) == pytest.approx(1.0, abs=1e-3)


def written(path: Path, **changes: Any) -> Path:
    content = {"model_name": "position_biased_model", "click_prob": [0.1, 1.0], "exam_prob": [0.7, 0.5]}
    path.write_text(json.dumps(content | changes))
    return path


def test_published_files_are_read(tmp_path: Path) -> None:
    plain = read_click_model(written(tmp_path / "pbm.json"))
    assert (plain.model, plain.attraction) == (PositionBased(examination=(0.7, 0.5)), (0.1, 1.0))
    browsing = read_click_model(
        written(tmp_path / "ubm.json", model_name="user_browsing_model", exam_prob=[[1.0], [0.98, 1.0]])
    )
    assert browsing.model == UserBrowsing(examination=((1.0,), (0.98, 1.0)))
    trust = read_click_model(
        written(tmp_path / "trust.json", model_name="trust_biased_model", extra={"epsilon_1_neg": 0.65})
    ).model
    assert isinstance(trust, TrustBias)
    assert trust.relevant == pytest.approx((0.96, 0.95))
    assert trust.irrelevant == pytest.approx((0.65, 0.325))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_name": "psychic_model"}, "got 'psychic_model'"),
        ({"exam_prob": [0.5, 1.5]}, "expected a click model"),
        ({"click_prob": []}, "expected a click model"),
        ({"model_name": "user_browsing_model", "exam_prob": [[1.0], [0.98]]}, "expected 2 values at rank 2, got 1"),
        ({"model_name": "user_browsing_model"}, "expected a list of examinations for each rank"),
        ({"exam_prob": [[0.5], [0.4, 0.3]]}, "expected one examination a rank"),
    ],
)
def test_a_file_without_a_known_model_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ClickModelError, match=said):
        read_click_model(written(tmp_path / "model.json", **changes))
