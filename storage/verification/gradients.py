"""Gradients: along the chain of checkpoints that survived, every group that was taken has one fate, and one gradient.

The chain begins at the version that CURRENT names and goes from parent to parent down to the warmed-up policy. What a
killed learner had done beyond its checkpoint is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pyarrow as pa

from storage.log import Log
from storage.verification.account import Finding, StageRow, place
from storage.verification.stages import ask
from streams.events import PolicyRef, Update
from streams.topics import version_name

FATES = ("trained", "flat", "expired", "failed")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the newest checkpoint says: its version, the update that made it, and how far its learner has read.

    positions: next offset per partition of the rewards topic. staleness_max: the run's limit, in versions.
    origins: versions that no update of this run made, such as the one that a replay began with.
    """

    policy: PolicyRef
    update: Update | None
    positions: dict[int, int]
    staleness_max: int
    origins: tuple[PolicyRef, ...] = ()


def gradient_row(log: Log, run: str, head: Head | None) -> tuple[StageRow, int, list[Finding]]:
    """Return what became of the groups that the surviving chain has taken, the most uses of one, and what is wrong.

    head: None if there is no checkpoint (yet): then nothing may have been trained.
    """
    chain, findings = _chain(log, head)
    _register(log, chain, _positions(log, run, head, chain), head)
    twice = ask(
        log,
        "at most one gradient",
        "group {group_id} was taken {n} times along the surviving lineage, {uses} times for a gradient: by {versions}",
        """
        SELECT any_value(topic) AS topic, any_value(partition) AS partition, max(record_offset) AS record_offset,
            group_id, count(*) AS n, count(*) FILTER (fate = 'trained') AS uses,
            string_agg(version || ' (' || fate || ')', ', ' ORDER BY step) AS versions
        FROM taken GROUP BY group_id
        HAVING uses > 1 OR count(*) FILTER (fate <> 'expired') > 1 ORDER BY group_id
        """,
    )
    strangers = ask(
        log,
        "gradients come from rewards",
        "version {version} took group {group_id}, which has no reward in the log",
        "SELECT t.* FROM taken t LEFT JOIN due d USING (group_id) WHERE d.group_id IS NULL "
        "AND NOT EXISTS (FROM first_rewards r WHERE r.group_id = t.group_id) ORDER BY t.record_offset, group_id",
    )
    forgotten = ask(
        log,
        "every group taken",
        "group {group_id} lies below the learner's position, but no update of the surviving lineage took it",
        "SELECT d.* FROM due d LEFT JOIN taken t USING (group_id) WHERE t.group_id IS NULL "
        "ORDER BY d.topic, d.partition, d.record_offset",
    )
    wrong = ask(
        log,
        "fates follow from the log",
        "version {version} counted group {group_id} as {fate}, but it has {scored} scored candidates, rewards from "
        "{lowest} to {highest}, and was {lag} versions old (at most {staleness_max} are allowed)",
        """
        SELECT t.*, d.scored, d.lowest, d.highest, t.parent_step - d.written_by AS lag, d.staleness_max
        FROM taken t JOIN due d USING (group_id)
        WHERE (t.fate = 'trained' AND (d.scored < 2 OR d.lowest = d.highest OR lag > d.staleness_max))
            OR (t.fate = 'flat' AND d.lowest <> d.highest)
            OR (t.fate = 'expired' AND lag <= d.staleness_max
                AND NOT EXISTS (FROM taken u WHERE u.group_id = t.group_id AND u.fate <> 'expired'))
        ORDER BY t.record_offset, group_id
        """,
    )
    (counts,) = log.rows(
        """
        WITH fates AS (
            SELECT d.group_id, CASE WHEN count(t.fate) = 0 THEN 'forgotten'
                ELSE coalesce(min(t.fate) FILTER (t.fate <> 'expired'), 'expired') END AS fate,
                count(*) FILTER (t.fate = 'trained') AS uses
            FROM due d LEFT JOIN taken t USING (group_id) GROUP BY d.group_id
        )
        SELECT count(*) AS n, coalesce(max(uses), 0) AS uses, count(*) FILTER (fate = 'trained') AS trained,
            count(*) FILTER (fate = 'flat') AS flat, count(*) FILTER (fate = 'expired') AS expired,
            count(*) FILTER (fate = 'failed') AS failed, (SELECT count(*) FROM not_due) AS waiting
        FROM fates
        """
    )
    (uses,) = log.rows(
        "SELECT coalesce(max(n), 0) AS uses FROM "
        "(SELECT count(*) AS n FROM taken WHERE fate = 'trained' GROUP BY group_id)"
    )
    row = StageRow(
        stage="learner",
        unit="groups",
        taken=counts["n"],
        fates={fate: counts[fate] for fate in FATES},
        waiting=counts["waiting"],
        residual=counts["n"] - sum(counts[fate] for fate in FATES),
    )
    return row, uses["uses"], [*findings, *twice, *strangers, *forgotten, *wrong]


