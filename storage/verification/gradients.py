"""Gradients: along the chain of updates, every group that was taken has one fate that the log bears out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from storage.log import Log
from storage.verification.account import Finding, StageRow
from storage.verification.asking import ask
from storage.verification.chain import Chain, Head
from streams.events import FATES, Update, fates_of

# A record of an older searchloop has no place for rejected groups: it counts them as failed.
WORD = """
    CASE WHEN fate IN ('rejected', 'disputed') THEN fate
        WHEN fate = 'failed' AND NOT t.chained AND d.scored >= 2 THEN 'failed, by an older searchloop' END
"""


def gradient_row(log: Log, chain: Chain, head: Head | None) -> tuple[StageRow, int, dict[str, int], list[Finding]]:
    """Return what became of the groups that the chain has taken, the most uses of one, what the log cannot tell, and
    what is wrong.

    head: None if there is no checkpoint (yet): then nothing may have been trained.
    """
    _register(log, chain, head)
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
            "version {version} took group {group_id}, which has no reward in the log",
            "SELECT t.* FROM taken t ANTI JOIN rewarded r USING (group_id) "
            "WHERE NOT EXISTS (FROM first_rewards f WHERE f.group_id = t.group_id) ORDER BY t.record_offset, group_id",
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
            "WHERE t.fate = 'trained' AND t.chained AND r.request_offset < used_up ORDER BY t.record_offset, group_id",
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
            "version {version} counted group {group_id} as {fate} without saying why",
            "SELECT t.* FROM taken t WHERE t.fate IN ('rejected', 'disputed') AND coalesce(trim(t.reason), '') = '' "
            "ORDER BY t.record_offset, group_id",
        ),
    ]


def _fates(log: Log, staleness_max: int | None) -> list[Finding]:
    """Hold each fate against the outcomes. A group is as old as its version and as its request, whichever says more."""
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


def _register(log: Log, chain: Chain, head: Head | None) -> None:
    """Make the temporary tables that the rules ask.

    taken: a row for every group of every update of the chain. rewarded: the first reward of each group, but for those
    that the learner buried as unreadable. due: those of split train below the learner's position. not_due: those beyond
    it. batch_bounds: between which offsets of the rewards each update has read. used_up: below which requests were used
    up before it.
    """
    _register_links(log, chain)
    _register_unannounced(log, head.update if head and chain.links and chain.links[0].topic is None else None)
    positions = _positions(log, chain, head)
    register(log, "positions", [(partition, offset) for partition, offset in positions.items()], "partition", "next")
    log.connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE taken AS
        SELECT topic, partition, record_offset, group_id, fate, reason, g.step, parent_step, chained,
            lineage || '-' || lpad(g.step::VARCHAR, 6, '0') AS version
        FROM update_groups g JOIN chain_places USING (topic, partition, record_offset)
        UNION ALL
        SELECT 'CURRENT', 0, 0, group_id, fate, reason, step, parent_step, chained,
            lineage || '-' || lpad(step::VARCHAR, 6, '0')
        FROM unannounced
        """
    )
    log.connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE rewarded AS
        WITH readable AS (
            SELECT topic, partition, record_offset, group_id, split, step, source_topic, source_partition,
                source_offset
            FROM rewards r WHERE topic LIKE '%.rewards' AND NOT EXISTS (
                FROM dead_letters d WHERE d.stage = 'learner' AND d.source_topic = r.topic
                AND d.source_partition = r.partition AND d.source_offset = r.record_offset)
            QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1
        ), scores AS (
            SELECT topic, partition, record_offset, count(reward) AS scored, min(reward) AS lowest,
                max(reward) AS highest
            FROM outcomes GROUP BY ALL
        )
        SELECT r.topic, r.partition, r.record_offset, r.group_id, r.split, r.step AS written_by,
            coalesce(s.scored, 0) AS scored, s.lowest, s.highest, g.source_partition AS request_partition,
            g.source_offset AS request_offset
        FROM readable r LEFT JOIN scores s USING (topic, partition, record_offset)
        LEFT JOIN (SELECT DISTINCT ON (topic, partition, record_offset) * FROM generations) g
            ON g.topic = r.source_topic AND g.partition = r.source_partition AND g.record_offset = r.source_offset
        """
    )
    train = "FROM rewarded r {} JOIN positions p USING (partition) WHERE r.split = 'train'"
    log.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE due AS SELECT r.* {train.format('')} AND record_offset < p.next"
    )
    log.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE not_due AS SELECT r.* {train.format('LEFT')} "
        "AND record_offset >= coalesce(p.next, 0)"
    )


def _positions(log: Log, chain: Chain, head: Head | None) -> Mapping[int, int]:
    """Return the offset per partition of the rewards topic below which every group has to have been taken."""
    if log.live or head is None:
        return chain.links[0].positions if chain.links else {}
    return head.positions


def _register_links(log: Log, chain: Chain) -> None:
    places = [
        (link.topic, link.partition, link.record_offset, link.parent_update_sha256 is not None)
        for link in chain.links
        if link.topic is not None
    ]
    register(log, "chain_places", places, "topic", "partition", "record_offset", "chained")
    bounds = []
    used = []
    for link, parent in zip(chain.links, [*chain.links[1:], None], strict=True):
        before = parent.positions if parent else {}
        bounds += [(link.policy.step, each, before.get(each, 0), end) for each, end in link.positions.items()]
        used += [(link.policy.step, *item) for item in (parent.requests_consumed if parent else {}).items()]
    register(log, "batch_bounds", bounds, "step", "partition", "first", "next")
    register(log, "used_up", used, "step", "partition", "used_up")


def _register_unannounced(log: Log, update: Update | None) -> None:
    """Make `unannounced`: the groups of an update that is only in its checkpoint; none for None."""
    groups: list[tuple[object, ...]] = []
    if update is not None:
        chained = isinstance(update.parent_update_sha256, str)
        made = (update.policy.lineage, update.policy.step, update.parent.step, chained)
        groups = [
            (group, fate, why or None, *made) for fate, of in fates_of(update).items() for group, why in of.items()
        ]
    register(log, "unannounced", groups, "group_id", "fate", "reason", "lineage", "step", "parent_step", "chained")


TYPES = {
    **dict.fromkeys(("topic", "group_id", "fate", "reason", "lineage"), pa.string()),
    "partition": pa.int32(),
    "chained": pa.bool_(),
}


def register(log: Log, name: str, rows: Sequence[tuple[object, ...]], *columns: str) -> None:
    """Give a query rows from Python, under a table's name; a column whose type is not named here holds integers."""
    values = list(zip(*rows, strict=True)) or [() for _ in columns]
    log.connection.register(
        name,
        pa.table(
            {
                column: pa.array(list(of), TYPES.get(column, pa.int64()))
                for column, of in zip(columns, values, strict=True)
            }
        ),
    )
