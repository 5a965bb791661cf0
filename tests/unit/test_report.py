"""The report: the same log gives the same report, and text from outside stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from infra.app.home import Home
from infra.commands.evaluate import evaluate
from infra.commands.evaluate import to_json as evaluation_json
from infra.commands.report import report as report_command
from storage.charts import HEIGHT, WIDTH, Series, line_chart
from storage.errors import StorageError
from storage.evaluation.tables import evaluate_runs
from storage.ledger import LEDGER
from storage.reports.page import clean, render_page
from storage.reports.report import Report, read_report, to_json
from storage.reports.text import print_report
from storage.sink import Sink
from streams.errors import SearchloopError
from streams.records import Received
from tests.stored_events import generation, raw_record, record, reward, small_run, version

VILE = '<script>alert("x")</script> & \x1b[31m [red]bold[/red] \u202egnirts \ud7ff'


def run_folder(home: Path, records: list[Received], *, name: str = "demo") -> Path:
    folder = home / "runs" / name
    with Sink(folder / LEDGER) as sink:
        sink.write(records)
    return folder


def vile_record(number: int) -> Received:
    event = reward(number)
    request = msgspec.structs.replace(event.generation.request, query=VILE, query_id=f"vile{number}")
    group = msgspec.structs.replace(event.generation, request=request)
    outcomes = tuple(msgspec.structs.replace(o, expansions=(VILE,)) for o in event.outcomes)
    return record(msgspec.structs.replace(event, generation=group, outcomes=outcomes), number)


class Page(HTMLParser):
    """What a browser would see: tags, and whether they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")]
        if tag not in ("meta",) and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def text_of(report: Report) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115, PTH123
    print_report(report, console)
    return console.export_text(styles=False)


def test_the_report_tells_what_the_log_holds(tmp_path: Path) -> None:
    found = read_report(run_folder(tmp_path, small_run(16)))
    assert [row.step for row in found.versions] == [0, 1, 2, 3]
    first = found.versions[0]
    means = [sum(o.reward or 0 for o in reward(n, step=0).outcomes) / 8 for n in range(4)]
    assert first.reward == pytest.approx(sum(means) / 4, abs=1e-6)
    assert (
        first.valid == 1.0
        and first.flat == 0.0
        and first.expansions == 2.0
        and set(first.components)
        == {
            "relevance",
            "size",
        }
    )
    assert [row.trained for row in found.updates] == [4, 4, 4, 4]
    assert found.accounting[0].candidates == found.accounting[0].scored == 128
    assert found.accounting[0].uses_max == 1
    assert found.lag == {"groups": 16, "p50": 0, "p95": 0, "max": 0}
    assert {row.topic: row.records for row in found.partitions}["test.rewards"] == 16
    assert found.dead_letters == {} and not found.live


def test_the_same_log_gives_the_same_report(tmp_path: Path) -> None:
    records = small_run(16)
    one = run_folder(tmp_path / "one", records)
    other = run_folder(tmp_path / "other", records[::-1])
    assert to_json(read_report(one)) == to_json(read_report(one)) == to_json(read_report(other))
    assert render_page(read_report(one)) == render_page(read_report(other))


def test_a_run_that_has_only_begun_can_be_reported(tmp_path: Path) -> None:
    for name, records in {
        "version": [record(version(0), 0)],
        "waiting": [record(generation(0), 0)],
        "bad": [raw_record("rewards", 0, b"bad")],
    }.items():
        found = read_report(run_folder(tmp_path, records, name=name))
        assert found.versions == ()
        assert "no group has been rewarded yet" in text_of(found)
        assert "No group has been rewarded yet" in render_page(found)
    assert read_report(tmp_path / "runs" / "waiting").accounting[0].waiting == 8


def test_the_page_is_whole_fetches_nothing_and_escapes_everything(tmp_path: Path) -> None:
    bad = raw_record("rewards", 5, b'{"event":"<img src=x onerror=alert(1)>"}')
    folder = run_folder(tmp_path, [*small_run(4), vile_record(4), bad])
    text = render_page(read_report(folder))
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.tags.isdisjoint({"script", "img", "link", "iframe", "object", "form"})
    assert page.addresses and all(address.startswith("#") for address in page.addresses)
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert "&lt;script&gt;" in text and "&lt;img src=x" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)


def test_text_from_outside_does_not_steer_the_terminal(tmp_path: Path) -> None:
    bad = raw_record("rewards", 5, b'{"event":"\\u001b[2J[red]x[/red]"}')
    text = text_of(read_report(run_folder(tmp_path, [*small_run(4), bad])))
    assert "[red]x[/red]" in text and "\x1b" not in text


def test_clean_keeps_letters_of_every_script() -> None:
    assert clean("Kühlschrank 冰箱 ثلاجة") == "Kühlschrank 冰箱 ثلاجة"
    assert clean("a\u202eb\x00c\u200bd") == "a b c d"


def test_a_chart_holds_every_point_inside_its_frame() -> None:
    points = tuple((float(x), (-1.0) ** x * 10.0**x) for x in range(8))
    chart = line_chart("wild", [Series(name="a<b", points=points, errors=(1.0,) * 8)], x_label="step")
    assert "a&lt;b" in chart and "a<b" not in chart
    drawn = re.findall(r"(-?[\d.]+),(-?[\d.]+)", " ".join(re.findall('points="([^"]*)"', chart)))
    assert len(drawn) == 8 + 16  # the line, and both edges of its band
    for x, y in drawn:
        assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT


