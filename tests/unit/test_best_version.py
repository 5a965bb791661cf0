"""The best version by dev scores: counted by hand, in order, twice, and with ties."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from infra.app.settings import DevSettings, Settings, TrainSettings
from infra.runs.dev import check_dev
from learner.checkpoints import CheckpointError, write_best
from learner.learning import LearnerSettings
from learner.versions import find_version
from storage.monitor.best import BestVersion
from streams.errors import SettingsError
from streams.events import DevScore, DevSet, PolicyRef


def score(step: int, value: float, lineage: str = "1-abcdef") -> DevScore:
    policy = PolicyRef(lineage=lineage, step=step, sha256=f"{step:064d}")
    return DevScore(run="r", policy=policy, index="i-1", measure="nDCG@10", value=value, sets=())


def counted(values: list[float], *, gain_min: float = 0.0, patience: int = 0) -> BestVersion:
    best = BestVersion(gain_min=gain_min, patience=patience)
    for number, value in enumerate(values):
        best.add(score(number * 10, value))
    return best


@pytest.mark.parametrize(
    ("values", "gain_min", "patience", "best", "over"),
    [
        ([0.3], 0.0, 1, 0, False),
        ([0.3, 0.3], 0.0, 1, 0, True),  # An equal one is no gain.
        ([0.3, 0.31, 0.32], 0.0, 1, 20, False),
        ([0.3, 0.31, 0.305, 0.32], 0.0, 2, 30, False),  # One without a gain, then a gain.
        ([0.3, 0.31, 0.305, 0.309], 0.0, 2, 10, True),
        ([0.3, 0.309, 0.32], 0.01, 3, 20, False),  # .309 gains too little; .32 gains against .3.
        ([0.3, 0.1, 0.1, 0.1, 0.1], 0.0, 0, 0, False),  # Without patience it never ends early.
        ([0.3, float("nan"), 0.2], 0.0, 2, 0, True),
    ],
)
def test_the_best_version_and_the_end(
    values: list[float], gain_min: float, patience: int, best: int, over: bool
) -> None:
    found = counted(values, gain_min=gain_min, patience=patience)
    assert found.best is not None
    assert (found.best.policy.step, found.over) == (best, over)
    assert found.first is not None
    assert found.first.policy.step == 0


def test_a_version_that_is_measured_twice_counts_once() -> None:
    once, twice = counted([0.3, 0.2, 0.2], patience=2), BestVersion(gain_min=0.0, patience=2)
    for number, value in enumerate([0.3, 0.2, 0.2]):
        assert twice.add(score(number * 10, value)) == (number == 0)
        assert not twice.add(score(number * 10, value + 1))
    assert (once.best, once.since, once.over) == (twice.best, twice.since, twice.over)


def test_the_order_of_equal_scores_decides() -> None:
    for order in itertools.permutations(range(3)):
        best = BestVersion(gain_min=0.0, patience=0)
        for step in order:
            best.add(score(step, 0.5))
        assert best.best is not None
        assert best.best.policy.step == order[0]


def test_best_names_no_version_where_none_was_measured_or_the_file_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--policy best: expected a run with versions measured"):
        find_version(tmp_path, "best")
    (tmp_path / "BEST").write_text("../../etc\n")
    with pytest.raises(CheckpointError, match="--policy best: expected a run with versions measured"):
        find_version(tmp_path, "best")
    write_best(tmp_path, score(20, 0.5).policy)
    with pytest.raises(CheckpointError, match=r"expected .* one of the versions kept \(none\)"):
        find_version(tmp_path, "best")


@pytest.mark.parametrize(
    ("dev", "said"),
    [
        (DevSettings(patience=2), r"dev.patience: expected 0 while dev.every is 0, got 2"),
        (DevSettings(every=15), r"dev.every: expected a multiple of learner.keep_every \(10\), got 15"),
        (DevSettings(every=10, measure="dev.measure: expected a measure .* got 'nDGC@10'"), "nDGC@10"),
    ],
)
def test_settings_that_could_measure_nothing_are_refused(dev: DevSettings, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_dev(Settings(dev=dev, learner=LearnerSettings(keep_every=10)))


def test_a_recipe_that_measures_no_dev_query_says_so() -> None:
    settings = Settings(
        dev=DevSettings(every=10),
        learner=LearnerSettings(keep_every=10),
        train=TrainSettings(recipe="tests.recipe_example:Distinction"),
    )
    with pytest.raises(SettingsError, match=r"measures no dev queries: set dev.every = 0"):
        check_dev(settings)


def test_a_score_of_other_queries_makes_those_before_count_no_more() -> None:
    def of(step: int, value: float, queries: int) -> DevScore:
        each = DevSet(name="dev", queries=queries, measures={})
        return msgspec.structs.replace(score(step, value), sets=(each,))

    best = BestVersion(gain_min=0.0, patience=2)
    assert [best.add(of(step, 0.9 - step / 100, 300)) for step in (0, 10)] == [True, False]
    assert best.add(of(20, 0.4, 10)) and best.first is not None and best.first.policy.step == 20
    assert (best.since, best.over) == (0, False)
