"""`searchloop bench`: rows and their scripts, results, the comparison with kept ones, and the page made from them."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from click.testing import Result as Said

import infra.commands.bench
from infra.benchmarks.page import KEPT, PAGE, table, with_table
from infra.benchmarks.rows import ROWS, BenchRow, chosen
from infra.benchmarks.running import BenchError, Result, measure, read_result, read_results, worse
from infra.commands.bench import bench
from streams.errors import SettingsError

ROOT = Path(__file__).parents[2]
FIRST = BenchRow(name="first", what="w", peer="p", script="one.py", goal=0.5, floor="f", above="a")
SECOND = BenchRow(name="second", what="w", peer="p", script="one.py", better="higher", floor="f", above="a")


def result(row: str, value: float, *, better: str = "lower") -> Result:
    return Result(row=row, value=value, low=value, high=value, runs=1, unit="ratio", goal=None, better=better)


def clone(root: Path, script: str) -> Path:
    """Write a clone with one script."""
    (root / "tests" / "benchmarks").mkdir(parents=True)
    (root / "tests" / "benchmarks" / "one.py").write_text(script)
    return root


GOOD = """
import json, pathlib, sys
count = pathlib.Path("count"); count.write_text(count.read_text() + "." if count.exists() else ".")
print("a table")
print(json.dumps({"values": {"first": [0.4, 0.2, 0.3], "second": [2.0]}, "floors": {"first": 0.1},
                  "sides": {"first": {"ours": 3.0}}, "arguments": sys.argv[1:]}))
"""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_has_a_script_that_knows_its_options_and_names_the_row(row: BenchRow) -> None:
    script, *arguments = row.command()
    source = (ROOT / script).read_text()
    words = {each.value for each in ast.walk(ast.parse(source)) if isinstance(each, ast.Constant)}
    assert {each for each in arguments if each.startswith("--")} <= words
    assert row.name in words
    assert row.floor and row.above and row.peer


def test_a_script_runs_once_for_its_rows_and_gives_median_lowest_and_highest(tmp_path: Path) -> None:
    root = clone(tmp_path, GOOD)
    results, failed = measure([FIRST, SECOND], runs=3, root=root)
    assert failed == {}
    assert (root / "count").read_text() == "."
    first, second = results
    assert (first.value, first.low, first.high, first.runs, first.floor) == (0.3, 0.2, 0.4, 3, 0.1)
    assert first.sides == {"ours": 3.0}
    assert (first.reached, second.reached) == (True, None)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import nothing_of_this_name", "needs the peer: make setup"),
        ("raise SystemExit('gradients differ by 1')", "gradients differ by 1"),
        ("print('no JSON')", "expected a JSON line"),
        ("print('{}')", "expected values of this row"),
        ('print(\'{"values": {"first": [0.5, NaN]}}\')', "expected values of this row"),
    ],
)
def test_a_row_that_cannot_be_measured_says_why_and_holds_no_other_up(tmp_path: Path, script: str, reason: str) -> None:
    results, failed = measure([FIRST], runs=None, root=clone(tmp_path, script))
    assert results == []
    assert reason in failed["first"]


def test_without_a_clone_a_row_says_what_it_needs(tmp_path: Path) -> None:
    _, failed = measure([FIRST], runs=None, root=tmp_path)
    assert "Needs the peer: clone the repository, run make setup" in failed["first"]


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BenchError, match="first: expected values"):
        read_result(FIRST, {"values": {"first": ["fast"]}})


def test_a_row_is_worse_from_ten_percent_on_in_its_own_direction() -> None:
    kept = [result("a", 1.0), result("b", 1.0, better="higher"), result("c", 1.0)]
    now = [result("a", 1.11), result("b", 0.89, better="higher"), result("c", 1.09), result("new", 9.0)]
    assert [(each.row, each.by) for each in worse(now, kept)] == [("a", 0.11), ("b", 0.11)]
    assert worse([result("a", 0.5), result("b", 2.0, better="higher")], kept) == []


@pytest.mark.parametrize(
    ("kept", "better", "value", "by"),
    [
        (-0.02, "lower", 0.05, 3.5),  # Nothing was lost, by chance; now 5 % are.
        (0.0, "lower", 0.05, math.inf),
        (-0.02, "higher", -0.05, 1.5),
        (0.0, "higher", -0.05, math.inf),
        (0.0, "lower", 0.0, None),
        (0.0, "lower", -0.1, None),
        (-0.02, "lower", -0.05, None),
    ],
)
def test_a_share_kept_as_nothing_or_less_can_get_worse(
    kept: float, better: str, value: float, by: float | None
) -> None:
    found = worse([result("a", value, better=better)], [result("a", kept, better=better)])
    assert [each.by for each in found] == ([] if by is None else [by])


def test_an_unknown_row_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"--row: expected one of learner-step, .*got 'speed'"):
        chosen(["speed"])
    assert [row.name for row in chosen(["sink", "learner-step"])] == ["learner-step", "sink"]


def test_a_file_of_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(SettingsError, match=r"other\.json: expected results"):
        read_results(tmp_path / "other.json")


def call(*arguments: str) -> Said:
    return CliRunner().invoke(bench, arguments, prog_name="bench")


def test_the_verb_lists_every_row_with_its_peer() -> None:
    said = call("--list")
    assert said.exit_code == 0
    assert [line.partition(":")[0] for line in said.output.splitlines()] == [row.name for row in ROWS]


def test_the_verb_writes_json_and_reports_a_row_that_got_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [result("sink", 0.5, better="higher")]
    monkeypatch.setattr(infra.commands.bench, "measure", lambda rows, *, runs, say: (found, {}))
    now, kept = tmp_path / "now.json", tmp_path / "kept.json"
    said = call("--row", "sink", "--json", str(now))
    assert said.exit_code == 0
    assert read_results(now) == found
    kept.write_bytes(msgspec.json.encode([result("sink", 0.8, better="higher")]))
    said = call("--row", "sink", "--against", str(kept))
    assert said.exit_code == 1
    assert "sink: 0.5 is 38% worse than the kept 0.8" in said.output


def test_the_page_holds_the_table_of_the_kept_results() -> None:
    page, kept = PAGE.read_text(), read_results(KEPT)
    assert table(kept) in page
    assert with_table(page, kept) == page
    assert {each.row for each in kept} <= {row.name for row in ROWS}
    assert all(f"| {row.name} |" in table(kept) for row in ROWS)
