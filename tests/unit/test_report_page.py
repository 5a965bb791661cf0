"""The report's page: its sentences and figures worked by hand, hostile text, and every size of run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import duckdb
import msgspec
import pytest

from storage.charts import LINES_MAX
from storage.evaluation.tables import Evaluation
from storage.monitor.limits import TimeShares, read_time_shares
from storage.questions.asking import ask
from storage.reports.blocks import moved
from storage.reports.charts import main_charts, reward_parts
from storage.reports.examples import PlacedHit, place_hits
from storage.reports.page import render_page
from storage.reports.report import DevRow, Report, read_report, to_json
from storage.shelf import Shelf
from streams.events import Hit, Outcome
from streams.records import Received
from tests.reported import EMPTY, compared, hits, updates, versions
from tests.stored_events import raw_record, record, reward, small_run, version
from tests.unit.test_report import VILE, Page, run_folder

PAGE_BYTES_MAX = 700_000


def test_documents_are_marked_as_new_lost_or_moved() -> None:
    raw, helped = place_hits(["a", "b", "c", "d"], ["b", "x", "c", "a"])
    said = {hit.document_id: moved(hit, after=False)[1] for hit in raw}
    assert said == {"a": "▼ to 4", "b": "▲ to 1", "c": "= same", "d": "× lost"}
    said = {hit.document_id: moved(hit, after=True)[1] for hit in helped}
    assert said == {"b": "▲ from 2", "x": "+ new", "c": "= same", "a": "▼ from 1"}
    twice, _ = place_hits(["a", "a", "b"], [])
    assert twice == (
        PlacedHit(document_id="a", rank=1, other_rank=None),
        PlacedHit(document_id="b", rank=3, other_rank=None),
    )
    long, _ = place_hits([str(n) for n in range(50)], ["40"])
    assert len(long) == 10


def answered(number: int, rewards: list[float], *, valid: bool = True, helped: str = "abx") -> Received:
    """A group of version 0 with these rewards, whose raw query found a, b and c."""
    event = reward(number)
    request = msgspec.structs.replace(event.generation.request, query=f"query {number}", query_id=f"q{number}")
    outcomes = tuple(
        Outcome(
            status="scored",
            valid=valid,
            expansions=(f"word{number}",) if valid else (),
            reward=value,
            components={},
            hits=tuple(Hit(document_id=name, rank=at, score=1.0) for at, name in enumerate(helped, 1)) if valid else (),
            error="" if valid else "no list",
        )
        for value in rewards
    )
    raw = tuple(Hit(document_id=name, rank=at, score=1.0) for at, name in enumerate("abc", 1))
    group = msgspec.structs.replace(event.generation, request=request)
    return record(msgspec.structs.replace(event, generation=group, outcomes=outcomes, raw_hits=raw), number)


def test_examples_are_the_highest_the_middle_and_the_lowest_by_reward(tmp_path: Path) -> None:
    values = {0: [0.9, 0.8], 1: [0.1, 0.2], 2: [0.5, 0.6], 3: [2.0, 1.0], 4: [0.4, 0.45], 5: [0.0, 0.3]}
    records = [answered(number, rewards) for number, rewards in values.items()]
    report = read_report(run_folder(tmp_path, records))
    assert [(each.kind, each.query_id, each.reward) for each in report.comparisons] == [
        ("highest", "q3", 2.0),
        ("highest", "q0", 0.9),
        ("middle", "q2", 0.5),
        ("middle", "q4", 0.45),
        ("lowest", "q1", 0.1),
        ("lowest", "q5", 0.0),
    ]
    first = report.comparisons[0]
    assert first.group == (1.0, 1.5, 2.0) and (first.gained, first.lost) == (1, 1)
    assert [(hit.document_id, hit.other_rank) for hit in first.helped] == [("a", 1), ("b", 2), ("x", None)]
    shelf = Shelf(titles={"a": "Red mug", "x": "Blue mug"}, grades={"q3": {"x": 2, "a": 1, "c": 0}})
    page = render_page(report, shelf)
    assert "Red mug" in page and "Blue mug" in page and '<span class="grade">grade 2</span>' in page
    assert "1 new, 1 lost among the first 3; relevant ones: 1 before, 2 after." in page
    assert page.index("Highest reward <b>2.000</b>") < page.index("Lowest reward <b>0.000</b>")


def test_answers_in_a_wrong_format_are_examples_only_without_others(tmp_path: Path) -> None:
    bad = answered(1, [5.0], valid=False)
    mixed = read_report(run_folder(tmp_path, [answered(0, [0.5]), bad], name="mixed"))
    assert [each.query_id for each in mixed.comparisons] == ["q0"]
    alone = read_report(run_folder(tmp_path, [bad], name="alone"))
    assert [each.valid for each in alone.comparisons] == [False]
    assert (alone.comparisons[0].gained, alone.comparisons[0].lost) == (0, 0)
    page = render_page(alone)
    assert "The answer is not valid: no list." in page and "Nothing was searched with it" in page


def test_broken_rules_are_listed(tmp_path: Path) -> None:
    report = read_report(run_folder(tmp_path, [answered(number, [0.5, 0.5], helped="abc") for number in range(4)]))
    assert [alert.name for alert in report.alerts] == ["no-op collapse"]
    page = render_page(report)
    assert "<b>no-op collapse</b>: 100% of the answers change no search" in page and "look closer" in page


class UpdateTimes(NamedTuple):
    """Milliseconds at which an update's last group was written, was rewarded, and at which the update was made."""

    written: int
    rewarded: int
    updated: int


