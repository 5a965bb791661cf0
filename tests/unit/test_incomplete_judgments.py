"""Measures without unjudged documents: against trec_eval, lists worked by hand, and a slow reading of the papers."""

from __future__ import annotations

import json
import math
import random
from io import StringIO
from pathlib import Path

import ir_measures
import msgspec
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from infra.commands.evaluate import print_evaluation, to_json
from storage.errors import EvaluationError
from storage.evaluation.comparison import holm
from storage.evaluation.incomplete import (
    added_measures,
    believed_measure,
    holm_with_added,
    judged_share,
    ndcg_in_doubt,
)
from storage.evaluation.measures import is_measure, measure_run, ranked
from storage.evaluation.tables import Evaluation, EvaluationSettings, evaluate_runs

QUICK = EvaluationSettings(measures=("nDCG@10", "RR@10"), samples=200)
LISTS = json.loads((Path(__file__).parents[1] / "golden" / "evaluation" / "judged_by_hand.json").read_text())["lists"]


@pytest.mark.parametrize("page", LISTS, ids=lambda page: page["why"].split(":")[0])
def test_a_list_worked_by_hand(page: dict) -> None:
    ranking = page["ranking"].split()
    scores = {document: 1.0 if page.get("tied") else -float(rank) for rank, document in enumerate(ranking)}
    grade = page.get("relevant_grade", 1)
    found = measure_run({"q": scores}, {"q": page["grades"]}, tuple(page["expected"]), relevant_grade=grade)
    assert {name: of["q"] for name, of in found.items()} == pytest.approx(page["expected"], abs=1e-7)


def some_run(seed: int, queries: int = 40) -> tuple[dict, dict]:
    """Return a run without ties in which half of the documents are unjudged, and its judgments."""
    chance = random.Random(seed)
    names = [f"d{number:03}" for number in range(60)]
    qrels = {f"q{q:02}": {d: chance.choice((0, 0, 1, 2, 3)) for d in chance.sample(names, 30)} for q in range(queries)}
    return {query: {d: chance.random() for d in chance.sample(names, 40)} for query in qrels}, qrels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grade", [1, 2, 3])
def test_trec_eval_with_its_own_switch_for_judged_documents_agrees(seed: int, grade: int) -> None:
    run, qrels = some_run(seed)
    names = {"judged-nDCG@10": "ndcg_cut_10", "judged-RR": "recip_rank", "judged-AP": "map", "judged-R@15": "recall_15"}
    names |= {"judged-P@5": "P_5", "judged-Rprec": "Rprec", "judged-nDCG": "ndcg", "judged-Success@5": "success_5"}
    asked = {"ndcg_cut.10", "recip_rank", "map", "recall.15", "P.5", "Rprec", "ndcg", "success.5"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, asked, relevance_level=grade, judged_docs_only_flag=True)
    expected = theirs.evaluate(run)
    whole = pytrec_eval.RelevanceEvaluator(qrels, {"bpref"}, relevance_level=grade).evaluate(run)
    ours = measure_run(run, qrels, [*names, "Bpref"], relevant_grade=grade)
    for query in qrels:
        assert ours["Bpref"][query] == pytest.approx(whole[query]["bpref"], abs=1e-6)
        for name, their_name in names.items():
            assert ours[name][query] == pytest.approx(expected[query][their_name], abs=1e-6), name


def test_trec_eval_agrees_on_files_whose_unjudged_lines_are_struck_out() -> None:
    run, qrels = some_run(9)
    judgments = "".join(f"{q} 0 {d} {grade}\n" for q, of in qrels.items() for d, grade in of.items())
    pairs = {(line.split()[0], line.split()[2]) for line in judgments.splitlines()}
    lines = [f"{q} Q0 {d} {rank} {-rank} x\n" for q, of in run.items() for rank, d in enumerate(ranked(of))]
    kept = "".join(line for line in lines if (line.split()[0], line.split()[2]) in pairs)
    names = {"judged-nDCG@10": "nDCG@10", "judged-RR@10": "RR@10", "judged-AP@7": "AP@7"}
    theirs = ir_measures.calc_aggregate(
        [ir_measures.parse_measure(name) for name in names.values()],
        list(ir_measures.read_trec_qrels(judgments)),
        list(ir_measures.read_trec_run(kept)),
    )
    for name, values in measure_run(run, qrels, tuple(names)).items():
        expected = theirs[ir_measures.parse_measure(names[name])]
        assert sum(values.values()) / len(values) == pytest.approx(expected, abs=1e-6)


def slow_ndcg(ranking: list[str], grades: dict[str, int], depth: int) -> float:
    """Return nDCG@k of Sakai's condensed list, by its definition: remove, renumber, sum."""
    ranks = {document: rank for rank, document in enumerate((d for d in ranking if d in grades), start=1)}
    ideal = sorted(grades.values(), reverse=True)[:depth]
    best = sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(ideal, start=1))
    got = sum(max(grades[d], 0) / math.log2(rank + 1) for d, rank in ranks.items() if rank <= depth)
    return got / best if best else 0.0


