"""A report over a grown ledger reads what is new, and equals a report that reads everything."""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import duckdb
import msgspec
import pytest
from click.testing import CliRunner

from infra.app.home import Home
from infra.commands.report import report
from storage.ledger import LEDGER
from storage.log import open_log, rebuild_ledger
from storage.reports import sums, updates, versions
from storage.reports.report import read_report, to_json
from storage.sink import Sink
from streams.events import Event, Generation, PolicyRef, Reward, Update
from streams.records import Received
from tests.finished_run import AT_ONCE
from tests.stored_events import generation, policy, record, request, reward, small_run, update

PARTITIONS = 3


def noisy_run(seed: int, groups: int = 40) -> list[Received]:
    """Records of a run in which everything happens that changes what was summed before.

    Groups are rewarded late or never, written and rewarded twice (the later record may be the one that counts), failed,
    and taken by several updates; learners go back, so lineages end; and records lie in several partitions.
    """
    chance = random.Random(seed)
    ends: dict[tuple[type, int], int] = {}
    records: list[Received] = []
    heads: list[PolicyRef] = [policy(0)]
    head, taken, later = heads[0], [], []

    def put(event: Event) -> None:
        partition = 0 if isinstance(event, Update) else chance.randrange(PARTITIONS)
        offset = ends.get((type(event), partition), 0)
        ends[type(event), partition] = offset + chance.choice([1, 1, 1, 3])
        records.append(record(event, offset, partition=partition))

    for number in range(groups):
        put(request(number))
        for retry in range(chance.choice([1, 1, 1, 2])):
            group = msgspec.structs.replace(generation(number, retry=retry), policy=head)
            put(group)
            judged = _judged(chance, group, number, retry)
            (later if chance.random() < 0.3 else taken).append((number, judged))
        for due in list(taken):
            put(due[1])
        if later and chance.random() < 0.4:
            late = later.pop(chance.randrange(len(later)))
            put(late[1])
            taken.append(late)
        if len(taken) >= 4:
            if chance.random() < 0.2:
                head = chance.choice(heads)
            lineage = head.lineage if chance.random() < 0.8 else chance.choice("abc")
            made = update(head.step + 1, [], lineage=lineage, parent=head)
            sha256 = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
            made = msgspec.structs.replace(
                made, policy=msgspec.structs.replace(made.policy, sha256=sha256), **_fates(chance, taken)
            )
            put(made)
            if chance.random() < 0.2:
                put(made)
            head, taken = made.policy, []
            heads.append(head)
    return records


def _judged(chance: random.Random, group: Generation, number: int, retry: int) -> Reward:
    made = reward(number, retry=retry, source_offset=chance.randrange(200))
    outcomes = [
        each
        if chance.random() < 0.8
        else msgspec.structs.replace(each, status="failed", valid=False, reward=None, components={}, error="no engine")
        for each in made.outcomes
    ]
    if chance.random() < 0.2:
        outcomes = [msgspec.structs.replace(each, reward=0.5) for each in made.outcomes]
    return msgspec.structs.replace(made, generation=group, outcomes=tuple(outcomes))


def _fates(chance: random.Random, taken: list[tuple[int, Reward]]) -> dict[str, tuple[str, ...]]:
    fates: dict[str, tuple[str, ...]] = {}
    for fate in ("trained", "expired", "flat", "failed"):
        fates[fate] = tuple(dict.fromkeys(each.group_id for _, each in taken if chance.random() < 0.5))
    return fates


def write(folder: Path, records: list[Received]) -> None:
    with Sink(folder / LEDGER, AT_ONCE) as sink:
        for first in range(0, len(records), 9):
            sink.write(records[first : first + 9])


def anew(folder: Path) -> str:
    """Return the report of a copy of a run that has no sums."""
    bare = folder.with_name(f"{folder.name}-bare") / folder.name
    shutil.rmtree(bare.parent, ignore_errors=True)
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns(sums.FILE))
    return to_json(read_report(bare))


def told(folder: Path) -> tuple[str, list[str]]:
    """Return a run's report, and what it says about the kept sums."""
    said: list[str] = []
    return to_json(read_report(folder, tell=said.append)), said


@pytest.mark.parametrize("seed", range(3))
def test_a_report_of_a_grown_ledger_equals_one_that_reads_everything(seed: int, tmp_path: Path) -> None:
    records, folder = noisy_run(seed), tmp_path / "demo"
    cuts = sorted(random.Random(seed).sample(range(1, len(records)), 2))
    for first, end in itertools.pairwise([0, *cuts, len(records)]):
        write(folder, records[first:end])
        found, said = told(folder)
        assert said == []
        assert found == anew(folder), f"records {first} to {end} of seed {seed}"
        assert told(folder) == (found, []), "nothing is new"


