"""obp's published settings: the relative error of these estimators beside the errors in obp's own pages.

obp draws the data, trains the evaluation policy and fits the reward model, as its scripts do. Our estimators make the
estimate. Pages: github.com/st-tech/zr-obp, `examples/obd/README.md` and `examples/synthetic/README.md`. The relative
error is |estimate - truth| / truth. On the Open Bandit Dataset the truth is the mean of the other policy's own log.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from storage.offpolicy.estimators import Choices, Name, estimate
from tests.foretelling.evidence import Evidence, mean_of
from tests.obp_oracle import obp_module, open_bandit_data

Floats = npt.NDArray[np.float64]

SEED = 12345
LOGISTIC = {"max_iter": 10_000, "C": 100, "random_state": SEED}
ESTIMATORS: tuple[tuple[str, Name], ...] = (
    ("DM", "dm"),
    ("IPW", "ips"),
    ("SNIPW", "snips"),
    ("DR", "dr"),
    ("SNDR", "sndr"),
    ("DRos", "shrinkage"),
)
OPEN_BANDIT = {
    "DM": (0.156876, 0.109898),
    "IPW": (0.311082, 0.311170),
    "SNIPW": (0.311795, 0.334736),
    "DR": (0.292464, 0.315485),
    "SNDR": (0.302407, 0.328434),
    "DRos": (0.159520, 0.109660),
}
SYNTHETIC = {
    "DM": (0.074390, 0.024525),
    "IPW": (0.009481, 0.006899),
    "SNIPW": (0.006665, 0.004541),
    "DR": (0.006175, 0.004245),
    "SNDR": (0.006118, 0.003997),
    "DRos": (0.021951, 0.013337),
}


SOURCE = "OBP_SOURCE"


@contextlib.contextmanager
def published_obp() -> Iterator[Path]:
    """Import obp from the checkout that the variable `OBP_SOURCE` names, and give the folder of the small data set.

    The published figures are of obp 0.5.2 (January 2022), and the wheel of the tests is 0.4.1. pandas 3 refuses a call
    of both.
    Raises SystemExit without the variable.
    """
    import pandas

    if not os.environ.get(SOURCE):
        raise SystemExit(f"published: set {SOURCE} to a checkout of github.com/st-tech/zr-obp (version 0.5.2)")
    data, drop = open_bandit_data(), pandas.DataFrame.drop

    def both(frame: Any, labels: Any = None, axis: Any = 0, *, columns: Any = None) -> Any:
        return drop(frame, columns=columns if columns is not None else labels)

    for name in [name for name in sys.modules if name.partition(".")[0] == "obp"]:
        del sys.modules[name]
    with patch.object(sys, "path", [os.environ[SOURCE], *sys.path]), patch.object(pandas.DataFrame, "drop", both):
        yield data


def as_choices(given: dict[str, Floats], targets: Floats, modelled: Floats) -> Choices:
    """Return obp's feedback as choices. targets, modelled: [N, actions, places]."""
    rows = np.arange(len(given["reward"]))
    places = given["position"] if given["position"] is not None else np.zeros(len(rows), dtype=np.int64)
    target, value = targets[rows, :, places], modelled[rows, :, places]
    actions = given["action"]
    return Choices(
        rewards=given["reward"].astype(np.float64),
        propensities=given["pscore"],
        targets=target[rows, actions],
        modelled=value[rows, actions],
        expected=(target * value).sum(axis=1),
        clusters=rows,
    )


def errors_of(choices: Choices, truth: float) -> dict[str, float]:
    """Return the relative error of each estimator."""
    return {title: abs(estimate(choices, name).value - truth) / truth for title, name in ESTIMATORS}


