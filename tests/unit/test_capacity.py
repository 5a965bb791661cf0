"""The simulation of a cluster: where the answer is known without it, it gives that answer."""

from __future__ import annotations

from pathlib import Path

import duckdb
import msgspec
import pytest

from storage.schema import migrate
from tests.capacity.calibration import calibrate
from tests.capacity.model import Plant, Service, simulate

QUICK = Service(base=0.0, each=0.0001)
ONE = Plant(
    partitions=1,
    generators=1,
    environments=1,
    groups=16,
    staleness_max=0,
    generate=Service(base=0.2, each=0.05),
    score=Service(base=0.1, each=0.02),
    learn=Service(base=0.5, each=0.0),
    hop=0.0,
)


def test_without_staleness_a_cycle_is_the_sum_of_its_stages() -> None:
    # 0.2 + 16 · 0.05 for the texts, 0.1 + 16 · 0.02 for the rewards, 0.5 for the update.
    found = simulate(ONE, updates=20)
    assert found.groups_per_second == pytest.approx(16 / (1.0 + 0.42 + 0.5))
    assert (found.staleness_mean, found.staleness_max) == (0.0, 0)
    assert found.busy == pytest.approx({"generator": 1.0 / 1.92, "environment": 0.42 / 1.92, "learner": 0.5 / 1.92})


def test_with_staleness_the_slowest_stage_sets_the_pace() -> None:
    found = simulate(msgspec.structs.replace(ONE, staleness_max=3), updates=40)
    assert found.groups_per_second == pytest.approx(16 / 1.0, rel=0.02)
    assert found.bottleneck == "generator"
    assert 0 < found.staleness_max <= 3


@pytest.mark.parametrize("staleness_max", [0, 1, 2, 4])
def test_no_group_is_older_than_the_limit_however_uneven_the_times_are(staleness_max: int) -> None:
    uneven = msgspec.structs.replace(
        ONE,
        partitions=12,
        environments=5,
        generators=3,
        staleness_max=staleness_max,
        score=Service(base=0.1, each=0.05, spread=2.0),
        hop=0.01,
    )
    assert max(simulate(uneven, updates=50, seed=seed).staleness_max for seed in range(4)) <= staleness_max


def test_twice_the_environments_score_twice_as_much_while_they_are_the_slowest() -> None:
    scored = msgspec.structs.replace(
        ONE,
        partitions=16,
        groups=64,
        staleness_max=3,
        generate=QUICK,
        learn=QUICK,
        score=Service(base=0.0, each=0.1),
    )
    two, four = (simulate(msgspec.structs.replace(scored, environments=count)) for count in (2, 4))
    assert two.groups_per_second == pytest.approx(20, rel=0.02)
    assert four.groups_per_second == pytest.approx(2 * two.groups_per_second, rel=0.02)
    assert two.bottleneck == four.bottleneck == "environment"


def test_more_environments_than_partitions_help_nobody() -> None:
    scored = msgspec.structs.replace(ONE, partitions=4, staleness_max=3, generate=QUICK, learn=QUICK)
    four, forty = (simulate(msgspec.structs.replace(scored, environments=count)) for count in (4, 40))
    assert four.groups_per_second == forty.groups_per_second


def test_the_engine_limits_all_environments_together() -> None:
    searched = msgspec.structs.replace(
        ONE,
        partitions=32,
        environments=32,
        groups=64,
        staleness_max=3,
        generate=QUICK,
        learn=QUICK,
        score=QUICK,
        engine=0.05,
        engine_cores=4,
    )
    found = simulate(searched)
    assert found.groups_per_second == pytest.approx(4 / 0.05, rel=0.03)
    assert found.busy["engine"] == pytest.approx(1.0, abs=0.03)


def test_a_small_batch_leaves_many_workers_without_work() -> None:
    wide = msgspec.structs.replace(
        ONE, partitions=100, environments=50, generators=1, generate=QUICK, learn=QUICK, score=Service(base=0, each=1)
    )
    few, many = (simulate(msgspec.structs.replace(wide, groups=groups), updates=10) for groups in (10, 100))
    assert few.groups_per_second == pytest.approx(10, rel=0.05)
    assert many.groups_per_second == pytest.approx(50, rel=0.05)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    uneven = msgspec.structs.replace(ONE, learn=Service(base=0.5, each=0.0, spread=0.5))
    assert simulate(uneven, seed=1) == simulate(uneven, seed=1)
    assert simulate(uneven, seed=1) != simulate(uneven, seed=2)


def test_times_of_a_run_with_several_partitions_are_read_by_the_clock(tmp_path: Path) -> None:
    # Every ten seconds an update of two groups, each on a partition of its own: 3 s writing, 2 and 1 s scoring, 3 s
    # learning. The offsets of the partitions say nothing about each other.
    with duckdb.connect(str(tmp_path / "ledger")) as ledger:
        migrate(ledger)

        def insert(table: str, **row: object) -> None:
            row = {"topic": f"r.{table}", "run": "r"} | row
            names, places = ", ".join(row), ", ".join("?" * len(row))
            ledger.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", list(row.values()))

        for step in range(1, 5):
            end = 10_000 * step
            for partition in range(2):
                group = {"group_id": f"{step}-{partition}", "partition": partition}
                group["record_offset"] = step + 1_000 * partition
                written, scored = end - 6_000 + 1_000 * partition, end - 4_000 + 1_000 * partition
                made = {"made_at_ms": end - 8_000, "step": step - 1, "prompt_tokens": 20, "candidates": 8}
                insert("generations", **group, record_time_ms=written, **made)
                insert("candidates", **group, record_time_ms=written, tokens=5)
                insert("rewards", **group, record_time_ms=scored)
                taken = {"partition": 0, "record_offset": step, "record_time_ms": end, "step": step}
                insert("update_groups", **taken, group_id=group["group_id"])
            insert("updates", **taken)
    found = calibrate(tmp_path / "ledger", from_update=1)
    assert found.busy == pytest.approx({"generate": 0.3, "score": 0.3, "learn": 0.3})
    assert found.score.base + found.score.each == pytest.approx(1.5)
    assert (found.groups, found.groups_per_second) == (2, pytest.approx(0.2))
