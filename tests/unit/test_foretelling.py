"""A small dose of the evidence about offline evaluation, and the tables of its page."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from scipy.stats import skew, spearmanr

from search_env.clicks.expected import clicks_over_expected
from search_env.clicks.fitting import Sessions
from search_env.serving.ramp import RampSettings
from storage.offpolicy.intervals import Spread, interval, spread
from storage.offpolicy.traffic import RAW
from tests.foretelling import canary, clicks, coverage, versions
from tests.foretelling.__main__ import PARTS
from tests.foretelling.evidence import PAGE, kept, with_tables
from tests.foretelling.rankings import read_rankings


def test_the_tables_of_the_page_are_those_of_the_kept_results() -> None:
    assert with_tables(PAGE.read_text()) == PAGE.read_text()
    assert {each.name for each in kept()} <= set(PARTS)


def test_intervals_of_two_hundred_logs_hold_the_truth_and_without_clusters_they_do_not() -> None:
    crowd = coverage.CROWDS["clients with 8 searches and a taste"]
    town = coverage.Town(msgspec.structs.replace(crowd, impressions=1_000, searches=40, taste=0.9), seed=0)
    held = {"clusters": 0, "none": 0}
    for number in range(200):
        choices = coverage.choices_for(town.log(number), coverage.VERSIONS[0])
        for name, given in (("clusters", choices), ("none", coverage.without_clusters(choices))):
            found = coverage.estimate(given, "dr")
            held[name] += found.low <= town.truth[coverage.VERSIONS[0]] <= found.high
    # Of 200 intervals of 95 %, at least 179 hold the truth with a probability above .999.
    assert held["clusters"] >= 179
    assert held["none"] < held["clusters"]


def test_an_interval_of_normal_values_is_students_and_a_skewed_one_is_longer_on_the_long_side() -> None:
    random = np.random.default_rng(0)
    plain = random.normal(size=4_000)
    low, high = interval(0.0, spread(plain, np.arange(4_000)), 0.95)
    assert (low, high) == pytest.approx((-1.96 / np.sqrt(4_000), 1.96 / np.sqrt(4_000)), rel=0.05)
    steep = random.exponential(size=100)
    found = spread(steep, np.arange(100))
    assert found.skewness == pytest.approx(skew(steep) / np.sqrt(100), rel=1e-9)
    assert found.error == pytest.approx(steep.std(ddof=1) / 10)
    low, high = interval(1.0, found, 0.95)
    assert high - 1 > 1 - low > 0, "a mean of values with a long tail above is rather too low"
    assert interval(1.0, spread(np.ones(5), np.arange(5)), 0.95) == (1.0, 1.0)
    assert interval(1.0, spread(steep, np.zeros(100, dtype=int)), 0.95) == (-np.inf, np.inf)


def test_halls_transformation_mends_the_coverage_of_a_skewed_mean() -> None:
    random = np.random.default_rng(1)
    held = {"ours": 0, "plain": 0}
    for _ in range(1_000):
        values = random.lognormal(sigma=1.2, size=60)
        found, truth = spread(values, np.arange(60)), float(np.exp(0.72))
        low, high = interval(float(values.mean()), found, 0.95)
        held["ours"] += low <= truth <= high
        low, high = interval(float(values.mean()), Spread(found.error, 0.0, 1e9), 0.95)
        held["plain"] += low <= truth <= high
    assert held["plain"] < 900 < 910 < held["ours"]


def test_coec_is_the_one_worked_by_hand() -> None:
    # Rank 1 is clicked in 2 of 4 searches, rank 2 in 1 of 4. Pair 0 stands first twice and second once.
    sessions = Sessions(
        pairs=np.array([[0, 1], [0, 1], [1, 0], [1, -1], [2, 2]])[[0, 1, 2, 3]],
        clicks=np.array([[True, False], [False, False], [True, True], [False, True]]),
        size=4,
    )
    found = clicks_over_expected(sessions)
    # Rank 2 shows three results (the fourth search has one alone), so its rate is 1 of 3.
    np.testing.assert_allclose(found[:2], [2 / (0.5 + 0.5 + 1 / 3), 1 / (1 / 3 + 1 / 3 + 0.5 + 0.5)])
    assert np.isnan(found[2:]).all(), "never shown"
    drawn = clicks_over_expected(sessions, prior=1.0)
    assert drawn[3] == 1.0
    assert 1 < drawn[0] < found[0]


def test_coec_gives_back_the_judgments_that_clicks_were_made_from() -> None:
    sessions, _, planted = clicks.judged_sessions(0, queries=40, searches=200_000)
    assert spearmanr(clicks_over_expected(sessions), planted).statistic >= 0.95


@pytest.mark.parametrize("seed", range(3))
def test_planted_propensities_come_back_within_five_percent_though_good_documents_stand_high(seed: int) -> None:
    found, by_rates, _ = clicks.propensity_error(seed, 100_000)
    assert found <= 0.05 < by_rates


def test_offline_figures_foretell_what_simulated_people_prefer() -> None:
    rankings = read_rankings()
    assert len(rankings.versions) >= 12
    offline = versions.logged_gains(rankings, 7, 15_000)
    clicked = versions.click_gains(rankings, 8, 10_000)
    assert versions.tau(offline, clicked) >= 0.8
    assert versions.tau(versions.held_out_gains(rankings), clicked) >= 0.7
    assert sum(gain < 0 for gain in clicked.values()) >= 4, "bad versions are among them"


def test_a_canary_that_is_five_percent_worse_is_taken_back_and_a_sound_one_serves() -> None:
    before = canary.chances_of(read_rankings(), 0)
    settings = RampSettings(stages=(0.1, 0.25, 0.5, 1.0))
    random = np.random.default_rng(3)
    worse = [canary.follow(before, canary.thinned(before, 0.95), settings, random)[0] for _ in range(20)]
    sound = [canary.follow(before, before, settings, random)[0] for _ in range(20)]
    # Each errs with a probability of at most .05: more than four of 20 come with one below .003.
    assert worse.count("rolled back") >= 16
    assert sound.count("serves") >= 16


def test_simulated_people_click_what_their_grades_say() -> None:
    rankings = read_rankings()
    people = versions.People(rankings, 0)
    raw, taught = rankings.versions.index(RAW), rankings.versions.index("taught")
    assert people.clicks_of(taught, 4_000).mean() > people.clicks_of(raw, 4_000).mean() > 0
