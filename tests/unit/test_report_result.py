"""The result that a report tells: its sentences, worked by hand, and the commands that it proposes."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import msgspec

from infra.cli import cli
from storage.evaluation.tables import Evaluation
from storage.reports.page import render_page
from storage.reports.report import read_report
from storage.reports.result import result_lines
from storage.shelf import Shelf
from tests.reported import EMPTY, compared, hits
from tests.stored_events import dev_score, record, small_run
from tests.unit.test_report import run_folder


def test_a_gain_is_told_with_its_rows_its_interval_and_the_queries_behind_it() -> None:
    report = msgspec.structs.replace(EMPTY, evaluations={"evaluation": compared(hits("0-3"), hits("1-17"))})
    found = result_lines(report)
    # 4 of 20 before, 17 of 20 after: one query lost, fourteen won, five as before.
    assert found.outcome == "better" and found.headline.startswith("Search got better: +0.650 ")
    assert found.lines[0] == "“policy” was compared with “raw” on 20 judged queries."
    assert " rose from 0.2000 to 0.8500, a difference of +0.6500 (95% interval +" in found.lines[1]
    assert found.lines[2] == "Of the 20 queries, 14 got better, 1 got worse, and 5 stayed as they were."
    assert "promote" in found.commands[0]
    page = render_page(report)
    assert page.index("Search got better") < page.index("Is it healthy?") < page.index("How the run went")


def test_a_loss_is_told_as_a_loss() -> None:
    found = result_lines(msgspec.structs.replace(EMPTY, evaluations={"e": compared(hits("0-17"), hits("0-3"))}))
    assert found.outcome == "worse" and found.headline.startswith("Search got worse: -0.700 ")
    assert found.following.startswith("Do not use this version.") and not found.commands


def test_an_interval_that_holds_zero_is_no_result() -> None:
    found = result_lines(msgspec.structs.replace(EMPTY, evaluations={"e": compared(hits("0-9"), hits("1-10"))}))
    assert found.outcome == "unclear" and found.headline.startswith("No difference was shown in ")
    assert "The interval holds 0" in found.lines[2]
    same = result_lines(msgspec.structs.replace(EMPTY, evaluations={"e": compared(hits("0-9"), hits("0-9"))}))
    assert same.outcome == "unclear" and "0 got better, 0 got worse, and 20 stayed" in same.lines[3]


def test_a_baseline_that_is_as_good_as_the_policy_is_named() -> None:
    evaluation = compared(hits("0-3"), hits("0-17"), shown=hits("1-18"), weak=hits("0-5"))
    found = result_lines(msgspec.structs.replace(EMPTY, evaluations={"evaluation": evaluation}))
    assert (
        found.outcome == "better"
        and found.lines[0].endswith("next to 2 other rows.")
        and found.headline.endswith(", but it is not shown to beat “shown”")
    )
    assert "The best of the other rows is “shown” with 0.9000; “policy” is not shown to beat it." in found.lines[3]
    assert "before you prefer the policy to “shown”" in found.following
    better = compared(hits("0-3"), hits("0-17"), shown=hits("0-5"))
    assert "“policy” beats it" in result_lines(msgspec.structs.replace(EMPTY, evaluations={"e": better})).lines[3]


def test_an_evaluation_without_values_by_query_has_no_counts() -> None:
    kept = msgspec.to_builtins(compared(hits("0-3"), hits("1-17"), shown=hits("0-1")))
    for run in kept["runs"]:
        del run["per_query"]
    found = result_lines(msgspec.structs.replace(EMPTY, evaluations={"e": msgspec.convert(kept, Evaluation)}))
    assert found.counts is None and "it lies below “policy”" in found.lines[2]


def test_without_an_evaluation_the_page_says_so_and_how_to_get_one(tmp_path: Path) -> None:
    records = [*small_run(16), record(dev_score(0), 0), record(dev_score(3), 1)]
    report = read_report(run_folder(tmp_path, records))
    assert [(row.step, row.measure, row.value, row.queries) for row in report.dev] == [
        (0, "nDCG@10", 0.25, 300),
        (3, "nDCG@10", 0.25, 300),
    ]
    found = result_lines(report, Shelf(folder="runs/demo", baseline="lead"))
    assert found.outcome == "unmeasured" and "cannot say whether search got better" in found.lines[0]
    assert "On 300 dev queries, nDCG@10 was 0.2500 at version 0 and 0.2500 at version 3" in found.lines[1]
    assert "A policy can raise it without better search." in found.lines[2]
    assert found.commands[1].endswith("> runs/demo/evaluation.json") and "demo:lead demo:latest" in found.commands[1]
    assert "nDCG@10 of 300 dev queries, which train nothing" in render_page(report)


def test_every_command_that_the_page_proposes_is_understood() -> None:
    rival = compared(hits("0-3"), hits("0-17"), **{"prompt's words": hits("1-18")})
    evaluations = [None, compared(hits("0-3"), hits("1-17")), compared(hits("0-9"), hits("1-10")), rival]
    lines = []
    for evaluation in evaluations:
        given = {"evaluation": evaluation} if evaluation else {}
        lines += result_lines(msgspec.structs.replace(EMPTY, evaluations=given)).commands
    assert len(lines) == 6
    for text in lines:
        _, name, *rest = shlex.split(text.partition(" > ")[0])
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.make_context(name, rest) is not None


def test_the_sets_that_measure_prints_are_evaluations_too(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, small_run(4))
    rows = {"demo:none": hits("0-3"), "demo:latest": hits("1-17")}
    evaluation = compared(hits("0-3"), hits("1-17"))
    named = tuple(
        msgspec.structs.replace(run, name=name, per_query={}) for run, name in zip(evaluation.runs, rows, strict=True)
    )
    measured = msgspec.structs.replace(evaluation, baseline="demo:none", runs=named)
    sets = [{"name": name, "evaluation": measured, "pooled_recall": {"demo:none": 0.5}} for name in ("pairs", "values")]
    (folder / "evaluation.json").write_bytes(msgspec.json.encode(sets))
    report = read_report(folder)
    assert list(report.evaluations) == ["evaluation: pairs", "evaluation: values"]
    found = result_lines(report)
    assert found.outcome == "better" and found.row == "demo:latest" and found.name == "evaluation: pairs"
    assert "“demo:latest” was compared with “demo:none” on 20 judged queries." in found.lines


def test_commands_begin_as_the_reader_must_begin_them() -> None:
    shelf = Shelf(program=".venv/bin/searchloop --home other", folder="other/runs/r")
    for evaluations in ({}, {"e": compared(hits("0-3"), hits("1-17"))}, {"e": compared(hits("0-9"), hits("1-10"))}):
        found = result_lines(msgspec.structs.replace(EMPTY, evaluations=evaluations), shelf)
        assert found.commands and all(line.startswith(".venv/bin/searchloop --home other ") for line in found.commands)