def slow_bpref(ranking: list[str], grades: dict[str, int], relevant_grade: int) -> float:
    """Return bpref by its definition: the kept preferences over the first R judged non-relevant documents."""
    relevant = {d for d, grade in grades.items() if grade >= relevant_grade}
    others = {d for d in grades if d not in relevant}
    first = [d for d in ranking if d in others][: len(relevant)]
    kept = 0.0
    for document in ranking:
        if document in relevant:
            above = sum(ranking.index(other) < ranking.index(document) for other in first)
            kept += 1 - above / min(len(others), len(relevant)) if above else 1
    return kept / len(relevant) if relevant else 0.0


SOME_LISTS = st.tuples(
    st.dictionaries(st.sampled_from("abcdefghijkl"), st.sampled_from((0.0, 0.5, 1.0, 2.0)), max_size=12),
    st.dictionaries(st.sampled_from("abcdefghijklmn"), st.integers(-1, 3), min_size=1, max_size=12),
)


@given(SOME_LISTS, st.integers(1, 4), st.integers(1, 4))
def test_random_lists_agree_with_the_definitions(lists: tuple[dict, dict], depth: int, grade: int) -> None:
    scores, grades = lists
    ranking = sorted(sorted(scores), key=lambda document: -scores[document])
    measures = (f"judged-nDCG@{depth}", "Bpref")
    found = measure_run({"q": scores}, {"q": grades}, measures, relevant_grade=grade)
    assert found[measures[0]]["q"] == pytest.approx(slow_ndcg(ranking, grades, depth), abs=1e-6)
    assert found["Bpref"]["q"] == pytest.approx(slow_bpref(ranking, grades, grade), abs=1e-6)


@given(SOME_LISTS, st.dictionaries(st.sampled_from("stuvw"), st.sampled_from((0.0, 0.75, 3.0))))
def test_unjudged_documents_change_nothing(lists: tuple[dict, dict], unjudged: dict) -> None:
    scores, grades = lists
    measures = ("judged-nDCG@3", "judged-RR@2", "judged-AP", "judged-R@90P", "Bpref")
    judged = {document: score for document, score in scores.items() if document in grades}
    plain = [name.removeprefix("judged-") for name in measures]
    clean = measure_run({"q": judged}, {"q": grades}, plain)
    found = measure_run({"q": judged | unjudged}, {"q": grades}, measures)
    assert list(found.values()) == list(clean.values())


def test_a_relevant_grade_above_all_grades_is_no_reading_beyond_an_array() -> None:
    run, qrels = {"q": {"a": 1.0, "x": 2.0}}, {"q": {"a": 1}}
    assert measure_run(run, qrels, ("Bpref", "judged-RR"), relevant_grade=2_000_000_000)["Bpref"] == {"q": 0.0}


@pytest.mark.parametrize(
    "name", ["judged-Judged@10", "judged-Bpref", "judged-judged-RR", "judged-", "bpref", "Bpref@5"]
)
def test_a_name_that_measures_nothing_new_is_an_error_that_lists_the_names(name: str) -> None:
    assert not is_measure(name)
    with pytest.raises(EvaluationError, match=r"nDCG@k.*Bpref.*judged-nDCG@10.*got '"):
        measure_run({"q": {"a": 1.0}}, {"q": {"a": 1}}, (name,))


@pytest.mark.parametrize(
    ("judged", "measure"),
    [
        ({"raw": 1.0, "policy": 1.0}, "nDCG@10"),
        ({"raw": 0.9, "policy": 0.92}, "nDCG@10"),
        ({"raw": 0.9, "policy": 0.921}, "judged-nDCG@10"),
        ({"raw": 0.899, "policy": 0.899}, "judged-nDCG@10"),
        ({"raw": 0.95, "policy": 0.94, "third": 0.96}, "nDCG@10"),
        ({"raw": 0.95, "policy": 0.94, "third": 0.97}, "judged-nDCG@10"),
        ({"raw": 0.68}, "judged-nDCG@10"),
    ],
)
def test_ndcg_is_believed_if_the_judgments_are_complete_and_even(judged: dict, measure: str) -> None:
    found = believed_measure(judged)
    assert (found.measure, found.complete) == (measure, measure == "nDCG@10")


def test_the_line_says_what_is_believed_and_why() -> None:
    assert believed_measure({"a": 0.68, "b": 0.78}).line == (
        "believed: judged-nDCG@10, since Judged@10 is .680 against .780"
    )
    three = believed_measure({"a": 0.95, "b": 0.96, "c": 0.955}, "nDCG@5", unanswered=True)
    assert three.line == "believed: nDCG@5, since Judged@5 is between .950 and .960 over answered queries"
    assert believed_measure({"a": 1.0, "b": 1.0}).line == ""


