"""The best version of a run by its dev scores, and whether the run has stopped to gain.

Scores compare only with scores of the same queries: a run that goes on with other dev settings begins to count anew.
"""

from __future__ import annotations

from streams.events import DevScore, PolicyRef


class BestVersion:
    """Takes dev scores in the log's order; a version counts once, with its first score.

    gain_min: a version is the new best if it is better than the best so far by more than this.
    patience: after this many versions in a row that are no new best, the run no longer gains; 0: it always may.
    """

    def __init__(self, *, gain_min: float, patience: int) -> None:
        self._gain_min, self._patience = gain_min, patience
        self._counted: set[PolicyRef] = set()
        self._sets: tuple[tuple[str, int], ...] | None = None
        self.best: DevScore | None = None
        self.first: DevScore | None = None
        self.since = 0

    def add(self, score: DevScore) -> bool:
        """Count a score; return whether its version is the new best.

        A score of other sets of queries than the ones before makes all those before count no more.
        """
        sets = tuple((each.name, each.queries) for each in score.sets)
        if sets != self._sets:
            self._sets, self._counted = sets, set()
            self.best = self.first = None
            self.since = 0
        if score.policy in self._counted:
            return False
        self._counted.add(score.policy)
        self.first = self.first or score
        if self.best is not None and not score.value > self.best.value + self._gain_min:
            self.since += 1
            return False
        self.best, self.since = score, 0
        return True

    def has(self, policy: PolicyRef) -> bool:
        """Return whether this version was counted."""
        return policy in self._counted

    @property
    def over(self) -> bool:
        """Return whether the run no longer gains."""
        return 0 < self._patience <= self.since
