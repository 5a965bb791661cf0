"""The figures of alert rules by SQL from a run's ledger: those of the windows, and what windows do not have.

Times: a point of a version is known when the record of its last group was written, a point of an update with the
update's record, and clicks at the times at which people made them. A replayed or imported log has new times of records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.log import Log
from storage.monitor.figures import Point
from storage.verification.partitions import UNACCOUNTED

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
QUIET_SECONDS = 60.0

# One row per version. A word is what `\w+` finds: letters, digits and underscores.
_VERSIONS = r"""
WITH judged AS (
    SELECT o.topic, o.partition, o.record_offset, r.lineage, r.step, r.record_time_ms, o.reward,
        o.status = 'scored' AS scored, o.valid AND o.status = 'scored' AS valid,
        CASE WHEN o.summary IS NOT NULL THEN o.summary = '' ELSE len(o.expansions) = 0
            OR [h.document_id for h in o.hits] = [h.document_id for h in r.raw_hits] END AS unchanged,
        regexp_extract_all(lower(coalesce(o.summary, array_to_string(o.expansions, ' '))), '[\p{L}\p{N}_]+') AS words
    FROM outcomes o JOIN first_rewards r USING (topic, partition, record_offset)
), grouped AS (
    SELECT lineage, step, record_time_ms, count(*) AS candidates, count(reward) AS scored,
        count(*) FILTER (valid) AS valid, count(*) FILTER (valid AND unchanged) AS unchanged,
        avg(reward) AS mean, stddev_pop(reward) AS std, max(abs(reward)) AS peak,
        count(reward) >= 2 AND max(reward) = min(reward) AS flat,
        coalesce(sum(len(words)) FILTER (valid), 0) AS words,
        coalesce(sum(len(words) - len(list_distinct(words))) FILTER (valid), 0) AS repeated,
        coalesce(covar_pop(reward, len(words)) FILTER (valid) * count(*) FILTER (valid), 0) AS covariation,
        coalesce(var_pop(len(words)) FILTER (valid) * count(*) FILTER (valid), 0) AS variation
    FROM judged GROUP BY topic, partition, record_offset, lineage, step, record_time_ms
)
SELECT lineage, step, max(record_time_ms) AS at_ms, count(*) AS groups, avg(mean) AS reward_mean,
    avg(std) AS reward_std, max(peak) AS reward_peak,
    count(*) FILTER (flat AND mean IS NOT NULL) / nullif(count(mean), 0) AS flat_share,
    sum(valid) / nullif(sum(scored), 0) AS valid_share, sum(unchanged) / nullif(sum(scored), 0) AS unchanged_share,
    sum(candidates - scored) / sum(candidates) AS failed_share,
    sum(repeated) / nullif(sum(words), 0) AS repeat_share, sum(words) / nullif(sum(valid), 0) AS text_size,
    sum(covariation) / nullif(sum(variation), 0) AS size_slope, sum(variation)::DOUBLE AS variation
FROM grouped GROUP BY lineage, step ORDER BY at_ms, step, lineage
"""
_TAKES = """
SELECT r.lineage, r.step, max(u.record_time_ms) AS at_ms, count(*) AS taken,
    count(*) FILTER (l.fate = 'expired') / count(*) AS expired_share,
    quantile_disc(u.parent_step - r.step, 0.95) AS p95
FROM group_lineage l
JOIN updates u ON u.topic = l.update_topic AND u.partition = l.update_partition AND u.record_offset = l.update_offset
JOIN first_rewards r ON r.run = l.run AND r.group_id = l.group_id
GROUP BY r.lineage, r.step ORDER BY at_ms, r.step, r.lineage
"""
_UPDATES = """
WITH once AS (
    SELECT *, lag(record_time_ms, 1, 0) OVER (ORDER BY record_time_ms, record_offset) AS before_ms FROM (
        SELECT * FROM updates
        QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset) = 1)
), fates AS (
    SELECT l.update_topic, l.update_partition, l.update_offset, count(*) AS taken,
        count(*) FILTER (l.fate IN ('rejected', 'disputed')) AS refused, min(r.record_time_ms) AS oldest_ms
    FROM group_lineage l LEFT JOIN first_rewards r ON r.run = l.run AND r.group_id = l.group_id GROUP BY ALL
)
SELECT u.lineage, u.step, u.record_time_ms AS at_ms, map_extract(u.metrics, 'entropy')[1] AS entropy,
    (u.record_time_ms - f.oldest_ms) / 1000 AS lag_seconds, coalesce(f.taken, 0) AS taken,
    coalesce(f.refused, 0) AS refused, (SELECT count(*) FROM dead_letter d WHERE d.stage = 'learner'
        AND d.record_time_ms > u.before_ms AND d.record_time_ms <= u.record_time_ms) AS letters
