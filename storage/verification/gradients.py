"""Gradients: along the chain of updates, every group that was taken has one fate, and the log confirms it."""

from __future__ import annotations

from storage.log import Log
from storage.verification.account import Finding, StageRow
from storage.verification.asking import ask
from storage.verification.chain import Chain, Head
from storage.verification.taken import register_taken
from streams.events import FATES

# A record of an older searchloop has no field for rejected groups: it counts them as failed.
WORD = """
    CASE WHEN fate IN ('rejected', 'disputed') THEN fate
        WHEN fate = 'failed' AND NOT t.chained AND d.scored >= 2 THEN 'failed, by an older searchloop' END
"""


def gradient_row(log: Log, chain: Chain, head: Head | None) -> tuple[StageRow, int, dict[str, int], list[Finding]]:
    """Return the gradient account: fates, most uses, unchecked claims and findings.

    They are the fates of the groups that the chain has taken, the most uses of one group, the claims that the log
    cannot check, and the findings. head: None if there is no checkpoint (yet): then no group may have been trained.
    """
    register_taken(log, chain, head)
    limit = head.staleness_max if head is not None else None
    findings = [*_once(log), *_owed(log), *_used_up(log), *_fates(log, limit)]
    (counts,) = log.rows(
        f"""
        WITH fates AS (
            SELECT d.group_id, CASE WHEN count(t.fate) = 0 THEN 'forgotten'
                ELSE coalesce(min(t.fate) FILTER (t.fate <> 'expired'), 'expired') END AS fate
            FROM due d LEFT JOIN taken t USING (group_id) GROUP BY d.group_id
        )
        SELECT count(*) AS n, {", ".join(f"count(*) FILTER (fate = '{fate}') AS {fate}" for fate in FATES)},
            (SELECT count(*) FROM not_due) AS waiting FROM fates
        """
    )
    (uses,) = log.rows(
        "SELECT coalesce(max(n), 0) AS uses FROM "
        "(SELECT count(*) AS n FROM taken WHERE fate = 'trained' GROUP BY group_id)"
    )
    words = log.rows(
        f"SELECT {WORD} AS word, count(*) AS n FROM taken t JOIN due d USING (group_id) GROUP BY 1 "
        "HAVING word IS NOT NULL"
    )
    fates = {fate: counts[fate] for fate in FATES}
    row = StageRow(
        stage="learner",
        unit="groups",
        taken=counts["n"],
        fates=fates,
        waiting=counts["waiting"],
        residual=counts["n"] - sum(fates.values()),
    )
    return row, uses["uses"], {row["word"]: row["n"] for row in words}, findings


def _once(log: Log) -> list[Finding]:
    return [
        *ask(
            log,
            "at most one gradient",
            "group {group_id} was taken {n} times along the surviving lineage, {uses} times for a gradient: by "
            "{versions}",
            """
            SELECT any_value(topic) AS topic, any_value(partition) AS partition, max(record_offset) AS record_offset,
                group_id, count(*) AS n, count(*) FILTER (fate = 'trained') AS uses,
                string_agg(version || ' (' || fate || ')', ', ' ORDER BY step) AS versions
            FROM taken GROUP BY group_id
            HAVING uses > 1 OR count(*) FILTER (fate <> 'expired') > 1 ORDER BY group_id
            """,
        ),
        *ask(
            log,
            "gradients come from rewards",
            "version {version} took group {group_id}, which has no reward in the log that a learner can use",
            "SELECT t.* FROM taken t ANTI JOIN rewarded r USING (group_id) "
            "WHERE t.fate <> 'rejected' OR NOT EXISTS (FROM first_rewards f WHERE f.group_id = t.group_id) "
            "ORDER BY t.record_offset, group_id",
        ),
    ]


