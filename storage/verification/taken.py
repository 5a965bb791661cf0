"""The groups that the chain of updates took, and those in the log: temporary tables for the rules about gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from storage.log import Log
from storage.verification.chain import Chain, Head
from streams.events import Update, fates_of

# A record that somebody else wrote into the topics and that a worker refused breaks no rule; our workers write no such
# record.
REFUSED_REWARDS = """
    CREATE OR REPLACE TEMP TABLE refused_rewards AS
    SELECT DISTINCT r.topic, r.partition, r.record_offset, r.group_id, r.source_topic, r.source_partition,
        r.source_offset
    FROM rewards r WHERE EXISTS (FROM taken t WHERE t.group_id = r.group_id AND t.fate = 'rejected')
    OR EXISTS (FROM dead_letters d WHERE d.stage = 'learner' AND d.source_topic = r.topic
        AND d.source_partition = r.partition AND d.source_offset = r.record_offset)
"""
REFUSED_GENERATIONS = """
    CREATE OR REPLACE TEMP TABLE refused_generations AS
    SELECT source_topic AS topic, source_partition::INTEGER AS partition, source_offset AS record_offset
    FROM refused_rewards
    UNION SELECT source_topic, source_partition, source_offset FROM dead_letters WHERE stage = 'environment'
    UNION SELECT g.topic, g.partition, g.record_offset FROM generations g
        WHERE EXISTS (FROM taken t WHERE t.group_id = g.group_id AND t.fate = 'rejected')
"""


# A generation or reward that a worker gave up on and that was resent comes after its request was given up.
RESENT = """
    CREATE OR REPLACE TEMP TABLE resent AS
    SELECT g.group_id FROM generations g JOIN dead_letters d ON d.stage = 'environment' AND d.source_topic = g.topic
        AND d.source_partition = g.partition AND d.source_offset = g.record_offset
    UNION SELECT r.group_id FROM rewards r JOIN dead_letters d ON d.stage = 'learner' AND d.source_topic = r.topic
        AND d.source_partition = r.partition AND d.source_offset = r.record_offset
"""


def register_taken(log: Log, chain: Chain, head: Head | None) -> None:
    """Make the temporary tables that the rules query.

    taken: a row for every group of every update of the chain. rewarded: the first reward of each group, except those
    that the learner buried as unreadable. due: those of split train below the learner's position. not_due: those beyond
    it. batch_bounds: the offsets of the rewards between which each update has read. used_up: the offsets below which
    requests were used up before each update.
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
    log.connection.execute(RESENT)
    log.connection.execute(REFUSED_REWARDS)
    log.connection.execute(REFUSED_GENERATIONS)
    train = "FROM rewarded r {} JOIN positions p USING (partition) WHERE r.split = 'train'"
    log.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE due AS SELECT r.* {train.format('')} AND record_offset < p.next"
    )
    log.connection.execute(
        f"CREATE OR REPLACE TEMP TABLE not_due AS SELECT r.* {train.format('LEFT')} "
        "AND record_offset >= coalesce(p.next, 0)"
    )


def _positions(log: Log, chain: Chain, head: Head | None) -> Mapping[int, int]:
    """Return the offset per partition of the rewards topic below which every group must have been taken."""
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
    for link, parent in zip(chain.links, [*chain.links[1:], None], strict=False):
        before = parent.positions if parent else {}
        bounds += [(link.policy.step, each, before.get(each, 0), end) for each, end in link.positions.items()]
        used += [(link.policy.step, *item) for item in (parent.requests_consumed if parent else {}).items()]
    register(log, "batch_bounds", bounds, "step", "partition", "first", "next")
    register(log, "used_up", used, "step", "partition", "used_up")


def _register_unannounced(log: Log, update: Update | None) -> None:
    """Make `unannounced`: the groups of an update that is only in its checkpoint; no groups for None."""
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
    """Make rows from Python available to queries under a table's name.

    Columns whose type is not named here hold integers.
    """
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