FROM once u LEFT JOIN fates f
    ON f.update_topic = u.topic AND f.update_partition = u.partition AND f.update_offset = u.record_offset
ORDER BY at_ms, u.record_offset
"""
_SEARCHES = """
SELECT (at_ms // 60000 + 1) * 60000 AS at_ms, quantile_cont(took, 0.99) / 1000 AS seconds, count(*) AS records FROM (
    SELECT r.record_time_ms AS at_ms, r.record_time_ms - greatest(g.record_time_ms, coalesce(lag(r.record_time_ms)
        OVER (PARTITION BY r.topic, r.partition ORDER BY r.record_offset), 0)) AS took
    FROM rewards r JOIN generations g ON g.topic = r.source_topic AND g.partition = r.source_partition
        AND g.record_offset = r.source_offset
) GROUP BY at_ms // 60000 ORDER BY 1
"""
_QUIET = """
WITH moves AS (
    SELECT record_time_ms AS at_ms FROM generations UNION ALL SELECT record_time_ms FROM rewards
    UNION ALL SELECT record_time_ms FROM updates
)
SELECT at_ms, before_ms FROM (SELECT at_ms, lag(at_ms) OVER (ORDER BY at_ms) AS before_ms FROM moves)
WHERE before_ms IS NULL OR at_ms - before_ms > ? ORDER BY at_ms
"""
_LETTERS = """
SELECT at_ms, sum(sum(groups)) OVER (ORDER BY at_ms)::BIGINT AS groups,
    sum(sum(letters)) OVER (ORDER BY at_ms)::BIGINT AS letters