def _owed(log: Log) -> list[Finding]:
    return [
        *ask(
            log,
            "every group taken",
            "group {group_id} lies below the learner's position, but no update of the surviving lineage took it",
            "SELECT d.* FROM due d ANTI JOIN taken t USING (group_id) ORDER BY d.topic, d.partition, d.record_offset",
        ),
        *ask(
            log,
            "positions cover what was taken",
            "version {version} took group {group_id}, whose reward lies at {reward_topic}[{reward_partition}]"
            "@{reward_offset}; it has read from {first} up to {next}",
            """
            SELECT t.*, r.topic AS reward_topic, r.partition AS reward_partition, r.record_offset AS reward_offset,
                coalesce(b.first, 0) AS first, coalesce(b.next, 0) AS next
            FROM taken t JOIN rewarded r USING (group_id)
            LEFT JOIN batch_bounds b ON b.step = t.step AND b.partition = r.partition
            WHERE t.fate <> 'expired' AND NOT (r.record_offset >= coalesce(b.first, 0)
                AND r.record_offset < coalesce(b.next, 0))
            ORDER BY t.record_offset, group_id
            """,
        ),
    ]


def _used_up(log: Log) -> list[Finding]:
    return [
        *ask(
            log,
            "used up is used up",
            "version {version} trained group {group_id}, whose request lies at {request_partition}@{request_offset}; "
            "up to {used_up} they were used up before",
            "SELECT t.*, r.request_partition, r.request_offset, used_up FROM taken t JOIN rewarded r USING (group_id) "
            "JOIN used_up u ON u.step = t.step AND u.partition = r.request_partition "
            "WHERE t.fate = 'trained' AND t.chained AND r.request_offset < used_up "
            "AND NOT EXISTS (FROM resent s WHERE s.group_id = t.group_id) ORDER BY t.record_offset, group_id",
        ),
        *ask(
            log,
            "nothing that must be refused trains",
            "version {version} counted group {group_id} as {fate}, which must be refused: {refusal}",
            "SELECT t.*, d.refusal FROM taken t JOIN rewarded r USING (group_id) JOIN digests d ON d.topic = r.topic "
            "AND d.partition = r.partition AND d.record_offset = r.record_offset WHERE t.chained "
            "AND t.fate IN ('trained', 'flat', 'disputed') AND d.refusal IS NOT NULL "
            "ORDER BY t.record_offset, group_id",
        ),
        *ask(
            log,
            "only train trains",
            "version {version} counted group {group_id} of split {split!r} as {fate}",
            "SELECT t.*, r.split FROM taken t JOIN rewarded r USING (group_id) WHERE r.split IS DISTINCT FROM 'train' "
            "ORDER BY t.record_offset, group_id",
        ),
        *ask(
            log,
            "reasons are given",
            "version {version} counted group {group_id} as {fate} without a reason",
            "SELECT t.* FROM taken t WHERE t.fate IN ('rejected', 'disputed') AND coalesce(trim(t.reason), '') = '' "
            "ORDER BY t.record_offset, group_id",
        ),
    ]


def _fates(log: Log, staleness_max: int | None) -> list[Finding]:
    """Check each fate against the outcomes.

    A group's age is the age of its version or of its request, whichever is greater.
    """
    limit = 2**40 if staleness_max is None else staleness_max
    known = "TRUE" if staleness_max is not None else "FALSE"
    return ask(
        log,
        "fates follow from the log",
        "version {version} counted group {group_id} as {fate}, but it has {scored} scored candidates, rewards from "
        "{lowest} to {highest}, and was {lag} versions old (at most "
        f"{'?' if staleness_max is None else staleness_max} are allowed)",
        f"""
        SELECT t.*, d.scored, d.lowest, d.highest, t.parent_step - d.written_by AS lag
        FROM taken t JOIN due d USING (group_id)
        LEFT JOIN used_up u ON u.step = t.step AND u.partition = d.request_partition
        WHERE (t.fate = 'trained' AND (d.scored < 2 OR d.lowest = d.highest OR lag > {limit} OR lag < 0))
            OR (t.fate = 'flat' AND (d.scored < 2 OR d.lowest <> d.highest))
            OR (t.fate = 'failed' AND t.chained AND d.scored >= 2)
            OR (t.fate = 'expired' AND {known} AND lag <= {limit} AND d.request_offset >= coalesce(u.used_up, 0)
                AND NOT EXISTS (FROM taken o WHERE o.group_id = t.group_id AND o.fate <> 'expired'))
        ORDER BY t.record_offset, group_id
        """,
    )
