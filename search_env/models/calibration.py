"""Calibration: from a model's raw outputs to probabilities, and how well those are met.

Platt's scaling (Platt 1999) is logistic regression of the labels on one output: σ(scale · output + shift).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BINS = 10
STEPS_MAX = 50
SMALLEST_STEP = 1e-10


def sigmoid(values: Floats) -> Floats:
    """Return 1 / (1 + e^−value), without overflow."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -60, 60))), dtype=np.float64)


def smoothed(labels: Floats) -> Floats:
    """Return Platt's targets (n₊+1)/(n₊+2) and 1/(n₋+2) for labels 1 and 0: separable outputs then have a solution."""
    positives = float(labels.sum())
    negatives = len(labels) - positives
    return np.where(labels > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def platt(outputs: Floats, targets: Floats) -> tuple[float, float]:
    """Return (scale, shift) that minimize the log loss of σ(scale · output + shift), by Newton's method.

    targets: probabilities, such as `smoothed` labels or grades from 0 to 1. A step is halved until the loss falls.
    """
    inputs = np.stack([outputs, np.ones_like(outputs)], axis=1)  # [n, 2]

    def loss(parameters: Floats) -> float:
        values = inputs @ parameters
        return float(np.mean(np.logaddexp(0.0, values) - targets * values))

    fitted, best = np.array([1.0, 0.0]), loss(np.array([1.0, 0.0]))
    for _ in range(STEPS_MAX):
        expected = sigmoid(inputs @ fitted)
        gradient = inputs.T @ (expected - targets) / len(targets)
        slopes = np.maximum(expected * (1 - expected), 1e-9)
        hessian = (inputs * slopes[:, None]).T @ inputs / len(targets) + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while float(np.abs(step).max()) > SMALLEST_STEP and not loss(fitted - step) < best:
            step = step / 2
        if float(np.abs(step).max()) <= SMALLEST_STEP:
            break
        fitted = fitted - step
        best = loss(fitted)
    return float(fitted[0]), float(fitted[1])


def calibration_error(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]) -> float:
    """Return the expected calibration error: |mean probability − mean label| over ten bins, weighted by their size."""
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    error = 0.0
    for each in range(BINS):
        inside = place == each
        if inside.any():
            error += float(inside.mean()) * abs(float(probabilities[inside].mean()) - float(labels[inside].mean()))
    return error


def area_under_curve(scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> float:
    """Return the share of cases in which a relevant pair outscores another one; ties count half (Mann and Whitney).

    NaN if all pairs are alike.
    """
    from scipy.stats import rankdata

    count = int(positive.sum())
    rest = len(positive) - count
    if not count or not rest:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * rest))
