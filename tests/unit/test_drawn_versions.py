"""What charts draw: every version of a short run, and evenly spaced ones of a long run. Sums by group are exact."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import duckdb
import pytest

from storage.ledger import LEDGER
from storage.questions.overview import NEWEST
from storage.schema import migrate
from streams.events import PolicyRef
from streams.records import Received
from tests.shown_pages import in_log_order, whole_run, write_run
from tests.stored_events import generation, policy, record, request, reward, update

BY_CANDIDATE = """SELECT run, split, count(*) AS candidates, count(*) FILTER (outcome = 'scored') AS scored,
    count(*) FILTER (outcome = 'failed') AS failed, count(*) FILTER (outcome = 'expired') AS expired,
    count(*) FILTER (outcome = 'waiting') AS waiting, max(uses) AS uses_max
FROM candidate_outcomes GROUP BY run, split ORDER BY run, split"""


def answer(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(folder / LEDGER), read_only=True) as ledger:
        return ledger.execute(sql).fetchall()


def interrupted_run(chance: random.Random) -> list[Received]:
    """Groups that are repeated, unanswered or taken, by a learner that was killed and went on in another lineage."""
    groups = range(16)
    records = [record(request(n), n) for n in groups]
    written = [(n, 0) for n in groups] + [(n, 1) for n in chance.sample(groups, 4)]
    records += [record(generation(n, step=n // 4, retry=retry), at) for at, (n, retry) in enumerate(written)]
    judged = [(n, retry, at) for at, (n, retry) in enumerate(written) if n < 13]
    judged += chance.sample(judged, 3)
    records += [
        record(reward(n, step=n // 4, retry=retry, source_offset=source), at)
        for at, (n, retry, source) in enumerate(judged)
    ]
    began = PolicyRef(lineage="a", step=1, sha256=f"{1:064x}")
    made = [
        update(1, range(4)),
        update(2, range(4, 8), parent=policy(1)),
        update(2, [*range(4, 7), 0], lineage="b", parent=began),  # Group 0 a second time: the contract is broken.
        update(3, range(7, 10), lineage="b"),
    ]
    return records + [record(each, at) for at, each in enumerate([*made, made[1], made[3]])]


@pytest.mark.parametrize("seed", range(8))
def test_the_account_by_group_is_the_account_by_candidate(tmp_path: Path, seed: int) -> None:
    folder = write_run(tmp_path, interrupted_run(random.Random(seed)))
    assert answer(folder, "FROM accounting") == answer(folder, BY_CANDIDATE)
    assert answer(folder, "SELECT max(uses_max), sum(waiting) > 0 FROM accounting") == [(2, True)]


def test_a_short_run_is_drawn_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path, interrupted_run(random.Random(1)))
    drawn = answer(folder, "SELECT group_id, lineage, step, scored, reward_mean, flat FROM drawn_groups ORDER BY ALL")
    assert len(drawn) == 13
    assert drawn == answer(
        folder, "SELECT group_id, lineage, step, scored, reward_mean, flat FROM group_rewards ORDER BY ALL"
    )
    assert answer(folder, "SELECT lineage, step FROM drawn_updates ORDER BY step") == [("a", 1), ("b", 2), ("b", 3)]
    texts = "SELECT group_id, candidate, text FROM {} ORDER BY ALL"
    assert answer(folder, texts.format("drawn_candidates")) == answer(folder, texts.format("first_candidates"))


def test_versions_that_the_newest_policy_does_not_stand_on_are_marked(tmp_path: Path) -> None:
    updates = [update(1, [0]), update(2, [1]), update(2, [1], lineage="b", parent=policy(1))]
    run = in_log_order([reward(0), reward(1, step=1), reward(2, step=2), *updates])
    marked = answer(write_run(tmp_path, run), "SELECT step, surviving FROM drawn_versions ORDER BY step")
    assert marked == [(0, True), (1, True), (2, False)]


def test_a_long_run_is_drawn_by_evenly_spaced_versions_back_from_the_newest(tmp_path: Path) -> None:
    ledger = duckdb.connect(str(tmp_path / "long.duckdb"))
    migrate(ledger)
    ledger.execute(
        "INSERT INTO rewards BY NAME SELECT 'r.rewards' AS topic, 0 AS partition, n AS record_offset, 0 AS "
        "record_time_ms, 'r' AS run, 'g' || n AS group_id, 'a' AS lineage, n // 2 AS step, 'r.generations' AS "
        "source_topic, 0 AS source_partition, n AS source_offset FROM (SELECT range AS n FROM range(2600))"
    )
    steps = [row[0] for row in ledger.execute("SELECT step FROM drawn_versions ORDER BY step").fetchall()]
    assert steps == list(range(0, 1300, 3))  # 1,300 versions: the newest is 1,299, and every third is drawn.
    assert ledger.execute("SELECT DISTINCT every, surviving FROM drawn_versions").fetchall() == [(3, True)]
    assert ledger.execute("SELECT count(*) FROM drawn_rewards").fetchall() == [(2 * len(steps),)]
    ledger.close()


def test_versions_of_a_foreign_topic_are_not_drawn_and_hide_no_newest_groups(tmp_path: Path) -> None:
    folder = write_run(tmp_path, whole_run(12))
    with duckdb.connect(str(folder / LEDGER)) as ledger:
        ledger.execute(
            "INSERT INTO rewards BY NAME SELECT * REPLACE ('demo.other' AS topic, 1000 AS step) FROM rewards LIMIT 1"
        )
        assert ledger.execute("SELECT step FROM drawn_versions ORDER BY step").fetchall() == [(0,), (1,), (2,)]
        assert ledger.execute(NEWEST).fetchall()[0][0] == 12


def test_a_whole_run_has_the_same_groups_in_all_views(tmp_path: Path) -> None:
    folder = write_run(tmp_path, whole_run(24))
    counts = [
        answer(folder, f"SELECT count(DISTINCT group_id) FROM {view}") for view in ("first_rewards", "drawn_rewards")
    ]
    assert counts == [[(24,)], [(24,)]]