def time_shares(updates: Sequence[UpdateTimes]) -> TimeShares | None:
    """Return the shares of updates with one group each, in their order, as their ledger gives them."""
    began = 10**12
    with duckdb.connect() as ledger:
        ledger.execute(
            "CREATE TABLE surviving_updates (step INT, lineage TEXT, topic TEXT, partition INT, record_offset INT, "
            "record_time_ms BIGINT); CREATE TABLE update_groups (topic TEXT, partition INT, record_offset INT, "
            "group_id INT); CREATE TABLE first_rewards (group_id INT, record_time_ms BIGINT); "
            "CREATE TABLE first_generations (group_id INT, record_time_ms BIGINT); "
            "CREATE VIEW drawn_updates AS SELECT *, lag(record_time_ms) OVER (ORDER BY step, lineage) AS before_ms "
            "FROM surviving_updates"
        )
        for step, times in enumerate(updates):
            ledger.execute(
                "INSERT INTO surviving_updates VALUES (?, 'a', 'u', 0, ?, ?)", [step, step, began + times[2]]
            )
            ledger.execute("INSERT INTO update_groups VALUES ('u', 0, ?, ?)", [step, step])
            ledger.execute("INSERT INTO first_rewards VALUES (?, ?)", [step, began + times.rewarded])
            ledger.execute("INSERT INTO first_generations VALUES (?, ?)", [step, began + times.written])
        return read_time_shares(lambda sql: ask(ledger.cursor(), sql).dicts())


def test_the_time_between_updates_is_shared_out_by_hand() -> None:
    # Each second: the last text after 200 ms, its reward after 300 ms, the update at the end.
    steps = [UpdateTimes(written=n * 1000 - 800, rewarded=n * 1000 - 700, updated=n * 1000) for n in range(7)]
    assert time_shares(steps) == TimeShares(
        updates=6, seconds=1.0, generation=0.2, search=0.1, learner=0.7, limit="learner"
    )
    # What ran ahead of the learner is nobody's wait.
    ahead = [UpdateTimes(written=n * 1000 - 1500, rewarded=n * 1000 - 1200, updated=n * 1000) for n in range(7)]
    found = time_shares(ahead)
    assert found is not None and (found.generation, found.search, found.learner) == (0.0, 0.0, 1.0)
    slow = time_shares([UpdateTimes(written=n * 1000 - 100, rewarded=n * 1000, updated=n * 1000) for n in range(7)])
    assert slow is not None and slow.limit == "generation"
    even = time_shares([UpdateTimes(written=n * 900 - 600, rewarded=n * 900 - 300, updated=n * 900) for n in range(7)])
    assert even is not None and even.limit == ""