def _chain(log: Log, head: Head | None) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Return the surviving updates, newest first, each with its place in the log; and where the chain breaks."""
    once = {
        (row["lineage"], row["step"], row["weights_sha256"]): row
        for row in log.rows("SELECT * FROM updates WHERE topic LIKE '%.updates' ORDER BY record_offset DESC")
    }
    policy = head.policy if head else None
    if log.live or head is None:
        # The archive ends before the checkpoint: the newest update that it has stands for CURRENT.
        newest = max(once.values(), key=lambda row: row["record_offset"], default=None)
        policy = _ref(newest) if newest else policy
        if head is None and newest is not None:
            what = f"{version_name(policy)} was announced, but there is no whole checkpoint"
            return [], [Finding(rule="lineage", where=_place(newest), what=what)]
    chain: list[dict[str, Any]] = []
    origins = head.origins if head else ()
    while policy is not None and policy.step > 0 and policy not in origins:
        row = once.get((policy.lineage, policy.step, policy.sha256))
        if row is None and head is not None and head.update is not None and policy == head.policy:
            # The learner died between the checkpoint and its announcement, which its next life repeats.
            row = _as_row(head.update)
        if row is None:
            where = _place(chain[-1]) if chain else "CURRENT"
            what = f"stands on {version_name(policy)}, of which the log has no update with these weights"
            return chain, [Finding(rule="lineage", where=where, what=what)]
        chain.append(row)
        parent = PolicyRef(lineage=row["parent_lineage"], step=row["parent_step"], sha256=row["parent_sha256"])
        if parent.step != policy.step - 1:
            what = f"{version_name(policy)} has {version_name(parent)} as its parent"
            return chain, [Finding(rule="lineage", where=_place(row), what=what)]
        policy = parent
    return chain, []


def _positions(log: Log, run: str, head: Head | None, chain: list[dict[str, Any]]) -> dict[int, int]:
    """Return the offset per partition of the rewards topic below which every group has to have been taken."""
    if log.live or head is None:
        return dict(chain[0]["positions"]) if chain else {}
    return head.positions


def _register(log: Log, chain: list[dict[str, Any]], positions: Mapping[int, int], head: Head | None) -> None:
    """Make the temporary tables `taken`, `due` and `not_due`.

    taken: a row for every group of every update of the chain. due: the first reward of each training group below the
    learner's position, but for those that it buried as unreadable. not_due: those beyond it.
    """
    stored = [row for row in chain if row["record_offset"] is not None]
    log.connection.register(
        "chain_places",
        pa.table(
            {
                "topic": pa.array([row["topic"] for row in stored], pa.string()),
                "partition": pa.array([row["partition"] for row in stored], pa.int32()),
                "record_offset": pa.array([row["record_offset"] for row in stored], pa.int64()),
            }
        ),
    )
    unannounced = [
        (group, fate, row) for row in chain if row["record_offset"] is None for fate in FATES for group in row[fate]
    ]
    log.connection.register(
        "unannounced",
        pa.table(
            {
                "group_id": pa.array([group for group, _, _ in unannounced], pa.string()),
                "fate": pa.array([fate for _, fate, _ in unannounced], pa.string()),
                "lineage": pa.array([row["lineage"] for _, _, row in unannounced], pa.string()),
                "step": pa.array([row["step"] for _, _, row in unannounced], pa.int64()),
                "parent_step": pa.array([row["parent_step"] for _, _, row in unannounced], pa.int64()),
            }
        ),
    )
    log.connection.register(
        "positions",
        pa.table(
            {
                "partition": pa.array(list(positions), pa.int32()),
                "next_offset": pa.array(list(positions.values()), pa.int64()),
            }
        ),
    )
    limit = head.staleness_max if head else 0
    log.connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE taken AS
        SELECT topic, partition, record_offset, group_id, fate, step, parent_step,
            lineage || '-' || lpad(step::VARCHAR, 6, '0') AS version
        FROM update_groups JOIN chain_places USING (topic, partition, record_offset)
        UNION ALL
        SELECT 'CURRENT', 0, 0, group_id, fate, step, parent_step, lineage || '-' || lpad(step::VARCHAR, 6, '0')
        FROM unannounced
        """
    )
    log.connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE rewarded AS
        WITH readable AS (
            SELECT * FROM rewards r WHERE topic LIKE '%.rewards' AND NOT EXISTS (
                FROM dead_letters d WHERE d.stage = 'learner' AND d.source_topic = r.topic
                AND d.source_partition = r.partition AND d.source_offset = r.record_offset)
            QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1
        )
        SELECT r.topic, r.partition, r.record_offset, r.group_id, r.step AS written_by, count(o.reward) AS scored,
            min(o.reward) AS lowest, max(o.reward) AS highest
        FROM readable r LEFT JOIN outcomes o USING (topic, partition, record_offset)
        WHERE r.split = 'train' GROUP BY ALL
        """
    )
    log.connection.execute(
        "CREATE OR REPLACE TEMP TABLE due AS SELECT r.*, $1::BIGINT AS staleness_max FROM rewarded r "
        "JOIN positions p USING (partition) WHERE record_offset < p.next_offset",
        [limit],
    )
    log.connection.execute(
        "CREATE OR REPLACE TEMP TABLE not_due AS SELECT r.* FROM rewarded r LEFT JOIN positions p USING (partition) "
        "WHERE record_offset >= coalesce(p.next_offset, 0)"
    )


def _ref(row: dict[str, Any]) -> PolicyRef:
    return PolicyRef(lineage=row["lineage"], step=row["step"], sha256=row["weights_sha256"])


def _as_row(update: Update) -> dict[str, Any]:
    return {
        "topic": None,
        "partition": None,
        "record_offset": None,
        "lineage": update.policy.lineage,
        "step": update.policy.step,
        "weights_sha256": update.policy.sha256,
        "parent_lineage": update.parent.lineage,
        "parent_step": update.parent.step,
        "parent_sha256": update.parent.sha256,
        "positions": update.positions,
        **{fate: getattr(update, fate) for fate in FATES},
    }


def _place(row: dict[str, Any]) -> str:
    if row["record_offset"] is None:
        return "CURRENT"
    return place(row["topic"], row["partition"], row["record_offset"])