def test_the_share_of_judged_documents_counts_only_what_a_run_shows() -> None:
    qrels = {"q1": {"a": 1, "b": 0}, "q2": {"a": 0}, "q3": {"a": 1}}
    run = {"q1": {"a": 3.0, "x": 2.0, "b": 1.0}, "q2": {"a": 1.0}, "q3": {}}
    assert judged_share(run, qrels, "nDCG@2") == 0.75  # One of two in q1, one of one in q2; q3 shows nothing.
    assert judged_share({}, qrels, "nDCG@2") == 1.0


def test_only_what_is_missing_is_added_and_only_where_a_document_is_unjudged() -> None:
    assert added_measures(("nDCG@5", "R@90P"), "nDCG@5", {"a": 1.0, "b": 0.99}) == (
        "Judged@5",
        "judged-nDCG@5",
        "Bpref",
    )
    assert added_measures(("nDCG@10", "Judged@10", "Bpref"), "nDCG@10", {"a": 0.5}) == ("judged-nDCG@10",)
    assert added_measures(("nDCG@10",), "nDCG@10", {"a": 1.0}) == added_measures(("RR@10",), None, {}) == ()


def test_judgments_that_list_relevant_documents_only_are_complete() -> None:
    assert ndcg_in_doubt(("RR", "nDCG@5", "nDCG@10"), {"q": {"a": 1}, "r": {"a": 2, "b": 0}}) == "nDCG@5"
    assert ndcg_in_doubt(("nDCG@10",), {"q": {"a": 1, "b": 3}}) is None
    assert ndcg_in_doubt(("nDCG", "RR@10"), {"q": {"a": 0}}) is None
    found = evaluate_runs({"a": {"q": {"x": 1.0, "b": 0.5}}}, {"q": {"b": 1}}, settings=QUICK)
    assert found.added == () and found.believed is None


def test_an_added_measure_is_corrected_in_the_place_of_ndcg_and_changes_no_other() -> None:
    asked = {"nDCG@10": 0.04, "RR@10": 0.01, "R@100": 0.03}
    found = holm_with_added(asked | {"judged-nDCG@10": 0.02, "Bpref": 0.5}, ("judged-nDCG@10", "Bpref"))
    assert list(found.values())[:3] == holm(list(asked.values()))
    assert found["judged-nDCG@10"] == holm([0.02, 0.01, 0.03])[0] and found["Bpref"] == holm([0.5, 0.01, 0.03])[0]


def shown(evaluation: Evaluation) -> str:
    console = Console(file=StringIO(), width=80)
    print_evaluation(evaluation, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_evaluate_shows_what_is_believed_where_documents_are_unjudged_and_keeps_it_in_json() -> None:
    run, qrels = some_run(1)
    perfect = {query: {d: float(grade) for d, grade in grades.items()} for query, grades in qrels.items()}
    found = evaluate_runs({"raw": run, "perfect": perfect}, qrels, baseline="raw", settings=QUICK)
    assert found.added == ("Judged@10", "judged-nDCG@10", "Bpref")
    assert set(found.runs[1].measures) == {"nDCG@10", "RR@10", *found.added}
    text = shown(found)
    assert "…" not in text and "judged-nDCG@10" in text
    raw = sum(measure_run(run, qrels, ("Judged@10",))["Judged@10"].values()) / 40
    assert f"believed: judged-nDCG@10, since Judged@10 is {raw:.3f} against 1.000".replace(" 0.", " .") in text
    kept = json.loads(to_json(found))
    assert kept["believed"]["measure"] == "judged-nDCG@10" and kept["believed"]["judged"]["perfect"] == 1.0
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


def test_evaluate_shows_as_before_where_all_documents_are_judged() -> None:
    run, qrels = some_run(1)
    judged = {query: {d: score for d, score in of.items() if d in qrels[query]} for query, of in run.items()}
    other = {query: {d: -score for d, score in of.items()} for query, of in judged.items()}
    found = evaluate_runs({"raw": judged, "other": other}, qrels, baseline="raw", settings=QUICK)
    assert found.added == () and found.believed is not None and found.believed.complete
    assert "believed" not in shown(found) and "judged-" not in shown(found)
    asked = msgspec.structs.replace(QUICK, measures=("nDCG@10", "judged-nDCG@10"))
    twice = evaluate_runs({"raw": judged, "other": other}, qrels, baseline="raw", settings=asked).runs[1].per_query
    assert twice["nDCG@10"] == twice["judged-nDCG@10"]


def test_added_measures_change_no_number_of_the_measures_that_were_asked_for() -> None:
    run, qrels = some_run(2)
    other = some_run(3)[0]
    found = evaluate_runs({"raw": run, "other": other}, qrels, baseline="raw", settings=QUICK).runs[1]
    no_doubt = msgspec.structs.replace(QUICK, measures=("RR@10",))
    alone = evaluate_runs({"raw": run, "other": other}, qrels, baseline="raw", settings=no_doubt).runs[1]
    assert found.measures["RR@10"] == alone.measures["RR@10"]
    p = [found.differences[name].interval.p for name in ("nDCG@10", "RR@10", "retrieval gain")]
    assert [found.differences[name].p_holm for name in ("nDCG@10", "RR@10", "retrieval gain")] == holm(p)
