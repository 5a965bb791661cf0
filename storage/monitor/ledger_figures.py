"""The figures of alert rules by SQL from a run's ledger: those of the windows, and what windows do not have.

Times: a point of a version is known when the record of its last group was written, a point of an update with the
update's record, and clicks at the times at which people made them. A replayed or imported log has new times of records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.log import Log
from storage.monitor.edges import PointLists, SeenEnds, figures_at_ends, versions_in
from storage.monitor.figures import Point
from storage.verification.partitions import UNACCOUNTED

Row = dict[str, Any]

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
DAY_MINUTES = DAY_MS // MINUTE_MS

# One row per version. A word is what `\w+` finds: letters, digits and underscores.
_VERSIONS = r"""
WITH judged AS (
    SELECT o.topic, o.partition, o.record_offset, r.lineage, r.step, r.record_time_ms, o.reward,
        o.status = 'scored' AS scored, o.valid AND o.status = 'scored' AS valid,
        CASE WHEN o.summary IS NOT NULL THEN o.summary = '' ELSE len(o.expansions) = 0
            OR [h.document_id for h in o.hits] = [h.document_id for h in r.raw_hits] END AS unchanged,
        regexp_extract_all(lower(coalesce(o.summary, array_to_string(o.expansions, ' '))), '[\p{{L}}\p{{N}}_]+')
            AS words
    FROM {outcomes} o JOIN {rewards} r USING (topic, partition, record_offset)
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
_VERSION_ENDS = """
SELECT lineage, step, max(record_time_ms) AS at_ms, min(record_offset) AS low, max(record_offset) AS high
FROM {rewards} GROUP BY lineage, step ORDER BY at_ms, step, lineage
"""
_ONCE = """(SELECT * FROM counted_updates
    QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset) = 1)"""
_TAKES = f"""
SELECT r.lineage, r.step, max(u.record_time_ms) AS at_ms, count(*) AS taken,
    count(*) FILTER (t.fate = 'expired') / count(*) AS expired_share,
    quantile_disc(u.parent_step - r.step, 0.95) AS p95
FROM {_ONCE} u JOIN update_groups t USING (topic, partition, record_offset)
JOIN {{rewards}} r ON r.run = t.run AND r.group_id = t.group_id
GROUP BY r.lineage, r.step HAVING {{times}} ORDER BY at_ms, r.step, r.lineage
"""
_TAKEN_VERSIONS = f"""
SELECT DISTINCT r.lineage, r.step FROM {_ONCE} u JOIN update_groups t USING (topic, partition, record_offset)
JOIN {{rewards}} r ON r.run = t.run AND r.group_id = t.group_id WHERE {{times}}
"""
_UPDATE_TIMES = f"SELECT record_time_ms AS at_ms FROM {_ONCE} ORDER BY at_ms"
_UPDATES = f"""
WITH once AS (
    SELECT *, lag(record_time_ms, 1, 0) OVER log AS before_ms, row_number() OVER log AS place
    FROM {_ONCE} WINDOW log AS (ORDER BY record_time_ms, record_offset)
), chosen AS (SELECT * FROM once WHERE {{places}}), fates AS (
    SELECT u.topic, u.partition, u.record_offset, count(*) AS taken,
        count(*) FILTER (t.fate IN ('rejected', 'disputed')) AS refused, min(r.record_time_ms) AS oldest_ms
    FROM chosen u JOIN update_groups t USING (topic, partition, record_offset)
    LEFT JOIN {{rewards}} r ON r.run = t.run AND r.group_id = t.group_id GROUP BY ALL
)
SELECT u.lineage, u.step, u.record_time_ms AS at_ms, map_extract(u.metrics, 'entropy')[1] AS entropy,
    (u.record_time_ms - f.oldest_ms) / 1000 AS lag_seconds, coalesce(f.taken, 0) AS taken,
    coalesce(f.refused, 0) AS refused, (SELECT count(*) FROM dead_letter d WHERE d.stage = 'learner'
        AND d.record_time_ms > u.before_ms AND d.record_time_ms <= u.record_time_ms) AS letters
FROM chosen u LEFT JOIN fates f USING (topic, partition, record_offset)
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
# A pause of more than a minute lies between the last move of one minute and the first of another.
_QUIET = """
WITH minutes AS (
    SELECT record_time_ms // 60000 AS minute, min(record_time_ms) AS first_ms, max(record_time_ms) AS last_ms FROM (
        SELECT record_time_ms FROM generations UNION ALL SELECT record_time_ms FROM rewards
        UNION ALL SELECT record_time_ms FROM updates
    ) GROUP BY minute
)
SELECT first_ms AS at_ms, before_ms FROM (SELECT *, lag(last_ms) OVER (ORDER BY minute) AS before_ms FROM minutes)
WHERE before_ms IS NULL OR first_ms - before_ms > 60000 ORDER BY at_ms
"""
_LETTERS = """
SELECT at_ms, sum(sum(groups)) OVER (ORDER BY at_ms)::BIGINT AS groups,
    sum(sum(letters)) OVER (ORDER BY at_ms)::BIGINT AS letters
