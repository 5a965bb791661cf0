"""Names: ids are computed from places, sources are in the log, and every named version was announced."""

from __future__ import annotations

from storage.log import Log
from storage.verification.account import Finding
from storage.verification.asking import ask
from streams.ids import NAMESPACE

# The run that owns the topic: topics are named `<run>.<kind>`.
OF_THIS_RUN = "g.source_topic = regexp_replace(g.topic, '[.]generations$', '.requests')"

COUNTING = "(FROM generations ANTI JOIN refused_generations USING (topic, partition, record_offset))"

# uuid5, RFC 9562: sha1 of namespace and name, with its version and variant bits set, as in `streams.ids.group_id`.
GROUP_ID = f"""
    (WITH h AS (SELECT sha1(unhex('{NAMESPACE.hex}') || encode(
        {{run}} || '/' || g.source_topic || '/' || g.source_partition || '/' || g.source_offset)) AS x)
    SELECT x[1:8] || '-' || x[9:12] || '-5' || x[14:16] || '-'
        || substr('89ab', (strpos('0123456789abcdef', x[17]) - 1) % 4 + 1, 1) || x[18:20] || '-' || x[21:32] FROM h)
"""


def identity_findings(log: Log) -> list[Finding]:
    """Return the findings about the names in generations, rewards and updates.

    Records that a worker refused are left out. Needs the tables `digests` and `refused_generations`.
    """
    return [*_group_ids(log), *_sources(log), *_versions(log), *_names(log)]


def foreign_generations(log: Log) -> int:
    """Return the number of generations that answer requests of another run's log, which a replay copied."""
    (row,) = log.rows(f"SELECT count(*) AS n FROM generations g WHERE NOT {OF_THIS_RUN}")
    return int(row["n"])


def _group_ids(log: Log) -> list[Finding]:
    """Recompute the ids. A request that was replayed as load may name another run than its topic's."""
    rule = "ids are functions of the log"
    return [
        *ask(
            log,
            rule,
            "group {group_id} is not the id that its request's place, {source_topic}[{source_partition}]"
            "@{source_offset}, gives",
            f"""
            WITH runs AS (
                SELECT DISTINCT asked_by AS run FROM digests WHERE asked_by IS NOT NULL
                UNION SELECT DISTINCT run FROM generations
                UNION SELECT DISTINCT regexp_replace(source_topic, '[.][^.]*$', '') FROM generations
            )
            SELECT g.topic, g.partition, g.record_offset, g.group_id, g.source_topic, g.source_partition,
                g.source_offset
            FROM {COUNTING} g LEFT JOIN runs r ON g.group_id = {GROUP_ID.format(run="r.run")}
            WHERE r.run IS NULL ORDER BY g.topic, g.partition, g.record_offset
            """,
        ),
        *ask(
            log,
            rule,
            "the request at {source_topic}[{source_partition}]@{source_offset} has {n} groups: {names}",
            "SELECT topic, partition, max(record_offset) AS record_offset, source_topic, source_partition, "
            "source_offset, count(DISTINCT group_id) AS n, string_agg(DISTINCT group_id, ', ') AS names "
            f"FROM {COUNTING} g GROUP BY topic, partition, source_topic, source_partition, source_offset "
            "HAVING n > 1 ORDER BY ALL",
        ),
        *ask(
            log,
            rule,
            "{wrong_id}",
            "SELECT d.* FROM digests d ANTI JOIN refused_generations USING (topic, partition, record_offset) "
            "ANTI JOIN refused_rewards USING (topic, partition, record_offset) WHERE wrong_id IS NOT NULL "
            "ORDER BY topic, partition, record_offset",
        ),
    ]


def _sources(log: Log) -> list[Finding]:
    """Check that answered requests are in the log; in a live log, the newest may still come.

    Records that Kafka never gave to the sink cannot have been answered; records that the sink could not decode cannot
    either.
    """
    missing = f"""
        SELECT g.topic, g.partition, g.record_offset, g.source_topic, g.source_partition, g.source_offset
        FROM {COUNTING} g
        ANTI JOIN requests r ON r.topic = g.source_topic AND r.partition = g.source_partition
            AND r.record_offset = g.source_offset
        LEFT JOIN sink_offsets o ON o.topic = g.source_topic AND o.partition = g.source_partition
        WHERE {OF_THIS_RUN} AND ({{which}}) ORDER BY g.topic, g.partition, g.record_offset
    """
    what = "answers {source_topic}[{source_partition}]@{source_offset}, a request that the ledger does not have"
    rule = "sources are in the log"
    findings = ask(
        log, rule, what, missing.format(which="g.source_offset < coalesce(o.next_offset, 0) OR o.topic IS NULL")
    )
    if log.live:
        return findings
    beyond = missing.format(which="g.source_offset >= o.next_offset")
    return [
        *findings,
        *ask(log, rule, f"{what}: it lies beyond what the sink has stored", beyond, severity="unfinished"),
    ]