@pytest.mark.parametrize("values", [(), (0.0,), (5.0, 5.0), (1e-15, 2e-15), (-1e300, 1e300)])
def test_a_chart_of_few_equal_or_huge_values_is_drawn_or_left_out(values: tuple[float, ...]) -> None:
    series = Series(name="x", points=tuple((float(at), value) for at, value in enumerate(values)))
    chart = line_chart("t", [series], x_label="x")
    assert (chart == "") == (not values) and "nan" not in chart


def test_evaluations_in_the_folder_are_shown(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, small_run(4))
    runs = {"raw": {"q": {"a": 1.0, "b": 2.0}}, "policy <b>": {"q": {"a": 2.0, "b": 1.0}}}
    result = evaluate_runs(runs, {"q": {"a": 1}}, baseline="raw")
    (folder / "evaluation-dev.json").write_text(evaluation_json(result))
    found = read_report(folder)
    assert found.evaluations["evaluation-dev"].runs[1].measures["nDCG@10"].value == 1.0
    assert "policy &lt;b&gt;" in render_page(found) and "policy <b>" in text_of(found)
    (folder / "evaluation-dev.json").write_text("{}")
    with pytest.raises(StorageError, match=r"evaluation-dev\.json"):
        read_report(folder)


def call(command: object, arguments: list[str], home: Path) -> tuple[str, BaseException | None]:
    result = CliRunner().invoke(command, arguments, obj=SimpleNamespace(home=Home(home)))  # type: ignore[arg-type]
    return result.stdout, result.exception


def test_the_verb_prints_and_writes_the_report(tmp_path: Path) -> None:
    run_folder(tmp_path, small_run(4))
    output, error = call(report_command, ["--run", "demo", "--json", "--html", str(tmp_path / "r.html")], tmp_path)
    assert error is None and msgspec.json.decode(output)["run"] == "demo"
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    output, error = call(report_command, ["--run", "demo"], tmp_path)
    assert error is None and "reward by version" in output
    _, error = call(report_command, ["--run", "other"], tmp_path)
    assert isinstance(error, SearchloopError) and "demo" in str(error)


def test_the_evaluate_verb_compares_run_files(tmp_path: Path) -> None:
    (tmp_path / "raw.run").write_text("q1 Q0 a 1 2.0 raw\nq1 Q0 b 2 1.0 raw\nq2 Q0 b 1 1.0 raw\n")
    (tmp_path / "new.run").write_text("q1 Q0 b 1 2.0 new\nq1 Q0 a 2 1.0 new\nq2 Q0 c 1 1.0 new\n")
    (tmp_path / "qrels").write_text("q1 0 b 1\nq2 0 c 1\n")
    files = [str(tmp_path / "new.run"), "--qrels", str(tmp_path / "qrels"), "--baseline", str(tmp_path / "raw.run")]
    output, error = call(evaluate, [*files, "--json"], tmp_path)
    assert error is None
    found = msgspec.json.decode(output)
    assert found["runs"][1]["measures"]["RR@10"]["value"] == 1.0
    assert found["runs"][1]["differences"]["retrieval gain"]["interval"]["value"] == 1.0
    assert call(evaluate, [*files, "--json"], tmp_path)[0] == output
    output, error = call(evaluate, files, tmp_path)
    assert error is None and "retrieval gain" in output and "+100.0%" in output


@pytest.mark.parametrize(
    ("run", "qrels", "says"),
    [
        ("q1 Q0 a 1 2.0\n", "q1 0 a 1\n", r"line 1: expected 6 columns"),
        ("q1 Q0 a 1 2.0 t\nq1 Q0 b 2 x t\n", "q1 0 a 1\n", r"line 2: expected a finite score"),
        ("q1 Q0 a 1 2.0 t\nq1 Q0 a 2 1.0 t\n", "q1 0 a 1\n", r"line 2: document 'a' is listed twice"),
        ("q1 Q0 a 1 2.0 t\n", "q9 0 a 1\n", r"none of its 1 queries is judged"),
        (
            "q1 Q0 a 1 2.0 t\nq2 Q0 a 1 2.0 t\n",
            "q1 0 a 1\n",
            r"1 of its 2 queries are not judged .*--judged-queries-only",
        ),
        ("q1 Q0 a 1 2.0 t\n", "q1 0 a\tbad\n", r"line 1: expected an integer grade"),
        ("", "q1 0 a 1\n", r"expected at least one"),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_place(tmp_path: Path, run: str, qrels: str, says: str) -> None:
    (tmp_path / "x.run").write_text(run)
    (tmp_path / "qrels").write_text(qrels)
    _, error = call(evaluate, [str(tmp_path / "x.run"), "--qrels", str(tmp_path / "qrels")], tmp_path)
    assert isinstance(error, SearchloopError)
    assert re.search(says, str(error)) and "\n" not in str(error)


def test_unjudged_queries_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.run").write_text("q1 Q0 a 1 2.0 t\nq2 Q0 a 1 2.0 t\n")
    (tmp_path / "qrels").write_text("q1 0 a 1\n")
    arguments = [str(tmp_path / "x.run"), "--qrels", str(tmp_path / "qrels"), "--judged-queries-only", "--json"]
    output, error = call(evaluate, arguments, tmp_path)
    assert error is None and msgspec.json.decode(output)["queries"] == 1