@pytest.mark.parametrize("seed", range(2))
def test_slices_change_no_figure(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    write(folder, noisy_run(seed))
    whole = anew(folder)
    for module in (versions, updates):
        monkeypatch.setattr(module, "GROUPS_AT_ONCE", 3)
    assert anew(folder) == whole


@pytest.mark.parametrize("seed", range(2))
def test_the_sums_are_those_of_the_ledgers_views(seed: int, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write(folder, noisy_run(seed))
    found = read_report(folder)
    with open_log(folder) as log:
        accounts = log.rows("SELECT * EXCLUDE (run) FROM accounting")
        rewarded = log.rows("SELECT * FROM reward_by_version ORDER BY step, lineage")
        fates = log.rows(
            "SELECT u.lineage, u.step, count(*) FILTER (fate = 'trained') AS trained, "
            "count(*) FILTER (fate = 'expired') AS expired FROM surviving_updates u "
            "LEFT JOIN surviving_groups g USING (run, lineage, step) GROUP BY ALL ORDER BY u.step, u.lineage"
        )
        (lag,) = log.rows(
            "SELECT count(*) AS groups, median(lag_versions) AS p50, quantile_disc(lag_versions, 0.95) AS p95, "
            "max(lag_versions) AS max FROM staleness"
        )
        lags = log.rows("SELECT lineage, step, avg(lag_versions) AS mean FROM staleness GROUP BY ALL")
    assert [msgspec.to_builtins(row) for row in found.accounting] == accounts
    assert [(row.lineage, row.step, row.groups, row.scored, row.failed) for row in found.versions] == [
        (row["lineage"], row["step"], row["groups"], row["scored"], row["failed"]) for row in rewarded
    ]
    for ours, view in zip(found.versions, rewarded, strict=True):
        assert ours.reward == pytest.approx(view["reward_mean"], abs=1e-6)
        assert ours.reward_error == pytest.approx(view["reward_error"], abs=1e-6)
        assert ours.valid == pytest.approx(view["valid_share"], abs=1e-6)
        assert ours.flat == pytest.approx(view["flat_share"], abs=1e-6)
    assert [(row.lineage, row.step, row.trained, row.expired) for row in found.updates] == [
        (row["lineage"], row["step"], row["trained"], row["expired"]) for row in fates
    ]
    means = {(row["lineage"], row["step"]): pytest.approx(row["mean"], abs=1e-6) for row in lags}
    assert {(row.lineage, row.step): row.lag_mean for row in found.updates if row.lag_mean is not None} == means
    assert found.lag == lag


def test_a_second_report_sums_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, records = tmp_path / "demo", small_run(40)
    write(folder, small_run(36))
    read_report(folder)
    known = {(each.position.topic, each.position.offset) for each in small_run(36)}
    write(folder, [each for each in records if (each.position.topic, each.position.offset) not in known])
    summed: list[tuple[str, int]] = []
    _watch(monkeypatch, versions, lambda some: summed.extend(("version", each["step"]) for each in some))
    _watch(monkeypatch, updates, lambda some: summed.extend(("update", each.key[2]) for each in some))
    found, said = told(folder)
    assert summed == [("version", 9), ("update", 10)] and said == []
    summed.clear()
    assert told(folder) == (found, []) and summed == [], "the control: without new rows, nothing is summed"


def _watch(monkeypatch: pytest.MonkeyPatch, module: object, see: Callable[[list], None]) -> None:  # type: ignore[type-arg]
    plain = module._summed  # type: ignore[attr-defined]

    def summed(log: object, some: list) -> object:  # type: ignore[type-arg]
        see(some)
        return plain(log, some)

    monkeypatch.setattr(module, "_summed", summed)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    content = b"not ours"
    path.write_bytes(hashlib.sha256(content).digest() + content)


@pytest.mark.parametrize(
    ("damage", "notice"),
    [(_cut, "damaged"), (_change, "damaged"), (_empty, "damaged"), (_foreign, "another version")],
)
def test_damaged_sums_are_made_anew_with_a_notice(damage: Callable[[Path], None], notice: str, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write(folder, noisy_run(1))
    plain = told(folder)
    damage(folder / sums.FILE)
    found, said = told(folder)
    assert found == plain[0] == anew(folder)
    assert len(said) == 1 and notice in said[0] and str(folder / sums.FILE) in said[0]
    assert told(folder) == plain, "the sums are whole again"


def test_the_verb_says_why_kept_sums_do_not_count(tmp_path: Path) -> None:
    folder = Home(tmp_path).run("demo")
    write(folder, small_run(4))
    app = SimpleNamespace(home=Home(tmp_path))
    first = CliRunner().invoke(report, ["--run", "demo", "--json"], obj=app, catch_exceptions=False)
    _cut(folder / sums.FILE)
    second = CliRunner().invoke(report, ["--run", "demo", "--json"], obj=app, catch_exceptions=False)
    assert first.stderr == "" and "the kept sums are damaged" in second.stderr
    assert first.stdout == second.stdout


def test_sums_of_other_code_are_made_anew_with_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    write(folder, noisy_run(2))
    with monkeypatch.context() as before:
        before.setattr(sums, "_code", lambda: "0" * 64)
        plain, _ = told(folder)
    found, said = told(folder)
    assert found == plain and len(said) == 1 and "another version of searchloop" in said[0]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM rewards WHERE record_offset = 0",
        "INSERT INTO outcomes SELECT * FROM outcomes LIMIT 1",
        "UPDATE update_groups SET record_offset = record_offset + 1 WHERE record_offset = 0",
    ],
)
def test_rows_that_went_came_or_moved_void_the_sums(statement: str, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write(folder, noisy_run(3))
    read_report(folder)
    with duckdb.connect(str(folder / LEDGER)) as ledger:
        ledger.execute(statement)
    found, said = told(folder)
    assert found == anew(folder) and len(said) == 1 and "changed in number or place" in said[0]


def test_a_rebuilt_ledger_is_summed_anew(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write(folder, small_run(12))
    plain, _ = told(folder)
    rebuild_ledger(folder)
    found, said = told(folder)
    assert found == plain and len(said) == 1 and "before it was rebuilt" in said[0]


def test_a_folder_that_cannot_be_written_is_reported_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    write(folder, noisy_run(4))

    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sums, "write_file", refuse)
    assert told(folder) == (anew(folder), [])
    assert not (folder / sums.FILE).exists()


def test_groups_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    write(folder, noisy_run(5))
    whole = anew(folder)
    for module in ("growth", "versions", "updates", "accounts"):
        monkeypatch.setattr(f"storage.reports.{module}.NAME", "length(group_id)")
    assert anew(folder) == whole