def _versions(log: Log) -> list[Finding]:
    """Check that every version was announced; in a live log, the newest announcement may still come."""
    newest = "(SELECT coalesce(max(step), -1) FROM policy_versions WHERE status = 'published')"
    limit = f"AND {{0}}.step <= {newest}" if log.live else ""
    announced = (
        "ANTI JOIN (SELECT DISTINCT lineage, step, weights_sha256 FROM policy_versions WHERE status = 'published') p "
        "USING (lineage, step, weights_sha256)"
    )
    # Another machine goes on from what was announced last, so an update that its learner's death has cut from its
    # announcement stays as it is there.
    on_the_chain = (
        "AND (NOT EXISTS (FROM policy_versions WHERE epoch > 0) OR (u.topic, u.partition, u.record_offset) IN "
        "(SELECT (topic, partition, record_offset) FROM surviving_updates))"
    )
    rule = "versions are announced"
    return [
        *ask(
            log,
            rule,
            "{n} groups up to here name {lineage}-{step:06d} with weights {sha} as their version, "
            "which was never announced",
            f"""
            SELECT g.topic, g.partition, max(g.record_offset) AS record_offset, lineage, step,
                coalesce(weights_sha256[1:12], '') AS sha, count(*) AS n
            FROM {COUNTING} g {announced} WHERE {OF_THIS_RUN} {limit.format("g")}
            GROUP BY g.topic, g.partition, lineage, step, weights_sha256 ORDER BY ALL
            """,
        ),
        *ask(
            log,
            rule,
            "update {lineage}-{step:06d} gave a version with weights {sha} that was never announced",
            f"""
            SELECT u.topic, u.partition, u.record_offset, lineage, step, weights_sha256[1:12] AS sha
            FROM updates u {announced} WHERE u.topic LIKE '%.updates' {limit.format("u")}
            AND u.record_offset < (SELECT max(record_offset) FROM updates WHERE topic = u.topic) {on_the_chain}
            ORDER BY u.topic, u.partition, u.record_offset
            """,
        ),
        # Only the newest announcement may be missing: its learner was killed between the two records.
        *ask(
            log,
            rule,
            "update {lineage}-{step:06d} gave a version that is not announced yet; continuing the run announces it",
            f"""
            SELECT u.topic, u.partition, u.record_offset, lineage, step FROM updates u {announced}
            WHERE u.topic LIKE '%.updates' {limit.format("u")}
            AND u.record_offset = (SELECT max(record_offset) FROM updates WHERE topic = u.topic)
            """,
            severity="unfinished",
        ),
    ]


def _names(log: Log) -> list[Finding]:
    rule = "one name, one version"
    announced = "policy_versions p JOIN updates u USING (lineage, step) WHERE p.status = 'published'"
    return [
        *ask(
            log,
            rule,
            "{lineage}-{step:06d} was announced with another parent than its update names",
            f"""
            SELECT DISTINCT p.topic, p.partition, p.record_offset, lineage, step FROM {announced}
            AND (p.parent_lineage, p.parent_step, p.parent_sha256)
                IS DISTINCT FROM (u.parent_lineage, u.parent_step, u.parent_sha256) ORDER BY ALL
            """,
        ),
        *ask(
            log,
            rule,
            "{lineage}-{step:06d} was announced at {path!r}, a place of another name",
            """
            SELECT topic, partition, record_offset, lineage, step, path FROM policy_versions
            WHERE status = 'published' AND path <> 'checkpoints/' || lineage || '-' || lpad(step::VARCHAR, 6, '0')
            ORDER BY ALL
            """,
        ),
        *ask(
            log,
            rule,
            "{lineage}-{step:06d} was announced with {announced} used-up requests of partition {number}, where its "
            "update says {said}",
            f"""
            SELECT topic, partition, record_offset, lineage, step, said.key AS number, said.value AS said,
                coalesce(map_extract(consumed, said.key)[1], 0) AS announced
            FROM (SELECT p.topic, p.partition, p.record_offset, lineage, step, p.requests_consumed AS consumed,
                unnest(map_entries(u.requests_consumed)) AS said FROM {announced})
            WHERE announced < said.value ORDER BY ALL
            """,
        ),
        *ask(
            log,
            rule,
            "{lineage}-{step:06d} stands for {n} different updates: a repeated announcement repeats its bytes",
            """
            SELECT topic, partition, max(record_offset) AS record_offset, lineage, step,
                count(DISTINCT d.event_sha256) AS n
            FROM updates u LEFT JOIN digests d USING (topic, partition, record_offset)
            WHERE topic LIKE '%.updates' GROUP BY topic, partition, lineage, step HAVING n > 1 ORDER BY ALL
            """,
        ),
        *ask(
            log,
            rule,
            "{lineage}-{step:06d} was announced with {weights} sets of weights and {manifests} manifests",
            """
            SELECT topic, partition, max(record_offset) AS record_offset, lineage, step,
                count(DISTINCT weights_sha256) AS weights, count(DISTINCT manifest_sha256) AS manifests
            FROM policy_versions GROUP BY topic, partition, lineage, step HAVING weights > 1 OR manifests > 1
            ORDER BY ALL
            """,
        ),
    ]
