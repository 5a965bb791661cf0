"""Requests and candidates: every request below the checked end has ended, once, in one way.

A stage's checked end is an offset per partition of its input: the offset that the stage has committed, or the offset
after the last record that it answered, whichever is further. Records beyond it are waiting, and nothing is owed for
them yet.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from storage.log import Log
from storage.verification.account import Finding, Partition, StageRow
from storage.verification.asking import ask


def stage_rows(log: Log, committed: Mapping[Partition, int]) -> tuple[list[StageRow], list[Finding]]:
    """Return the fates of requests and of candidates, and the findings.

    committed: next offset per input partition of generator and environment, from their consumer groups; empty without
    Kafka. Needs the temporary tables of `gradients`.
    """
    _register_ends(log, committed)
    requests, unanswered = _requests(log)
    candidates, unjudged = _candidates(log)
    return [requests, candidates], [*unanswered, *unjudged, *_outcomes(log), *_order(log)]


def _register_ends(log: Log, committed: Mapping[Partition, int]) -> None:
    """Make the temporary table `checked_ends`: topic, partition, and the offset below which everything must have ended.

    It is not beyond the answers that the ledger has stored: a stage that is ahead of the sink owes the sink nothing.
    """
    keys = list(committed)
    log.connection.register(
        "committed_ends",
        pa.table(
            {
                "topic": pa.array([topic for topic, _ in keys], pa.string()),
                "partition": pa.array([partition for _, partition in keys], pa.int64()),
                "next_offset": pa.array([committed[key] for key in keys], pa.int64()),
            }
        ),
    )
    log.connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE checked_ends AS
        SELECT topic, partition, max(next_offset) AS next_offset FROM (
            SELECT * FROM committed_ends
            UNION ALL SELECT source_topic, source_partition, source_offset + 1 FROM generations
            UNION ALL SELECT source_topic, source_partition, source_offset + 1 FROM rewards
        ) GROUP BY topic, partition
        """
    )
    # Requests lie ready before the learner grants them, and nobody may answer those yet. The log of an older searchloop
    # has no grants.
    log.connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE granted AS
        SELECT entry.key AS partition, max(entry.value) AS next_offset
        FROM (SELECT unnest(map_entries(requests_admitted)) AS entry FROM counted_versions) GROUP BY ALL
        """
    )


LETTER = """EXISTS (
    FROM dead_letters d WHERE d.source_topic = {0}.topic AND d.source_partition = {0}.partition
    AND d.source_offset = {0}.record_offset AND d.stage = '{1}')"""


def _requests(log: Log) -> tuple[StageRow, list[Finding]]:
    log.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE checked_requests AS
        SELECT r.topic, r.partition, r.record_offset, r.request_id,
            CASE WHEN EXISTS (FROM first_generations g WHERE g.source_topic = r.topic
                    AND g.source_partition = r.partition AND g.source_offset = r.record_offset) THEN 'answered'
                WHEN {LETTER.format("r", "generator")} THEN 'dead letter'
                WHEN r.record_offset < coalesce(e.next_offset, 0) THEN 'lost'
                WHEN r.record_offset >= coalesce(w.next_offset, 0) AND EXISTS (FROM granted) THEN 'not asked'
                ELSE 'waiting' END AS fate
        FROM requests r LEFT JOIN checked_ends e USING (topic, partition) LEFT JOIN granted w USING (partition)
        WHERE r.topic LIKE '%.requests'
        """
    )
    fates = {
        row["fate"]: row["n"] for row in log.rows("SELECT fate, count(*) AS n FROM checked_requests GROUP BY fate")
    }
    lost = ask(
        log,
        "requests end",
        "request {request_id} has neither a generation nor a dead letter",
        "FROM checked_requests WHERE fate = 'lost' ORDER BY topic, partition, record_offset",
    )
    return _row("generator", "requests", fates, ("answered", "dead letter")), lost