def test_a_restart_and_a_clock_that_was_set_back_do_not_count() -> None:
    steps = [UpdateTimes(written=n * 1000 - 500, rewarded=n * 1000 - 500, updated=n * 1000) for n in range(9)]
    late = [UpdateTimes(*(time + 3_600_000 for time in times)) for times in steps]
    found = time_shares([*steps, *late])
    assert found is not None and (found.updates, found.generation, found.learner) == (16, 0.5, 0.5)
    found = time_shares([*late, *steps])
    assert found is not None and found.updates == 16
    assert time_shares(steps[:5]) is None and time_shares([]) is None


def test_parts_of_the_reward_leave_out_counts_and_measurements() -> None:
    assert reward_parts(versions(3)) == ["relevance", "size"]
    many = versions(2, components={f"p{number:02}": number / 20 for number in range(12)})
    assert len(reward_parts(many)) == 12
    parts = main_charts(msgspec.structs.replace(EMPTY, versions=many))[2]
    assert "4 smaller parts are left out" in parts and parts.count('class="line s') == LINES_MAX


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_of_no_one_or_two_versions_has_its_page(count: int) -> None:
    report = msgspec.structs.replace(EMPTY, versions=versions(count), updates=updates(max(count - 1, 0), {}))
    page = Page()
    page.feed(text := render_page(report))
    assert page.open == [] and "nan" not in re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)
    assert text.count('<figure class="chart">') >= 6
    if count == 0:
        assert text.count("The log has nothing to draw here yet.") == 6 and "No group has been rewarded yet." in text
    if count == 1:
        assert "Only version 0 has been rewarded: 0.100." in text


def test_numbers_that_are_none_or_not_finite_leave_gaps_and_break_nothing() -> None:
    metrics = {"entropy": math.nan, "loss": math.inf, "kl_behaviour": -math.inf, "grad_norm": 1.0}
    holes = versions(20, reward=None, reward_error=None, best=math.nan, valid=None, spread=None, components={})
    report = msgspec.structs.replace(EMPTY, versions=(*holes, *versions(3)), updates=updates(20, metrics))
    text = re.sub("<style>.*?</style>", "", render_page(report), flags=re.DOTALL)
    drawn = re.findall(r'(?:points|d|style|x1|y1)="([^"]*)"', text)
    assert drawn and not any("nan" in each or "inf" in each for each in drawn)
    assert "grad_norm" in text


def test_a_run_of_a_thousand_versions_has_a_page_of_bounded_size() -> None:
    metrics = {f"metric_{number:02}": number / 7 for number in range(25)}

    def page(count: int) -> str:
        noisy = tuple(
            msgspec.structs.replace(row, reward=math.sin(row.step) / 3, best=math.cos(row.step * 7))
            for row in versions(count)
        )
        dev = tuple(DevRow(lineage="a", step=n, measure="nDCG@10", value=0.3, queries=9) for n in range(0, count, 20))
        steps = tuple(
            msgspec.structs.replace(row, metrics={name: math.sin(row.step * at) for at, name in enumerate(metrics)})
            for row in updates(count, metrics)
        )
        return render_page(msgspec.structs.replace(EMPTY, versions=noisy, updates=steps, dev=dev))

    size, tenfold = len(page(1000).encode()), len(page(10_000).encode())
    assert size <= PAGE_BYTES_MAX
    assert tenfold <= size * 1.05


