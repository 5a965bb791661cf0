"""Click models and COEC: what was planted comes back.

The judgments and clicks for COEC follow the generator of OpenSearch's User Behavior Insights (`ubi-data-generator`):
grades 0, .5, 1 and 1.5 whose mean is 1 at each rank, click rates .1 / ln(4 r + 2.7) at rank r from 0, and a click
probability drawn from a beta distribution around grade times rate. The propensities are those of a published PBM.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from search_env.clicks.examination import count_seen, tell_apart
from search_env.clicks.expected import clicks_over_expected
from search_env.clicks.fitting import Sessions
from search_env.clicks.models import PositionBased, draw
from search_env.clicks.published import EYE_TRACKED
from tests.foretelling.evidence import Evidence, listed

Floats = npt.NDArray[np.float64]

RANKS = 5
GRADES = (0.0, 0.5, 1.0, 1.5)
SHARES = (0.1, 0.2, 0.3, 0.4)  # Their mean grade is 1, as the generator's sampling makes it.


def judged_sessions(seed: int, *, queries: int, searches: int) -> tuple[Sessions, Floats, Floats]:
    """Return sessions, the grade of each pair, and the COEC that its click probability plants."""
    random = np.random.default_rng(seed)
    grades = random.choice(GRADES, size=(queries, RANKS), p=SHARES)
    rates = 0.1 / np.log(np.arange(RANKS) * 4 + 2.7)
    alpha = 1000 * grades * rates + 0.5
    chances = random.beta(alpha, 1000 - alpha + 49.5)
    asked = random.choice(queries, size=searches)
    clicks = random.random((searches, RANKS)) < chances[asked]
    pairs = asked[:, None] * RANKS + np.arange(RANKS)
    planted = chances / chances.mean(axis=0)
    return Sessions(pairs=pairs, clicks=clicks, size=queries * RANKS), grades.ravel(), planted.ravel()


def coec_row(title: str, seeds: tuple[int, ...], *, queries: int, searches: int) -> tuple[str, ...]:
    """Return rank correlations of COEC with the planted one and with the grades, and those of plain click rates."""
    found = []
    for seed in seeds:
        sessions, grades, planted = judged_sessions(seed, queries=queries, searches=searches)
        coec = clicks_over_expected(sessions)
        shown = np.bincount(sessions.pairs.ravel(), minlength=sessions.size)
        plain = np.bincount(sessions.pairs.ravel(), weights=sessions.clicks.ravel(), minlength=sessions.size) / shown
        found.append(
            [spearmanr(one, other).statistic for one, other in ((coec, planted), (coec, grades), (plain, planted))]
            + [spearmanr(planted, grades).statistic]
        )
    means, low, high = np.mean(found, axis=0), np.min(found, axis=0), np.max(found, axis=0)
    cells = [f"{m:.3f} [{a:.3f}, {b:.3f}]" for m, a, b in zip(means, low, high, strict=True)]
    return (title, f"COEC {cells[0]}; with the grades {cells[1]}", f"click rate {cells[2]}", f"at most {cells[3]}")


def propensity_error(seed: int, sessions: int) -> tuple[float, float, float]:
    """Return the largest relative error of an examination: by EM, by click rates alone, and by EM with a prior."""
    random = np.random.default_rng(seed)
    model = EYE_TRACKED.model
    assert isinstance(model, PositionBased)
    planted = np.array(model.examination) / model.examination[0]
    queries, documents, ranks = 200, 20, len(planted)
    asked = random.integers(queries, size=sessions)
    order = np.argsort(random.random((sessions, documents)), axis=1)
    attraction = random.beta(1, 2, size=(queries, documents))
    # Good documents stand high, more or less: click rates alone then take quality for examination.
    noisy = -attraction[asked] + random.normal(scale=0.3, size=order.shape)
    order = np.argsort(noisy, axis=1)[:, :ranks]
    pairs = asked[:, None] * documents + order
    clicks = draw(model, attraction.ravel()[pairs], random)
    cells = np.broadcast_to(np.arange(ranks), pairs.shape)
    seen = count_seen(pairs.ravel(), cells.ravel(), clicks.ravel(), cells_max=ranks)
    found = [tell_apart(seen, pairs=queries * documents, cells=ranks, prior=prior).examination for prior in (0.0, 2.0)]
    rates = clicks.mean(axis=0) / clicks[:, 0].mean()
    one, other, third = (float(np.max(np.abs(each / planted - 1))) for each in (found[0], rates, found[1]))
    return one, other, third


def measure(*, seeds: tuple[int, ...] = (0, 1, 2), searches: int = 1_000_000) -> Evidence:
    """Return what comes back."""
    rows = [coec_row("COEC, 200 queries × 5, 1,000,000 searches", seeds, queries=200, searches=searches)]
    rows.append(coec_row("COEC, 200 queries × 5, 100,000 searches", seeds, queries=200, searches=searches // 10))
    errors = np.array([propensity_error(seed, searches // 10) for seed in seeds])
    spans = [f"{column.mean():.1%} [{column.min():.1%}, {column.max():.1%}]" for column in errors.T]
    rows.append(
        (
            "PBM's examination, largest error of 10 ranks, 100,000 searches",
            f"EM {spans[0]}",
            f"click rate {spans[1]}",
            f"EM with a prior of two impressions a pair {spans[2]}",
        )
    )
    return Evidence(
        name="clicks",
        columns=("planted", "found", "control", "beside"),
        rows=tuple(rows),
        notes=(
            f"Mean, least and largest over the seeds {listed(seeds)}. COEC: Spearman's correlation over the "
            "pairs with the COEC that the click probabilities plant. The limit is the planted COEC's own correlation "
            "with the grades: the generator spreads probabilities around each grade, and four grades have ties.",
        ),
    )