def open_bandit(runs: int, folder: Path) -> list[dict[str, float]]:
    """Return errors for Bernoulli Thompson sampling from the random policy's log, by bootstrap sample."""
    from sklearn.linear_model import LogisticRegression

    dataset, policies, regression = (obp_module(name) for name in ("dataset", "policy", "ope.regression_model"))
    data = dataset.OpenBanditDataset(behavior_policy="random", campaign="all", data_path=folder)
    policy = policies.BernoulliTS(
        n_actions=data.n_actions, len_list=data.len_list, random_state=SEED, is_zozotown_prior=True, campaign="all"
    )
    once = policy.compute_batch_action_dist(n_sim=100_000)
    truth = dataset.OpenBanditDataset.calc_on_policy_policy_value_estimate(
        behavior_policy="bts", campaign="all", data_path=folder
    )
    found = []
    for run in range(runs):
        given = data.sample_bootstrap_bandit_feedback(random_state=run)
        model = regression.RegressionModel(
            n_actions=data.n_actions,
            len_list=data.len_list,
            action_context=data.action_context,
            base_model=LogisticRegression(**LOGISTIC),
        )
        modelled = model.fit_predict(
            **{name: given[name] for name in ("context", "action", "reward", "position", "pscore")},
            n_folds=3,
            random_state=SEED,
        )
        targets = np.broadcast_to(once, (given["n_rounds"], *once.shape[1:]))
        found.append(errors_of(as_choices(given, targets, modelled), truth))
    return found


def synthetic(runs: int, rounds: int = 10_000) -> list[dict[str, float]]:
    """Return errors for a policy learned by weighted classification, 30 actions, by data set."""
    from sklearn.linear_model import LogisticRegression

    dataset, policies, regression = (obp_module(name) for name in ("dataset", "policy", "ope.regression_model"))
    found = []
    for run in range(runs):
        data = dataset.SyntheticBanditDataset(
            n_actions=30,
            dim_context=5,
            reward_function=dataset.logistic_reward_function,
            beta=-3,
            random_state=run,
        )
        policy = policies.IPWLearner(n_actions=30, base_classifier=LogisticRegression(**LOGISTIC))
        before = data.obtain_batch_bandit_feedback(n_rounds=rounds)
        given = data.obtain_batch_bandit_feedback(n_rounds=rounds)
        policy.fit(**{name: before[name] for name in ("context", "action", "reward", "pscore")})
        targets = policy.predict_proba(context=given["context"])
        model = regression.RegressionModel(
            n_actions=30, action_context=data.action_context, base_model=LogisticRegression(**LOGISTIC)
        )
        modelled = model.fit_predict(
            **{name: given[name] for name in ("context", "action", "reward")}, n_folds=3, random_state=SEED
        )
        truth = data.calc_ground_truth_policy_value(expected_reward=given["expected_reward"], action_dist=targets)
        found.append(errors_of(as_choices(given, targets, modelled), truth))
    return found


def measure(*, real: int = 30, drawn: int = 20) -> Evidence:
    """Return both tables side by side."""
    with published_obp() as folder:
        ours = (open_bandit(real, folder), synthetic(drawn))
    rows = []
    for title, name in ESTIMATORS:
        row = [f"{title} (`{name}`)"]
        for found, theirs in zip(ours, (OPEN_BANDIT, SYNTHETIC), strict=True):
            mean, deviation = theirs[title]
            row += [mean_of([each[title] for each in found], 4), f"{mean:.4f} (sd {deviation:.4f})"]
        rows.append(tuple(row))
    return Evidence(
        name="published",
        columns=("estimator", "Open Bandit, ours", "published", "synthetic, ours", "published"),
        rows=tuple(rows),
        notes=(
            f"Relative error, mean and 95 % over {real} bootstrap samples of the small Open Bandit Dataset (seeds 0 to "
            f"{real - 1}; Thompson sampling from random, campaign all) and {drawn} synthetic data sets (seeds 0 to "
            f"{drawn - 1}; 10,000 rounds, 30 actions, beta -3).",
            "obp 0.5.2 of January 2022, the version of the published figures, draws the data and fits the reward model "
            "(variable `OBP_SOURCE`: a checkout of it). obp chooses λ of DRos by SLOPE; ours keeps its default λ = "
            "100. Thompson sampling's probabilities come from 100,000 draws (obp's script: 1,000,000).",
        ),
    )