class Addresses(HTMLParser):
    """Every attribute that could load or lead somewhere, and the ids that lead nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.policy = ""
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        if (given.get("http-equiv") or "").lower() == "content-security-policy":
            self.policy = given["content"] or ""
        for name, value in attrs:
            if name in ("href", "src", "srcset", "data", "action", "poster", "xlink:href", "background", "ping"):
                self.found.append((tag, name, value or ""))
            if name.startswith("on"):
                self.handlers.append(name)


def hostile_report(tmp_path: Path) -> tuple[Report, Shelf]:
    """A report in which every text from outside is an attack, and the query has 10 kB."""
    long = (VILE + ' <img src="https://example.org/x.png" onerror="alert(1)"> url(//example.org) ') * 100
    event = reward(50)
    request = msgspec.structs.replace(event.generation.request, query=long[:10_000], query_id=VILE)
    group = msgspec.structs.replace(event.generation, request=request)
    outcomes = tuple(
        msgspec.structs.replace(each, expansions=(long, VILE), components={VILE: 0.1}) for each in event.outcomes
    )
    vile_hits = tuple(msgspec.structs.replace(hit, document_id=f"{VILE}{hit.rank}") for hit in event.raw_hits)
    vile = msgspec.structs.replace(event, generation=group, outcomes=outcomes, raw_hits=vile_hits)
    bad = raw_record("rewards", 60, b'{"event":"<img src=x onerror=alert(1)>"}')
    folder = run_folder(tmp_path, [record(version(0), 0), record(vile, 50), bad])
    report = read_report(folder)
    evaluation = compared(hits("0-3"), hits("1-17"))
    renamed = msgspec.to_builtins(evaluation)
    renamed["runs"][1]["name"] = f"policy {VILE}"
    return msgspec.structs.replace(
        report,
        run=f"r{VILE}",
        evaluations={VILE: msgspec.convert(renamed, Evaluation)},
        updates=updates(3, {VILE: 1.0}),
    ), Shelf(titles={hit.document_id: VILE for hit in report.comparisons[0].raw}, note=VILE, folder=VILE)


def test_hostile_text_stays_text_everywhere(tmp_path: Path) -> None:
    text = render_page(*hostile_report(tmp_path))
    page, addresses = Page(), Addresses()
    page.feed(text)
    addresses.feed(text)
    assert page.open == [] and addresses.handlers == []
    assert page.tags.isdisjoint({"script", "img", "iframe", "object", "form", "base", "embed", "link"})
    assert text.count("&lt;script&gt;alert(") >= 10
    assert not re.search("[\x00-\x08\x0b-\x1f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", text)
    assert len(text.encode()) < 150_000  # The 10 kB query is shown by its beginning.
    assert "(10,000 characters)" in text or "(4,000 characters)" in text


def test_the_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    text = render_page(*hostile_report(tmp_path))
    addresses = Addresses()
    addresses.feed(text)
    assert addresses.found
    for tag, name, value in addresses.found:
        assert (tag, name) == ("a", "href") and value.startswith("#") and value[1:] in addresses.ids
    assert len(addresses.ids) == len(set(addresses.ids))
    policy = dict(part.strip().split(" ", 1) for part in addresses.policy.split(";"))
    assert policy == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    for style in [*re.findall("<style>(.*?)</style>", text, re.DOTALL), *re.findall('style="([^"]*)"', text)]:
        assert "url(" not in style and "@import" not in style and "expression" not in style


def test_scripts_that_read_the_report_find_what_they_found(tmp_path: Path) -> None:
    found = msgspec.json.decode(to_json(read_report(run_folder(tmp_path, small_run(8)))))
    before = {
        "run", "live", "first_ms", "last_ms", "partitions", "accounting", "versions", "updates", "lag", "dead_letters",
        "letters", "examples", "evaluations",
    }  # fmt: skip
    assert before <= found.keys()
    assert found.keys() - before == {"index", "dev", "comparisons", "residual", "alerts", "time"}
    assert {
        "lineage", "step", "groups", "scored", "failed", "reward", "reward_error", "best", "valid", "flat",
        "expansions", "components",
    } <= found["versions"][0].keys()  # fmt: skip
    assert set(found["examples"][0]) == {"query", "expansions", "text", "reward", "found"}


def test_the_spread_of_a_version_is_the_mean_spread_of_its_groups(tmp_path: Path) -> None:
    report = read_report(run_folder(tmp_path, [answered(0, [0.0, 1.0]), answered(1, [0.5, 0.5, 0.5, 0.9])]))
    # Standard deviations: 0.5, and of three 0.5 and one 0.9 around 0.6: sqrt((3 * 0.01 + 0.09) / 4).
    assert report.versions[0].spread == pytest.approx((0.5 + math.sqrt(0.03)) / 2, abs=1e-6)
