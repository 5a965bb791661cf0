"""How far a model's probabilities are met: bins of equal width, and the expected calibration error over them."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.models.calibration import BINS, calibration_error

Floats = npt.NDArray[np.floating]


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """The pairs whose probability lies in one tenth of [0, 1]: their number, mean probability and mean label."""

    pairs: int
    probability: float
    label: float


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """A model's probabilities against labels from 0 to 1; empty bins are left out.

    error: the expected calibration error.
    """

    pairs: int
    error: float
    bins: tuple[Bin, ...]


def reliability(probabilities: Floats, labels: Floats) -> Reliability | None:
    """Return how far [n] probabilities are met by [n] labels (Naeini et al., AAAI 2015); None without pairs."""
    if not len(labels):
        return None
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    inside = [place == each for each in range(BINS)]
    return Reliability(
        pairs=len(labels),
        error=calibration_error(probabilities, labels),
        bins=tuple(
            Bin(
                pairs=int(of.sum()),
                probability=float(probabilities[of].mean()),
                label=float(labels[of].mean()),
            )
            for of in inside
            if of.any()
        ),
    )
