"""Impressions and outcomes: each impression has one final outcome; an action counts at most once, or has a reason."""

from __future__ import annotations

from collections.abc import Mapping

from storage.log import Log
from storage.verification.account import Finding
from storage.verification.asking import ask

RULE = "one outcome an impression"

_COUNTED = """
    SELECT topic, partition, record_offset, run, impression_id, shown, unnest(actions, recursive := true)
    FROM final_outcomes
"""


def join_findings(log: Log, joined: Mapping[tuple[str, int], int] | None) -> list[Finding]:
    """Return the findings about impressions, actions and outcomes.

    joined: the joiner's next offset by topic and partition; None if it is not known, and then nobody can tell whether
    an impression without an outcome is lost or still to be read.
    """
    return [*_outcomes(log), *_actions(log), *(_lost(log, joined) if joined is not None else [])]


def _outcomes(log: Log) -> list[Finding]:
    return [
        *ask(
            log,
            RULE,
            "impression {impression_id} has {n} different final outcomes",
            """
            SELECT topic, partition, max(record_offset) AS record_offset, impression_id,
                count(DISTINCT row(query_id, query, shown, at_ms, policy, action_propensity, actions, bot)) AS n
            FROM impression_outcomes WHERE final GROUP BY topic, partition, run, impression_id
            HAVING n > 1 ORDER BY ALL
            """,
        ),
        *ask(
            log,
            RULE,
            "the outcome of impression {impression_id} differs from every record of that impression",
            """
            SELECT o.topic, o.partition, o.record_offset, o.impression_id FROM final_outcomes o ANTI JOIN impressions i
            ON o.run = i.run AND o.impression_id = i.impression_id AND o.at_ms = i.at_ms AND o.query = i.query
                AND o.policy = i.policy AND o.action_propensity IS NOT DISTINCT FROM i.action_propensity
                AND o.shown = i.shown
            ORDER BY ALL
            """,
        ),
    ]


def _actions(log: Log) -> list[Finding]:
    return [
        *ask(
            log,
            "an action counts once",
            "action {action_id} counts for {n} impressions",
            f"""
            SELECT max(topic) AS topic, max(partition) AS partition, max(record_offset) AS record_offset, action_id,
                count(*) AS n
            FROM ({_COUNTED}) GROUP BY run, action_id HAVING n > 1 ORDER BY ALL
            """,
        ),
        *ask(
            log,
            "an action counts once",
            "action {action_id} counts for impression {impression_id}, but no record holds it so",
            f"""
            SELECT c.topic, c.partition, c.record_offset, c.action_id, c.impression_id FROM ({_COUNTED}) c
            ANTI JOIN user_actions a ON c.run = a.run AND c.action_id = a.action_id AND c.kind = a.kind
                AND c.impression_id = a.impression_id AND c.document_id = a.document_id AND c.at_ms = a.at_ms
            ORDER BY ALL
            """,
        ),
        *ask(
            log,
            "an action counts once",
            "action {action_id} counts, but its impression did not show document {document_id}",
            f"""
            SELECT topic, partition, record_offset, action_id, document_id FROM ({_COUNTED})
            WHERE NOT list_contains(list_transform(shown, lambda s: s.document_id), document_id) ORDER BY ALL
            """,
        ),
        *ask(
            log,
            "an action counts once",
            "action {action_id} counts, and is a dead letter of the joiner, too",
            f"""
            SELECT DISTINCT d.topic, d.partition, d.record_offset, c.action_id FROM ({_COUNTED}) c
            JOIN user_actions a ON c.run = a.run AND c.action_id = a.action_id
            JOIN dead_letters d ON d.stage = 'joiner' AND d.source_topic = a.topic
                AND d.source_partition = a.partition AND d.source_offset = a.record_offset
            ORDER BY ALL
            """,
        ),
    ]


def _lost(log: Log, joined: Mapping[tuple[str, int], int]) -> list[Finding]:
    """Find impressions that the joiner has read, whose window has ended, and that have neither outcome nor reason."""
    read = ", ".join(f"('{topic}', {partition}, {offset})" for (topic, partition), offset in joined.items())
    if not read:
        return []
    return ask(
        log,
        RULE,
        "impression {impression_id} has been read, and its window has ended, but it has no final outcome",
        f"""
        WITH read AS (SELECT * FROM (VALUES {read}) AS r(topic, partition, next_offset)),
        ended AS (
            SELECT run, max(made_at_ms) AS at_ms, min(made_at_ms - at_ms) AS window_ms FROM final_outcomes GROUP BY run
        )
        SELECT i.topic, i.partition, i.record_offset, i.impression_id FROM first_impressions i
        JOIN read r ON i.topic = r.topic AND i.partition = r.partition AND i.record_offset < r.next_offset
        JOIN ended e ON i.run = e.run AND i.at_ms + e.window_ms < e.at_ms
        ANTI JOIN final_outcomes o ON i.run = o.run AND i.impression_id = o.impression_id
        ANTI JOIN dead_letters d ON d.stage = 'joiner' AND d.source_topic = i.topic
            AND d.source_partition = i.partition AND d.source_offset = i.record_offset
        ORDER BY ALL
        """,
    )
