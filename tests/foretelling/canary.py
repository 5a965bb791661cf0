"""The canary: how soon a worse version is taken back, and how often a sound one is.

A search's worth is its clicks on Elasticsearch's rankings, as simulated people click. The worse version loses each
click with a fixed probability. The ramp, its intervals and its steps are the product's own, with the settings that it
has by default. Somebody looks after each growth of the searches by two percent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from infra.promotion.evidence import Side, stage_result
from search_env.serving.ramp import Ramp, RampSettings, next_step, taken
from storage.offpolicy.traffic import RAW
from storage.online.sequences import Values
from tests.foretelling.evidence import Evidence, listed, share
from tests.foretelling.people import People
from tests.foretelling.rankings import Rankings, read_rankings

Floats = npt.NDArray[np.float64]

VERSION = "1-new-000001"
SEARCHES_MAX = 100_000_000
FIRST_LOOK = 1_000
GROWTH = 1.02


def chances_of(rankings: Rankings, seed: int) -> Floats:
    """Return the probability of each number of clicks in a search that raw results answer."""
    clicks = People(rankings, seed).clicks_of(rankings.versions.index(RAW), 200_000)
    return np.bincount(clicks) / len(clicks)


def thinned(chances: Floats, kept: float) -> Floats:
    """Return the probabilities of each number of clicks if each click is kept with a probability."""
    counts = np.arange(len(chances))
    return np.array([float(chances @ binom.pmf(count, counts, kept)) for count in counts])


class Arm:
    """The searches of one side, as sums."""

    def __init__(self, chances: Floats, random: np.random.Generator) -> None:
        self._chances = chances
        self._random = random
        self._counts = np.zeros(len(chances), dtype=np.int64)

    def add(self, searches: int) -> None:
        """Draw more searches."""
        self._counts += self._random.multinomial(searches, self._chances)

    @property
    def side(self) -> Side:
        """The searches so far, each of another person."""
        count, worths = int(self._counts.sum()), np.arange(len(self._counts))
        mean = float(self._counts @ worths) / max(count, 1)
        squares = float(self._counts @ np.square(worths - mean))
        variance = squares / (count - 1) if count > 1 else 0.0
        return Side(count, Values(count=count, mean=mean if count else 0.0, variance=variance))


def follow(
    before: Floats, version: Floats, settings: RampSettings, random: np.random.Generator
) -> tuple[str, int, float]:
    """Return how a ramp ends, after how many searches, and the share that the version had at the end."""
    ramp = Ramp(version=VERSION, share=settings.stages[0], since_ms=0)
    total = 0
    while ramp.status == "ramping":
        sides = Arm(version, random), Arm(before, random)
        seen, share_of = 0, ramp.share
        while total < SEARCHES_MAX:
            more = max(int(seen * GROWTH), seen + FIRST_LOOK) - seen
            treated = int(random.binomial(more, ramp.share))
            sides[0].add(treated)
            sides[1].add(more - treated)
            seen, total = seen + more, total + more
            step = next_step(ramp, stage_result(sides[0].side, sides[1].side, ramp, settings), settings)
            if step.kind is not None:
                break
        else:
            return "undecided", total, share_of
        ramp = taken(ramp, step, settings, now_ms=0)
    return ramp.status, total, share_of


def measure(*, repeats: int = 100, seeds: tuple[int, ...] = (0, 1, 2), rankings: Rankings | None = None) -> Evidence:
    """Return the ends and times of ramps, by how much worse the version is."""
    rankings = rankings or read_rankings()
    settings, fast = RampSettings(), RampSettings(stages=(0.1, 0.25, 0.5, 1.0))
    before = chances_of(rankings, seeds[0])
    worth = float(before @ np.arange(len(before)))
    rows = []
    for title, kept in (("as good", 1.0), ("5 % worse", 0.95), ("10 % worse", 0.9), ("30 % worse", 0.7)):
        for stages, wanted in (("1 % first", settings), ("10 % first", fast)):
            found = []
            for seed in seeds:
                random = np.random.default_rng([seed, round(100 * kept), len(wanted.stages)])
                found += [follow(before, thinned(before, kept), wanted, random) for _ in range(repeats)]
            ends = [end for end, _, _ in found]
            searches = np.array([count for _, count, _ in found])
            low, middle, high = (f"{value:,.0f}" for value in np.percentile(searches, [5, 50, 95]))
            most = max(share_of for _, _, share_of in found)
            rows.append(
                (
                    title,
                    stages,
                    share(ends.count("rolled back"), len(ends)),
                    share(ends.count("serves"), len(ends)),
                    str(len(ends) - ends.count("rolled back") - ends.count("serves")),
                    f"{middle} [{low}, {high}]",
                    f"{most:.0%}",
                )
            )
            print(rows[-1], flush=True)
    return Evidence(
        name="canary",
        columns=(
            "version",
            "stages",
            "rolled back, %",
            "serves, %",
            "held",
            "searches until the end, median [5 %, 95 %]",
            "most share",
        ),
        rows=tuple(rows),
        notes=(
            f"{repeats} ramps a row for each of the seeds {listed(seeds)}; default settings but for the "
            f"stages; shares with exact 95 % intervals. A search of raw results is worth {worth:.3f} clicks "
            f"(rankings of {rankings.corpus}). The version as good as the others is the control: it may be rolled "
            "back in at most 5 %.",
        ),
    )
