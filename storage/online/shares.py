"""The check of the sample ratio: did each arm get the share of the traffic that it should have had?

A mismatch means that the assignment, the logging or a filter treats the arms differently; no result of such an
experiment can be believed. The test may be looked at after every impression: it is the Bayes factor of a Dirichlet
mixture against the planned shares (Lindon and Malek, NeurIPS 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from scipy.special import gammaln

from storage.errors import EvaluationError

CONCENTRATION = 100.0  # Of the mixture around the planned shares: small mismatches are what is expected.


def share_p_value(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Return the p-value, valid at all times, of the counts under the planned shares.

    counts: impressions by arm. shares: planned share by arm, which sum to 1.
    Raises EvaluationError if the arms differ, or the shares do not sum to 1.
    """
    if set(counts) != set(shares):
        raise EvaluationError(f"expected counts of the arms {sorted(shares)}, got {sorted(counts)}")
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-9) or min(shares.values()) <= 0:
        raise EvaluationError(f"expected shares above 0 that sum to 1, got {dict(shares)}")
    total = sum(counts.values())
    log_factor = float(gammaln(CONCENTRATION) - gammaln(CONCENTRATION + total))
    for arm, share in shares.items():
        prior = CONCENTRATION * share
        log_factor += float(gammaln(prior + counts[arm]) - gammaln(prior)) - counts[arm] * math.log(share)
    return min(1.0, math.exp(-max(log_factor, 0.0)))