FROM (
    SELECT (record_time_ms // 60000 + 1) * 60000 AS at_ms, 1 AS groups, 0 AS letters FROM first_rewards
    UNION ALL SELECT (record_time_ms // 60000 + 1) * 60000, 0, 1 FROM dead_letter
) GROUP BY at_ms ORDER BY at_ms
"""
_DEV = """
SELECT lineage, step, record_time_ms AS at_ms, value FROM first_dev_scores
WHERE [(s.name, s.queries) for s in sets] = (
    SELECT [(s.name, s.queries) for s in sets] FROM first_dev_scores ORDER BY record_offset DESC LIMIT 1)
ORDER BY record_offset
"""
_RANKS = """
SELECT at_ms // 3600000 AS hour, max(at_ms) AS newest_ms,
    CASE WHEN rank IS NULL THEN 'none' WHEN rank >= 10 THEN '10+' ELSE rank::VARCHAR END AS bucket, count(*) AS counted
FROM (SELECT at_ms, list_min([s.rank for s in shown
    if list_contains([a.document_id for a in actions if a.kind = 'click'], s.document_id)]) AS rank FROM final_outcomes
    WHERE coalesce(bot, '') <> 'judged')
GROUP BY ALL ORDER BY hour, bucket
"""
_CLIENTS = """
WITH clicks AS (
    SELECT at_ms // 3600000 AS hour, client, count(*) AS clicks
    FROM (SELECT at_ms, client, unnest([a.kind for a in actions]) AS kind FROM final_outcomes)
    WHERE kind = 'click' AND client <> '' GROUP BY ALL
), rolling AS (
    SELECT h.hour, c.client, sum(c.clicks) AS its FROM (SELECT DISTINCT hour FROM clicks) h
    JOIN clicks c ON c.hour BETWEEN h.hour - 23 AND h.hour GROUP BY ALL
)
SELECT hour, max(its)::BIGINT AS most, sum(its)::BIGINT AS total FROM rolling GROUP BY hour ORDER BY hour
"""
_DOUBLY_USED = "SELECT count(*) AS records FROM candidate_outcomes WHERE uses > 1"
_NEWEST = "SELECT max(record_time_ms) AS at_ms FROM rewards"
_OF_GROUPS = (
    "reward_mean",
    "reward_std",
    "reward_peak",
    "flat_share",
    "valid_share",
    "unchanged_share",
    "failed_share",
    "repeat_share",
    "text_size",
)


def ledger_figures(log: Log, *, staleness_max: int) -> dict[str, list[Point]]:
    """Return every figure that a run's ledger gives, each in the order of its times.

    Raises StorageError if the ledger cannot be read.
    """
    figures = {
        **_version_figures(log),
        **_take_figures(log, staleness_max),
        **_update_figures(log),
        "search_seconds": [_point(row, row["seconds"], row["records"]) for row in log.rows(_SEARCHES)],
        "quiet_seconds": _quiet(log.rows(_QUIET, [QUIET_SECONDS * 1000])),
        "dead_letter_share": [_letters(row) for row in log.rows(_LETTERS)],
        "dev_value": [_point(row, row["value"]) for row in log.rows(_DEV) if row["value"] is not None],
        **read_clicks(log),
        "client_share": [
            Point(at_ms=(row["hour"] + 1) * HOUR_MS, value=row["most"] / row["total"], weight=row["total"])
            for row in log.rows(_CLIENTS)
        ],
    }
    newest_ms = log.rows(_NEWEST)[0]["at_ms"]
    if newest_ms is not None:
        residual = sum(log.rows(sql)[0]["records"] for sql in (UNACCOUNTED, _DOUBLY_USED))
        figures["residual"] = [Point(at_ms=newest_ms, value=residual)]
    return {name: points for name, points in figures.items() if points}


def _version_figures(log: Log) -> dict[str, list[Point]]:
    rows = log.rows(_VERSIONS)
    figures = {
        name: [_point(row, row[name], row["groups"]) for row in rows if row[name] is not None] for name in _OF_GROUPS
    }
    slopes = [_point(row, row["size_slope"], row["variation"]) for row in rows if row["size_slope"] is not None]
    return {**figures, "size_slope": slopes}


def _take_figures(log: Log, staleness_max: int) -> dict[str, list[Point]]:
    rows = log.rows(_TAKES)
    near = [_point(row, staleness_max - row["p95"], row["taken"]) for row in rows if row["p95"] is not None]
    expired = [_point(row, row["expired_share"], row["taken"]) for row in rows]
    return {"expired_share": expired, "staleness_room": near if staleness_max >= 2 else []}


def _update_figures(log: Log) -> dict[str, list[Point]]:
    rows = log.rows(_UPDATES)
    refused = []
    for row in rows:
        # A refused group is listed by its update and lies among the dead letters: count it once.
        letters = max(row["letters"] - row["refused"], 0)
        if all_taken := row["taken"] + letters:
            refused.append(_point(row, (row["refused"] + letters) / all_taken, all_taken))
    return {
        "entropy": [_point(row, row["entropy"]) for row in rows if row["entropy"] is not None],
        "lag_seconds": [_point(row, row["lag_seconds"]) for row in rows if row["lag_seconds"] is not None],
        "refused_share": refused,
    }


def _point(row: dict[str, Any], value: float, weight: float = 1.0) -> Point:
    return Point(
        at_ms=row["at_ms"],
        value=float(value),
        weight=float(weight),
        lineage=row.get("lineage") or "",
        step=-1 if row.get("step") is None else row["step"],
    )


def _quiet(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """Return a point for each minute of each pause, and 0 at its end and at the log's beginning."""
    points = []
    for row in rows:
        before_ms = row["before_ms"]
        if before_ms is not None:
            for at_ms in range(before_ms + MINUTE_MS, row["at_ms"], MINUTE_MS):
                points.append(Point(at_ms=at_ms, value=(at_ms - before_ms) / 1000))
        points.append(Point(at_ms=row["at_ms"], value=0.0))
    return points


def _letters(row: dict[str, Any]) -> Point:
    groups, letters = row["groups"], row["letters"]
    note = f"{letters} dead letters beside {groups} groups"
    return Point(at_ms=row["at_ms"], value=letters / (groups + letters), note=note)


def read_clicks(log: Log) -> dict[str, list[Point]]:
    """Return the figures of clicks, a point for each hour with a final outcome. Raises StorageError."""
    hours: dict[int, dict[str, int]] = {}
    for row in log.rows(_RANKS):
        hours.setdefault(row["hour"], {})[row["bucket"]] = row["counted"]
    return click_figures([((hour + 1) * HOUR_MS, counts) for hour, counts in sorted(hours.items())])


def click_figures(hours: Sequence[tuple[int, dict[str, int]]]) -> dict[str, list[Point]]:
    """Return the figures of clicks from hours: (end, impressions by the rank of the first click or "none")."""
    ranks, rates = [], []
    for at_ms, counts in hours:
        none = counts.get("none", 0)
        clicked = {rank: count for rank, count in counts.items() if rank != "none"}
        rate = {"none": none, "any": sum(clicked.values())}
        share = rate["any"] / max(none + rate["any"], 1)
        ranks.append(Point(at_ms=at_ms, value=share, counts=clicked))
        rates.append(Point(at_ms=at_ms, value=share, counts=rate))
    return {"click_ranks": ranks, "click_rate": rates}
