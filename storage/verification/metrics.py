"""Metrics: an update's metrics of its rewards are recomputed from the rewards.

The chain of hashes covers the updates and therefore their metrics. Through the metrics it also covers the rewards,
which it does not name one by one.
"""

from __future__ import annotations

from storage.log import Log
from storage.verification.account import Finding
from storage.verification.asking import ask

TOLERANCE = 1e-7  # For any accepted reward, sums in another order differ by less.

# The groups that an update was given. Groups rejected before the update are not among them; groups that it rejected
# itself are. An older searchloop counted the latter as failed.
BATCHES = {
    "all": "fate IN ('trained', 'flat', 'disputed', 'rejected')",
    "kept": "fate IN ('trained', 'flat', 'disputed')",
    "old": "fate IN ('trained', 'flat', 'failed')",
}
# The same measures as in `learner.groups.reward_metrics`.
MEASURES = {
    "reward_mean": "avg(o.reward) FILTER ({0})",
    "reward_std": "stddev_pop(o.reward) FILTER ({0})",
    "validity": "avg(o.valid::INTEGER) FILTER ({0} AND o.reward IS NOT NULL)",
    "failed_share": "avg((o.reward IS NULL)::INTEGER) FILTER ({0})",
}


def metric_findings(log: Log) -> list[Finding]:
    """Return each update of the chain whose metrics differ from those of its groups. Needs `taken` and `rewarded`."""
    log.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE measured AS
        SELECT t.topic, t.partition, t.record_offset, any_value(t.version) AS version, {
            ", ".join(
                f"{sql.format('t.' + which)} AS {name}_{batch}"
                for batch, which in BATCHES.items()
                for name, sql in MEASURES.items()
            )
        }
        FROM taken t JOIN rewarded r USING (group_id)
        JOIN outcomes o ON o.topic = r.topic AND o.partition = r.partition AND o.record_offset = r.record_offset
        WHERE t.topic <> 'CURRENT' GROUP BY t.topic, t.partition, t.record_offset
        """
    )
    return [finding for name in MEASURES for finding in _differing(log, name)]


def _differing(log: Log, name: str) -> list[Finding]:
    said = f"u.metrics['{name}']"
    near = " OR ".join(
        f"coalesce(abs({said} - m.{name}_{batch}) <= {TOLERANCE} * greatest(1, abs({said})), false)"
        for batch in BATCHES
    )
    return ask(
        log,
        "metrics follow from rewards",
        f"{{version}} says {name} = {{said}}, its groups' rewards give {{got}}",
        f"""
        SELECT u.topic, u.partition, u.record_offset, m.version, {said} AS said, m.{name}_all AS got
        FROM updates u JOIN measured m USING (topic, partition, record_offset)
        WHERE {said} IS NOT NULL AND NOT ({near}) ORDER BY u.topic, u.partition, u.record_offset
        """,
    )
