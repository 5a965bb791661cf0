"""Embedded records: a generation's request, and a reward's generation, equal the records at their sources.

The ledger's rows show differences in ids, texts and versions; the records' own hashes show all others.
"""

from __future__ import annotations

from storage.log import Log
from storage.verification.account import Finding
from storage.verification.asking import ask

RULE = "embedded is what was written"
REWARDS = "(FROM rewards ANTI JOIN refused_rewards USING (topic, partition, record_offset))"
GENERATIONS = "(FROM generations ANTI JOIN refused_generations USING (topic, partition, record_offset))"
REWARDED = "g.topic = r.source_topic AND g.partition = r.source_partition AND g.record_offset = r.source_offset"
ASKED = "q.topic = g.source_topic AND q.partition = g.source_partition AND q.record_offset = g.source_offset"


def embedded_findings(log: Log) -> list[Finding]:
    """Return the records whose embedded part differs from its source; records that a worker refused are left out.

    Needs the tables `digests`, `refused_rewards` and `refused_generations`.
    """
    return [*_by_rows(log), *_by_bytes(log)]


def _differing(left: str, right: str, columns: tuple[str, ...]) -> str:
    return " OR ".join(f"{left}.{name} IS DISTINCT FROM {right}.{name}" for name in columns)


def _by_rows(log: Log) -> list[Finding]:
    request = ("request_id", "query_id", "query", "split")
    return [
        *ask(
            log,
            RULE,
            "the generation of group {group_id} holds another request ({ours!r}, split {split!r}) than "
            "{source_topic}[{source_partition}]@{source_offset} ({theirs!r})",
            f"""
            SELECT g.topic, g.partition, g.record_offset, g.group_id, g.request_id AS ours, g.split, g.source_topic,
                g.source_partition, g.source_offset, q.request_id AS theirs
            FROM {GENERATIONS} g JOIN requests q ON {ASKED}
            WHERE {_differing("g", "q", (*request, "index"))} ORDER BY g.topic, g.partition, g.record_offset
            """,
        ),
        *ask(
            log,
            RULE,
            "the reward of group {group_id} holds a generation of another request, split or version than "
            "{source_topic}[{source_partition}]@{source_offset}",
            f"""
            SELECT r.topic, r.partition, r.record_offset, r.group_id, r.source_topic, r.source_partition,
                r.source_offset
            FROM {REWARDS} r JOIN generations g ON {REWARDED}
            WHERE {_differing("r", "g", (*request, "lineage", "step", "weights_sha256"))}
            ORDER BY r.topic, r.partition, r.record_offset
            """,
        ),
        *ask(
            log,
            RULE,
            "candidate {group_id}:{candidate} was rewarded for another text than the policy wrote",
            f"""
            SELECT o.topic, o.partition, o.record_offset, o.group_id, o.candidate
            FROM outcomes o JOIN {REWARDS} r USING (topic, partition, record_offset)
            JOIN candidates c ON c.topic = r.source_topic AND c.partition = r.source_partition
                AND c.record_offset = r.source_offset AND c.candidate = o.candidate
            WHERE o.text IS DISTINCT FROM c.text ORDER BY o.topic, o.partition, o.record_offset, o.candidate
            """,
        ),
        *ask(
            log,
            "one row a candidate",
            "the reward of group {group_id} has {n} outcomes for {candidates} candidates",
            f"""
            SELECT r.topic, r.partition, r.record_offset, r.group_id, g.candidates, count(o.candidate) AS n
            FROM {REWARDS} r JOIN generations g ON {REWARDED}
            LEFT JOIN outcomes o ON o.topic = r.topic AND o.partition = r.partition
                AND o.record_offset = r.record_offset
            WHERE r.topic LIKE '%.rewards'
            GROUP BY r.topic, r.partition, r.record_offset, r.group_id, g.candidates HAVING n <> g.candidates
            ORDER BY r.topic, r.partition, r.record_offset
            """,
        ),
    ]


def _by_bytes(log: Log) -> list[Finding]:
    """Compare the hashes of the records that were read; a record whose source was not read is left out."""
    return [
        *ask(
            log,
            RULE,
            "the generation of group {group_id} holds another request than lies at "
            "{source_topic}[{source_partition}]@{source_offset}",
            f"""
            SELECT g.topic, g.partition, g.record_offset, g.group_id, g.source_topic, g.source_partition,
                g.source_offset
            FROM {GENERATIONS} g JOIN digests d USING (topic, partition, record_offset) JOIN digests q ON {ASKED}
            WHERE d.inner_sha256 IS DISTINCT FROM q.event_sha256 ORDER BY g.topic, g.partition, g.record_offset
            """,
        ),
        *ask(
            log,
            RULE,
            "the reward of group {group_id} holds another generation than lies at "
            "{source_topic}[{source_partition}]@{source_offset}",
            f"""
            SELECT r.topic, r.partition, r.record_offset, r.group_id, r.source_topic, r.source_partition,
                r.source_offset
            FROM {REWARDS} r JOIN digests d USING (topic, partition, record_offset) JOIN digests g ON {REWARDED}
            WHERE d.inner_sha256 IS DISTINCT FROM g.event_sha256 ORDER BY r.topic, r.partition, r.record_offset
            """,
        ),
        # If a record is too large for a letter, the letter has none of its bytes (`streams.delivery.Outbox.bury`).
        *ask(
            log,
            RULE,
            "the dead letter of stage {stage} holds other bytes than lie at {source_topic}[{source_partition}]"
            "@{source_offset}",
            """
            SELECT l.topic, l.partition, l.record_offset, l.stage, l.source_topic, l.source_partition, l.source_offset
            FROM dead_letters l JOIN digests q ON q.topic = l.source_topic AND q.partition = l.source_partition
                AND q.record_offset = l.source_offset
            WHERE sha256(l.value) <> q.sha256 ORDER BY l.topic, l.partition, l.record_offset
            """,
        ),
        *ask(
            log,
            "rewards answer generations",
            "the reward of group {group_id} answers other bytes (sha256 {content_sha256}) than {source_topic}"
            "[{source_partition}]@{source_offset} holds ({sha256})",
            f"""
            SELECT r.topic, r.partition, r.record_offset, r.group_id, r.content_sha256, r.source_topic,
                r.source_partition, r.source_offset, g.sha256
            FROM {REWARDS} r JOIN digests g ON {REWARDED}
            WHERE g.sha256 <> r.content_sha256 ORDER BY r.topic, r.partition, r.record_offset
            """,
        ),
    ]