def _candidates(log: Log) -> tuple[StageRow, list[Finding]]:
    """Count the candidates of each group's first generation.

    The candidates of a repeated generation have the same ids, and do not count.
    """
    log.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE checked_candidates AS
        SELECT g.topic, g.partition, g.record_offset, g.run, g.group_id, c.candidate,
            CASE WHEN a.outcome IN ('scored', 'failed', 'expired') THEN a.outcome
                WHEN {LETTER.format("g", "environment")} THEN 'dead letter'
                WHEN g.record_offset >= coalesce(e.next_offset, 0) THEN 'waiting'
                WHEN EXISTS (FROM refused_rewards f WHERE f.group_id = g.group_id) THEN 'refused'
                ELSE 'lost' END AS fate
        FROM first_generations g
        JOIN (SELECT topic, partition, record_offset, unnest(range(candidates)) AS candidate FROM generations) c
            USING (topic, partition, record_offset)
        LEFT JOIN (
            SELECT run, group_id, candidate, CASE WHEN t.old THEN 'expired' ELSE status END AS outcome
            FROM first_outcomes LEFT JOIN (
                SELECT group_id, bool_and(fate = 'expired') AS old FROM taken GROUP BY group_id
            ) t USING (group_id)
        ) a ON a.run = g.run AND a.group_id = g.group_id AND a.candidate = c.candidate
        LEFT JOIN checked_ends e ON e.topic = g.topic AND e.partition = g.partition
        """
    )
    fates = {
        row["fate"]: row["n"] for row in log.rows("SELECT fate, count(*) AS n FROM checked_candidates GROUP BY fate")
    }
    lost = ask(
        log,
        "one outcome a candidate",
        "candidate {group_id}:{candidate} was asked for and has no outcome",
        "FROM checked_candidates WHERE fate = 'lost' ORDER BY topic, partition, record_offset, candidate",
    )
    return _row("environment", "candidates", fates, ("scored", "failed", "expired", "refused", "dead letter")), lost


def _outcomes(log: Log) -> list[Finding]:
    """Check each outcome separately: its status, its number, and the generation that it answers."""
    return [
        *ask(
            log,
            "one outcome a candidate",
            "candidate {group_id}:{candidate} has {n} outcomes in one reward",
            "SELECT topic, partition, record_offset, group_id, candidate, count(*) AS n FROM outcomes "
            "ANTI JOIN refused_rewards USING (topic, partition, record_offset) GROUP BY ALL HAVING n > 1 ORDER BY ALL",
        ),
        *ask(
            log,
            "terminal outcomes",
            "candidate {group_id}:{candidate} is {status!r} with reward {reward}",
            "FROM outcomes ANTI JOIN refused_rewards USING (topic, partition, record_offset) "
            "WHERE NOT ((status = 'scored' AND reward IS NOT NULL AND isfinite(reward)) "
            "OR (status = 'failed' AND reward IS NULL)) "
            "ORDER BY topic, partition, record_offset, candidate",
        ),
        *ask(
            log,
            "rewards answer generations",
            "the reward of group {group_id} answers {source_topic}[{source_partition}]@{source_offset}, where the "
            "ledger has no generation of this group",
            # Exclude records that the sink has not reached yet or could not decode.
            """
            SELECT r.* FROM rewards r ANTI JOIN refused_rewards USING (topic, partition, record_offset)
            JOIN sink_offsets o ON o.topic = r.source_topic AND o.partition = r.source_partition
            WHERE r.topic LIKE '%.rewards' AND r.source_offset < o.next_offset
            AND NOT EXISTS (FROM generations g WHERE g.topic = r.source_topic AND g.partition = r.source_partition
                AND g.record_offset = r.source_offset AND g.group_id = r.group_id)
            AND NOT EXISTS (FROM dead_letters d WHERE d.source_topic = r.source_topic
                AND d.source_partition = r.source_partition AND d.source_offset = r.source_offset)
            ORDER BY r.topic, r.partition, r.record_offset
            """,
        ),
        *ask(
            log,
            "one row a candidate",
            "{candidates} candidates were written, {n} of them have a row",
            """
            SELECT g.topic, g.partition, g.record_offset, g.candidates, count(c.candidate) AS n
            FROM generations g LEFT JOIN candidates c USING (topic, partition, record_offset)
            GROUP BY ALL HAVING n <> g.candidates ORDER BY ALL
            """,
        ),
    ]


def _order(log: Log) -> list[Finding]:
    """Check that the first reward of a group in the log, which the learner takes, answers its first generation."""
    return ask(
        log,
        "first in the log wins",
        "group {group_id}: this reward came first, but answers the generation at offset {source_offset}, although one "
        "at {lowest} was rewarded too",
        """
        SELECT *, min(source_offset) OVER (PARTITION BY run, group_id) AS lowest FROM rewards
        WHERE topic LIKE '%.rewards'
        QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY record_offset) = 1 AND source_offset > lowest
        ORDER BY topic, partition, record_offset
        """,
    )


def _row(stage: str, unit: str, fates: dict[str, int], terminal: tuple[str, ...]) -> StageRow:
    waiting, not_asked = fates.get("waiting", 0), fates.get("not asked", 0)
    ended = {fate: fates.get(fate, 0) for fate in terminal}
    taken = sum(fates.values()) - waiting - not_asked
    return StageRow(
        stage=stage,
        unit=unit,
        taken=taken,
        fates=ended,
        waiting=waiting,
        residual=taken - sum(ended.values()),
        not_asked=not_asked,
    )