FROM (
    SELECT (record_time_ms // 60000 + 1) * 60000 AS at_ms, 1 AS groups, 0 AS letters FROM {rewards}
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
_NAMED_TWICE = """
SELECT count(*) > count(DISTINCT hash(run, group_id)) AS twice FROM {table} WHERE {which}
"""
_REWARDS = "(SELECT * FROM rewards WHERE topic LIKE '%.rewards')"
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


def ledger_figures(log: Log, *, staleness_max: int, reach: SeenEnds | None = None) -> PointLists:
    """Return every figure that a run's ledger gives, each in the order of its times.

    reach: the points at both ends that must be there. Figures with a point for each version or update may then lack
    points between them, which saves most of the time on a long log.
    Raises StorageError if the ledger cannot be read.
    """
    rewards = "first_rewards" if _named_twice(log, "rewards", "topic LIKE '%.rewards'") else _REWARDS
    figures = {
        **_version_figures(log, rewards, reach),
        **_take_figures(log, rewards, staleness_max, reach),
        **_update_figures(log, rewards, reach),
        "search_seconds": [_point(row, row["seconds"], row["records"]) for row in log.rows(_SEARCHES)],
        "quiet_seconds": _quiet(log.rows(_QUIET)),
        "dead_letter_share": [_letters(row) for row in log.rows(_LETTERS.format(rewards=rewards))],
        "dev_value": [_point(row, row["value"]) for row in log.rows(_DEV) if row["value"] is not None],
        **read_clicks(log),
        "client_share": [
            Point(at_ms=(row["hour"] + 1) * HOUR_MS, value=row["most"] / row["total"], weight=row["total"])
            for row in log.rows(_CLIENTS)
        ],
    }
    newest_ms = log.rows(_NEWEST)[0]["at_ms"]
    if newest_ms is not None:
        twice = [_DOUBLY_USED] if _named_twice(log, "update_groups", "fate = 'trained'") else []
        residual = sum(log.rows(sql)[0]["records"] for sql in (UNACCOUNTED, *twice))
        figures["residual"] = [Point(at_ms=newest_ms, value=residual)]
    return {name: points for name, points in figures.items() if points}


def _named_twice(log: Log, table: str, which: str) -> bool:
    """Return whether a group may stand twice in a table: where none does, the costly views are not needed."""
    return bool(log.rows(_NAMED_TWICE.format(table=table, which=which))[0]["twice"])


def _version_figures(log: Log, rewards: str, reach: SeenEnds | None) -> PointLists:
    def figures_of(rows: Sequence[Row]) -> PointLists:
        found = {
            name: [_point(row, row[name], row["groups"]) for row in rows if row[name] is not None]
            for name in _OF_GROUPS
        }
        # Where all answers are equally long, there is no slope, and its point weighs nothing.
        slopes = [_point(row, row["size_slope"] or 0.0, row["variation"]) for row in rows]
        return {**found, "size_slope": slopes}

    def read(versions: Sequence[Row] | None) -> list[Row]:
        if versions is None:
            return log.rows(_VERSIONS.format(outcomes="outcomes", rewards=rewards))
        within = f"record_offset BETWEEN {min(v['low'] for v in versions)} AND {max(v['high'] for v in versions)}"
        chosen = f"(SELECT * FROM {rewards} AS all_rewards WHERE {within} AND {versions_in(versions)})"
        return log.rows(_VERSIONS.format(outcomes=f"(SELECT * FROM outcomes WHERE {within})", rewards=chosen))

    if reach is None:
        return figures_of(read(None))
    versions = log.rows(_VERSION_ENDS.format(rewards=rewards))
    if not versions:
        return figures_of([])
    if any(each["lineage"] is None or each["step"] is None for each in versions):
        return figures_of(read(None))
    return figures_at_ends(len(versions), reach, lambda low, high: figures_of(read(versions[low:high])))


def _take_figures(log: Log, rewards: str, staleness_max: int, reach: SeenEnds | None) -> PointLists:
    def figures_of(rows: Sequence[Row]) -> PointLists:
        found = {"expired_share": [_point(row, row["expired_share"], row["taken"]) for row in rows]}
        if staleness_max >= 2:  # An empty figure would be looked for in the whole log.
            near = [_point(row, staleness_max - row["p95"], row["taken"]) for row in rows if row["p95"] is not None]
            found["staleness_room"] = near
        return found

    times = [row["at_ms"] for row in log.rows(_UPDATE_TIMES)] if reach is not None else []

    def read(low: int, high: int) -> PointLists:
        """Return the figures of the versions whose last group was taken by these updates."""
        above = f"> {times[low - 1]}" if low else ">= 0"
        within = f"{{0}} {above} AND {{0}} <= {times[high - 1]}"
        taken = log.rows(_TAKEN_VERSIONS.format(rewards=rewards, times=within.format("u.record_time_ms")))
        chosen = rewards
        if taken and not any(each["lineage"] is None or each["step"] is None for each in taken):
            chosen = f"(SELECT * FROM {rewards} AS all_rewards WHERE {versions_in(taken)})"
        return figures_of(log.rows(_TAKES.format(rewards=chosen, times=within.format("max(u.record_time_ms)"))))

    if reach is None:
        return figures_of(log.rows(_TAKES.format(rewards=rewards, times="true")))
    return figures_at_ends(len(times), reach, read) if times else figures_of([])


def _update_figures(log: Log, rewards: str, reach: SeenEnds | None) -> PointLists:
    def figures_of(rows: Sequence[Row]) -> PointLists:
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

    def read(places: str) -> PointLists:
        return figures_of(log.rows(_UPDATES.format(rewards=rewards, places=places)))

    if reach is None:
        return read("true")
    updates = len(log.rows(_UPDATE_TIMES))
    return figures_at_ends(updates, reach, lambda low, high: read(f"place > {low} AND place <= {high}"))


def _point(row: dict[str, Any], value: float, weight: float = 1.0) -> Point:
    return Point(
        at_ms=row["at_ms"],
        value=float(value),
        weight=float(weight),
        lineage=row.get("lineage") or "",
        step=-1 if row.get("step") is None else row["step"],
    )


def _quiet(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """Return a point for each minute of each pause, and 0 at its end and at the log's beginning.

    A pause of more than a day has points on its first day and one at its end: a clock that jumps may make it decades.
    """
    points = []
    for row in rows:
        before_ms = row["before_ms"]
        if before_ms is not None:
            minutes = range(before_ms + MINUTE_MS, row["at_ms"], MINUTE_MS)
            for at_ms in [*minutes[:DAY_MINUTES], *minutes[DAY_MINUTES:][-1:]]:
                points.append(Point(at_ms=at_ms, value=(at_ms - before_ms) / 1000))
        points.append(Point(at_ms=row["at_ms"], value=0.0))
    return points


def _letters(row: dict[str, Any]) -> Point:
    groups, letters = row["groups"], row["letters"]
    note = f"{letters} dead letters beside {groups} groups"
    return Point(at_ms=row["at_ms"], value=letters / (groups + letters), note=note)


def read_clicks(log: Log) -> PointLists:
    """Return the figures of clicks, a point for each hour with a final outcome. Raises StorageError."""
    hours: dict[int, dict[str, int]] = {}
    for row in log.rows(_RANKS):
        hours.setdefault(row["hour"], {})[row["bucket"]] = row["counted"]
    return click_figures([((hour + 1) * HOUR_MS, counts) for hour, counts in sorted(hours.items())])


def click_figures(hours: Sequence[tuple[int, dict[str, int]]]) -> PointLists:
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
