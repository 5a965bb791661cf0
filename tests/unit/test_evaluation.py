"""Measures against trec_eval, scikit-learn and a page worked by hand; the bootstrap and Holm against known answers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from sklearn.metrics import precision_recall_curve

from storage.errors import EvaluationError
from storage.evaluation.comparison import bootstrap_mean, compare_gains, compare_means, holm
from storage.evaluation.gains import mean_relevance, relative_gain, relevant_retrieved
from storage.evaluation.measures import mean, measure_run, ranked
from storage.evaluation.pooled import compare_pooled, draw_pooled_recall, pooled_interval
from storage.evaluation.precision import pooled_recall_at_precision, recall_at_precision
from storage.evaluation.tables import EvaluationSettings, evaluate_runs

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluation"


def some_run(seed: int, *, queries: int = 40, documents: int = 60) -> tuple[dict, dict]:
    """Return a run without ties and its judgments."""
    chance = random.Random(seed)
    names = [f"d{number:03}" for number in range(documents)]
    qrels = {
        f"q{q:02}": {d: chance.choice((0, 0, 0, 1, 2, 3)) for d in chance.sample(names, 20)} for q in range(queries)
    }
    run = {query: {d: chance.random() for d in chance.sample(names, 40)} for query in qrels}
    return run, qrels


def test_measures_agree_with_the_page_worked_by_hand() -> None:
    page = json.loads((GOLDEN / "by_hand.json").read_text())
    values = measure_run(page["run"], page["qrels"], tuple(page["expected"]))
    for measure, expected in page["expected"].items():
        for query, value in expected.items():
            assert values[measure][query] == pytest.approx(value, abs=1e-7), (measure, query)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grade", [1, 2])
def test_measures_agree_with_trec_eval(seed: int, grade: int) -> None:
    run, qrels = some_run(seed)
    ours = measure_run(run, qrels, ("nDCG@10", "RR", "R@15", "P@5", "AP"), relevant_grade=grade)
    names = {"nDCG@10": "ndcg_cut_10", "RR": "recip_rank", "R@15": "recall_15", "P@5": "P_5", "AP": "map"}
    measures = {"ndcg_cut.10", "recip_rank", "recall.15", "P.5", "map"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures, relevance_level=grade).evaluate(run)
    for measure, name in names.items():
        for query in qrels:
            assert ours[measure][query] == pytest.approx(theirs[query][name], abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_recall_at_precision_is_the_best_point_of_the_precision_recall_curve(seed: int) -> None:
    chance = random.Random(seed)
    # Coarse scores, so that there are ties.
    scores = {f"d{number}": round(chance.random() ** 2, 1) for number in range(50)}
    grades = {document: int(chance.random() < score) for document, score in scores.items()} | {"d0": 1}
    documents = sorted(scores)
    precision, recall, _ = precision_recall_curve([grades[d] for d in documents], [scores[d] for d in documents])
    for share in (0.5, 0.75, 0.9, 1.0):
        best = max(r for p, r in zip(precision, recall, strict=True) if p >= share - 1e-12)
        assert recall_at_precision(scores, grades, precision=share) == pytest.approx(best)
        assert pooled_recall_at_precision({"q": scores}, {"q": grades}, precision=share) == pytest.approx(best)


def test_pooled_recall_uses_one_threshold_for_all_queries() -> None:
    qrels = {"q1": {"a": 1, "b": 0}, "q2": {"a": 1, "b": 0}}
    run = {"q1": {"a": 0.9, "b": 0.8}, "q2": {"a": 0.5, "b": 0.1, "unjudged": 1.0}}
    assert recall_at_precision(run["q1"], qrels["q1"]) == 1.0
    assert pooled_recall_at_precision(run, qrels) == 0.5  # Below .9 stands q1's b, which is not relevant.


@pytest.mark.parametrize("levels", [3, 1000])
def test_a_draw_of_the_pooled_recall_is_the_recall_of_the_queries_drawn(levels: int) -> None:
    chance = random.Random(levels)
    qrels = {f"q{q}": {f"d{d}": int(chance.random() < 0.5) for d in range(4)} for q in range(12)}
    run = {q: {d: (g + chance.randrange(levels) / levels) for d, g in of.items()} for q, of in qrels.items()}
    del run["q3"]  # Not answered: its relevant documents are missed.
    drawn = draw_pooled_recall(run, qrels, samples=50, seed=7)
    assert drawn.value == pooled_recall_at_precision(run, qrels)
    names = sorted(qrels)
    for picks, recall in zip(np.random.default_rng(7).integers(0, 12, size=(50, 12)), drawn.draws, strict=True):
        copies = {f"{names[pick]}/{copy}": names[pick] for copy, pick in enumerate(picks.tolist())}
        again = pooled_recall_at_precision(
            {copy: run.get(query, {}) for copy, query in copies.items()},
            {copy: qrels[query] for copy, query in copies.items()},
        )
        assert recall == pytest.approx(again)
    interval = pooled_interval(drawn)
    assert interval.low < interval.value < interval.high
    nothing = compare_pooled(drawn, draw_pooled_recall(run, qrels, samples=50, seed=7))
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_a_pooled_recall_needs_a_judged_query() -> None:
    with pytest.raises(EvaluationError, match="at least one judged query"):
        draw_pooled_recall({}, {}, samples=10)


def test_ties_are_broken_by_document_id_whatever_the_order_of_arrival() -> None:
    scores = {"b": 1.0, "a": 1.0, "c": 2.0}
    assert ranked(scores) == ranked(dict(reversed(scores.items()))) == ["c", "a", "b"]
    qrels = {"q": {"b": 1}}
    assert measure_run({"q": scores}, qrels, ("RR@10", "RR"))["RR@10"]["q"] == pytest.approx(1 / 3)
    assert measure_run({"q": scores}, qrels, ("RR@10", "RR"))["RR"]["q"] == pytest.approx(1 / 3)


def test_scores_that_differ_only_beyond_float32_keep_their_order() -> None:
    run = {"q": {"a": 1.0, "b": 1.0 + 1e-12}}
    assert measure_run(run, {"q": {"b": 1}}, ("RR",))["RR"]["q"] == 1.0


def test_an_empty_ranking_counts_as_zero() -> None:
    values = measure_run({"q": {}}, {"q": {"a": 1}}, ("nDCG@10", "Judged@10", "R@90P"))
    assert {measure: of["q"] for measure, of in values.items()} == {"nDCG@10": 0, "Judged@10": 0, "R@90P": 0}


def test_a_run_with_a_query_that_nobody_judged_is_an_error_that_names_it() -> None:
    with pytest.raises(EvaluationError, match="'stranger'"):
        measure_run({"stranger": {"a": 1.0}, "q": {"a": 1.0}}, {"q": {"a": 1}})


@pytest.mark.parametrize(
    "name", ["Unheard@10", "R", "R@0", "R@-1", "R@90Q", "nDCG(dcg='exp-log2')@10", "", "RBP", "R@10 "]
)
def test_an_unknown_measure_is_an_error_never_a_crash(name: str) -> None:
    with pytest.raises(EvaluationError, match="nDCG@k"):
        measure_run({"q": {"a": 1.0}}, {"q": {"a": 1}}, (name,))


@pytest.mark.parametrize("grade", [1, 2])
@pytest.mark.parametrize(
    "name", ["nDCG", "nDCG@3", "AP", "AP@3", "RR", "RR@3", "Rprec", "R@3", "P@1", "Success@3", "Judged@1", "R@50P"]
)
def test_every_measure_of_a_perfect_ranking_is_one_and_of_none_is_zero(name: str, grade: int) -> None:
    qrels = {"best": {"a": 2}, "worst": {"a": 2}, "nobody": {}, "nothing": {"a": 0}}
    run = {"best": {"a": 1.0}, "worst": {}, "nobody": {"a": 1.0}, "nothing": {"a": 1.0}}
    found = measure_run(run, qrels, (name,), relevant_grade=grade)[name]
    assert found["best"] == 1.0 and found["worst"] == found["nobody"] == 0.0
    assert found["nothing"] == (1.0 if name == "Judged@1" else 0.0)


def test_retrieval_gain_counts_relevant_documents_found() -> None:
    qrels = {"q1": {"a": 1, "b": 1, "c": 0}, "q2": {"a": 2}}
    before = relevant_retrieved({"q1": {"a": 2.0, "b": 1.0}}, qrels, depth=1)
    after = relevant_retrieved({"q1": {"a": 2.0, "b": 1.0, "c": 3.0}, "q2": {"a": 1.0}}, qrels, depth=3)
    assert before == {"q1": 1.0, "q2": 0.0}
    assert after == {"q1": 2.0, "q2": 1.0}
    assert relative_gain(after, before) == 2.0
    assert relative_gain(after, {"q1": 0.0, "q2": 0.0}) is None


def test_relevance_gain_averages_the_top_and_asks_for_missing_scores() -> None:
    relevance = {"q": {"a": 0.9, "b": 0.1, "c": 0.5}}
    assert mean_relevance({"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, relevance, depth=2) == {"q": 0.5}
    assert mean_relevance({}, relevance, depth=2) == {"q": 0.0}
    with pytest.raises(EvaluationError, match="'x'"):
        mean_relevance({"q": {"x": 1.0}}, relevance)


def test_the_bootstrap_of_two_queries_is_the_distribution_that_can_be_counted() -> None:
    # Differences 0 and 1: a draw's mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4. All lie within 1/2 of 1/2.
    found = compare_means({"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 0.0})
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    assert found.p == pytest.approx(0.5, abs=0.02)  # As far as 1/2 from 1/2 are 0 and 1: half of all draws.


def test_the_bootstrap_interval_of_a_mean_is_the_normal_one_for_many_queries() -> None:
    values = np.random.default_rng(5).normal(0.3, 1.0, 400)
    found = bootstrap_mean({f"q{i}": float(v) for i, v in enumerate(values)}, samples=20_000)
    error = values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.06 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.06 * error)


def test_no_difference_anywhere_gives_p_one() -> None:
    same = {f"q{i}": 0.1 * i for i in range(7)}
    assert compare_means(same, same).p == 1.0


def test_p_is_uniform_when_nothing_differs() -> None:
    random_ = np.random.default_rng(1)
    p_values = []
    for _ in range(200):
        values = {f"q{i}": float(v) for i, v in enumerate(random_.normal(size=50))}
        p_values.append(compare_means(values, dict.fromkeys(values, 0.0), samples=400).p)
    assert 0.01 <= np.mean([p < 0.05 for p in p_values]) <= 0.11
    assert 0.4 <= np.mean([p < 0.5 for p in p_values]) <= 0.6


def test_the_gain_of_twice_as_much_is_one_without_doubt() -> None:
    baseline = {"a": 1.0, "b": 3.0, "c": 0.0}
    found = compare_gains({query: 2 * value for query, value in baseline.items()}, baseline)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert compare_gains(baseline, dict.fromkeys(baseline, 0.0)).value is None


def test_holm_agrees_with_the_worked_example() -> None:
    # .005·4, .01·3, then .03·2 = .06, and .04·1 = .04 is lifted to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_comparison_of_different_queries_is_refused() -> None:
    with pytest.raises(EvaluationError, match="'b'"):
        compare_means({"a": 1.0}, {"a": 1.0, "b": 2.0})


def test_evaluate_runs_finds_the_better_run_and_counts_what_is_missing() -> None:
    run, qrels = some_run(0)
    perfect = {query: {d: float(grade) for d, grade in grades.items()} for query, grades in qrels.items()}
    del perfect["q00"]
    found = evaluate_runs({"raw": run, "perfect": perfect}, qrels, baseline="raw")
    raw, best = found.runs
    assert best.unanswered == 1 and raw.unanswered == 0 and not raw.differences
    assert best.measures["nDCG@10"].value == pytest.approx(39 / 40)
    gain = best.differences["nDCG@10"]
    assert gain.interval.low is not None and gain.interval.low > 0.3
    assert gain.p_holm is not None and gain.p_holm < 0.01
    assert best.differences["Judged@10"].p_holm is None
    assert mean(best.per_query["nDCG@10"]) == pytest.approx(39 / 40)


def test_evaluate_runs_names_the_run_that_is_wrong() -> None:
    with pytest.raises(EvaluationError, match="baseline"):
        evaluate_runs({"a": {}}, {"q": {"d": 1}}, baseline="b")
    with pytest.raises(EvaluationError, match=r"^two: .*'stranger'"):
        evaluate_runs({"one": {"q": {"d": 1.0}}, "two": {"stranger": {"d": 1.0}}}, {"q": {"d": 1}})


def test_an_evaluation_run_twice_gives_the_same_bytes() -> None:
    code = (
        "from tests_evaluation import some_run\n"
        "import msgspec\nfrom storage.evaluation.tables import evaluate_runs\n"
        "run, qrels = some_run(3)\nother, _ = some_run(4)\n"
        "print(msgspec.json.encode(evaluate_runs({'a': run, 'b': other}, qrels, baseline='a')).decode())\n"
    ).replace(
        "from tests_evaluation import some_run",
        f"import importlib.util as u\ns = u.spec_from_file_location('t', {__file__!r})\n"
        "m = u.module_from_spec(s)\ns.loader.exec_module(m)\nsome_run = m.some_run",
    )
    root = Path(__file__).parents[2]
    outputs = []
    for hashing in ("1", "2"):  # The order of sets must not matter.
        environment = {"PYTHONHASHSEED": hashing, "PATH": "", "OMP_NUM_THREADS": "1"}
        outputs.append(
            subprocess.run(
                [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=True
            ).stdout
        )
    assert outputs[0] == outputs[1] and len(outputs[0]) > 1000


def test_settings_refuse_what_makes_no_sense() -> None:
    import msgspec

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"samples": 3}, EvaluationSettings)
