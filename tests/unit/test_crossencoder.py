"""Calibration against scikit-learn, and a cross-encoder that learns what stands in a text and survives the disk."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from search_env.models.calibration import area_under_curve, calibration_error, platt, sigmoid, smoothed
from search_env.models.crossencoder import (
    CrossEncoderError,
    CrossEncoderSettings,
    ReadTexts,
    current_version,
    load_cross_encoder,
    product_text,
    save_cross_encoder,
)
from search_env.models.crossencoder_training import (
    LabelledPair,
    adapt_cross_encoder,
    calibrate,
    train_cross_encoder,
)

SMALL = CrossEncoderSettings(layers=1, tokens_max=16, batch_size=8)


def quiet(what: str, done: int, total: int) -> None:
    """Report nothing."""


def drawn(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(size=count) * 3
    return logits, (random.random(count) < sigmoid(0.5 * logits - 1)).astype(np.float64)


def test_platts_scaling_is_logistic_regression_on_smoothed_labels() -> None:
    logits, labels = drawn()
    model = LogisticRegression(C=1e10).fit(logits[:, None], labels)
    assert platt(logits, smoothed(labels)) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), abs=0.01)


def test_separable_scores_have_a_finite_scaling() -> None:
    scale, shift = platt(np.array([-1.0, -2.0, 1.0, 2.0]), smoothed(np.array([0.0, 0.0, 1.0, 1.0])))
    assert np.isfinite([scale, shift]).all()
    assert scale > 0


def test_scaling_takes_the_calibration_error_away() -> None:
    logits, labels = drawn()
    scale, shift = platt(logits, smoothed(labels))
    assert calibration_error(sigmoid(logits), labels) > 0.1
    assert calibration_error(sigmoid(scale * logits + shift), labels) < 0.03


def test_the_area_is_scikit_learns_ties_included() -> None:
    logits, labels = drawn(500)
    scores = np.round(logits)
    assert area_under_curve(scores, labels > 0.5) == pytest.approx(roc_auc_score(labels, scores))


def test_an_uncalibrated_cross_encoder_gives_no_probabilities_and_a_missing_one_says_how_to_make_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(CrossEncoderError, match="searchloop train"):
        load_cross_encoder(tmp_path, SMALL)


def test_a_trained_version_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    words = ["red", "blue", "green", "steel", "paper", "copper"]
    pairs = [
        LabelledPair(query=asked, text=f"lamp; {said}", label=int(asked == said)) for asked in words for said in words
    ]
    made = train_cross_encoder([pairs[:6]], pairs, SMALL, tmp_path / "first", quiet)
    again = train_cross_encoder([pairs[:6]], pairs, SMALL, tmp_path / "first", quiet)
    asked = [(pair.query, pair.text) for pair in pairs[:8]]
    logits = made.logits(asked)
    assert again.logits(asked).tolist() == logits.tolist()
    with pytest.raises(CrossEncoderError, match="calibrated"):
        made.probabilities(logits)
    calibration = save_cross_encoder(made, calibrate(made, pairs, quiet), tmp_path / "versions")
    read = load_cross_encoder(tmp_path / "versions", SMALL)
    assert read.name == f"cross-encoder-{calibration.version}"
    np.testing.assert_allclose(read.logits(asked), logits, atol=1e-5)
    assert ((read.probabilities(logits) > 0) & (read.probabilities(logits) < 1)).all()
    assert read.logits([asked[0], asked[0]]).tolist() == read.logits(asked[:1]).tolist() * 2


def test_an_adapted_version_learns_on_stands_beside_its_parent_and_is_read_by_name(tmp_path: Path) -> None:
    words = ["red", "blue", "green", "steel", "paper", "copper"]
    asked = [(query, f"lamp; {said}") for query in words for said in words]
    # The parent has learned that three colours answer all; adapting teaches the opposite, so that either can be seen.
    agreeing = [LabelledPair(query=q, text=t, label=int(t.split()[-1] in words[:3])) for q, t in asked]
    opposite = [msgspec.structs.replace(pair, label=1 - pair.label) for pair in agreeing]
    root = tmp_path / "versions"
    made = train_cross_encoder([], agreeing * 6, SMALL, tmp_path / "first", quiet)
    parent = save_cross_encoder(made, calibrate(made, agreeing, quiet), root)
    before = made.logits(asked)
    adapted = adapt_cross_encoder(made, opposite * 12, SMALL, quiet)
    assert made.logits(asked).tolist() == before.tolist(), "the parent was changed"
    labels = np.array([pair.label for pair in agreeing]) > 0.5
    assert area_under_curve(made.logits(asked), labels) > 0.9 > 0.5 > area_under_curve(adapted.logits(asked), labels)

    calibration = msgspec.structs.replace(calibrate(adapted, opposite, quiet), parent=parent.version)
    named = save_cross_encoder(adapted, calibration, root, current=False)
    assert current_version(root) == parent.version != named.version
    read = load_cross_encoder(root, msgspec.structs.replace(SMALL, version=named.version))
    np.testing.assert_allclose(read.logits(asked), adapted.logits(asked), atol=1e-5)
    assert read.calibration == named
    known = ", ".join(sorted((parent.version, named.version)))
    with pytest.raises(CrossEncoderError, match=f"expected one of {known} below .*, got 'r2'"):
        load_cross_encoder(root, msgspec.structs.replace(SMALL, version="r2"))


def test_a_title_without_a_summary_stands_alone() -> None:
    assert (product_text("lamp", ""), product_text("lamp", "red")) == ("lamp", "lamp; red")


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_products_are_ranked_by_title_and_summary_with_the_title_alone_beside_it(tmp_path: Path, weight: float) -> None:
    pairs = [
        LabelledPair(query=asked, text=f"lamp; {said}", label=int(said == "red"))
        for asked in "abcdef"
        for said in ("red", "blue")
    ]
    settings = msgspec.structs.replace(SMALL, title_weight=weight)
    made = train_cross_encoder([], pairs, settings, tmp_path / "first", quiet)
    save_cross_encoder(made, calibrate(made, pairs, quiet), tmp_path / "versions")
    read = load_cross_encoder(tmp_path / "versions", settings)
    assert read.calibration is not None
    titled, whole = read.logits([("a", "lamp"), ("a", "lamp; red")])
    mixed = (1 - weight) * whole + weight * titled
    expected = sigmoid(read.calibration.scale * np.array([mixed, titled]) + read.calibration.shift)
    found = read.relevance([ReadTexts("a", "lamp", "red"), ReadTexts("a", "lamp", "")])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
