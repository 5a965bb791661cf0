"""The monitor's alerts for a run that is over: the rules of `storage.monitor.alerts`, on lines from the ledger."""

from __future__ import annotations

from storage.log import Log
from storage.monitor.alerts import DEAD_GROUPS_UPDATES, RECENT_VERSIONS, Alert, alerts
from storage.monitor.view import VersionLine


def read_alerts(log: Log, *, dead_letters: int, staleness_max: int) -> tuple[Alert, ...]:
    """Return the rules that the run broke when its log ended.

    staleness_max: the run's limit in versions; 0 if it is not known, and then there is no alert about it.
    """
    return alerts(version_lines_of(log), dead_letters=dead_letters, staleness_max=staleness_max)


def version_lines_of(log: Log) -> tuple[VersionLine, ...]:
    """Return one line per policy version, as the monitor's windows would.

    The shares of unchanged and of repeated words are costly, and the rules look at the first and at the newest versions
    only. The versions between have None there.
    """
    words = _words(log)
    rows = log.rows(
        """
        WITH fates AS (
            SELECT s.run, r.lineage, r.step, count(*) AS taken, count(*) FILTER (s.fate = 'expired') AS expired,
                avg(s.parent_step - r.step) AS mean, quantile_disc(s.parent_step - r.step, 0.95) AS p95
            FROM surviving_groups s JOIN first_rewards r USING (run, group_id) GROUP BY ALL
        )
        SELECT lineage, step, count(*) AS groups, avg(reward_mean) AS reward_mean, avg(reward_std) AS reward_std,
            count(*) FILTER (flat) / nullif(count(reward_mean), 0) AS flat_share,
            sum(valid_share * scored) / nullif(sum(scored), 0) AS valid_share,
            sum(candidates - scored) / nullif(sum(candidates), 0) AS failed_share,
            any_value(taken) AS taken, any_value(expired) AS expired, any_value(mean) AS mean, any_value(p95) AS p95
        FROM group_rewards LEFT JOIN fates USING (run, lineage, step) GROUP BY run, lineage, step
        ORDER BY step, lineage
        """
    )
    found = []
    for row in rows:
        unchanged, repeated = words.get((row["lineage"], row["step"]), (None, None))
        found.append(
            VersionLine(
                lineage=row["lineage"],
                step=row["step"],
                groups=row["groups"],
                reward_mean=row["reward_mean"],
                reward_std=row["reward_std"],
                flat_share=row["flat_share"],
                valid_share=row["valid_share"],
                unchanged_share=unchanged,
                failed_share=row["failed_share"],
                repeat_share=repeated,
                taken=row["taken"] or 0,
                expired=row["expired"] or 0,
                staleness_mean=row["mean"],
                staleness_p95=row["p95"],
            )
        )
    return tuple(found)


def _words(log: Log) -> dict[tuple[str, int], tuple[float | None, float | None]]:
    """Return the shares of answers without effect, and of repeated words, by version.

    DuckDB's [\\pL\\pN_] are the characters of Python's \\w.
    """
    rows = log.rows(
        f"""
        WITH versions AS (
            SELECT lineage, step, row_number() OVER (ORDER BY step, lineage) AS nth, count(*) OVER () AS n
            FROM (SELECT DISTINCT lineage, step FROM first_rewards)
        ), shown AS (
            SELECT lineage, step FROM versions WHERE nth <= {RECENT_VERSIONS} OR nth > n - {DEAD_GROUPS_UPDATES}
        ), answers AS (
            SELECT o.lineage, o.step, o.valid AS valid,
                CASE WHEN o.summary IS NOT NULL THEN o.summary = '' ELSE len(coalesce(o.expansions, [])) = 0
                    OR list_transform(o.hits, lambda hit: hit.document_id)
                        = list_transform(r.raw_hits, lambda hit: hit.document_id) END AS unchanged,
                CASE WHEN o.valid THEN regexp_extract_all(
                    lower(coalesce(o.summary, array_to_string(o.expansions, ' '))), '[\\pL\\pN_]+') ELSE [] END AS words
            FROM first_outcomes o JOIN first_rewards r USING (run, group_id)
            JOIN shown s ON o.lineage = s.lineage AND o.step = s.step WHERE o.status = 'scored'
        )
        SELECT lineage, step, count(*) FILTER (valid AND unchanged) / count(*) AS unchanged,
            sum(len(words) - len(list_distinct(words))) / nullif(sum(len(words)), 0) AS repeated
        FROM answers GROUP BY lineage, step
        """
    )
    return {(row["lineage"], row["step"]): (row["unchanged"], row["repeated"]) for row in rows}
