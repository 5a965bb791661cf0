"""The metrics that Prometheus can read: one table of names, kinds, labels and meanings, for the loop and the server.

A label's values are few: runs, stages, fates, routes. A query, a client or an id is never a label. A policy version is
the value of a label only in the `_info` metrics, and only for the versions that matter now.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

PREFIX = "searchloop_"


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric. name: as Prometheus stores it; a histogram's has no `_bucket`, `_sum` or `_count`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    says: str
    labels: tuple[str, ...] = ()

    def series(self) -> tuple[str, ...]:
        """Return the names that a query may use."""
        return tuple(f"{self.name}_{end}" for end in ("bucket", "sum", "count")) if self._spread else (self.name,)

    @property
    def _spread(self) -> bool:
        return self.kind == "histogram"


def _counter(name: str, says: str, *labels: str) -> Metric:
    return Metric(name=f"{PREFIX}{name}", kind="counter", says=says, labels=labels)


def _gauge(name: str, says: str, *labels: str) -> Metric:
    return Metric(name=f"{PREFIX}{name}", kind="gauge", says=says, labels=labels)


RUN_INFO = _gauge("run_info", "1 for each run. Its labels name the recipe and the state.", "run", "recipe", "state")
RUN_POLICY_INFO = _gauge(
    "run_policy_info",
    "1 for each version that matters now. role: newest, rewarded (the newest with rewards), measured (the newest with "
    "a dev score), best (by dev score).",
    "run",
    "role",
    "policy",
)
GROUPS = _counter("run_groups_total", "Rewarded groups.", "run")
CANDIDATES = _gauge("run_candidates", "Candidates by fate: scored, failed, expired or waiting.", "run", "fate")
UPDATES = _counter("run_updates_total", "Updates on the surviving lineage.", "run")
UPDATES_WANTED = _gauge("run_updates_wanted", "Updates that the run was started for.", "run")
LETTERS = _counter("run_dead_letters_total", "Dead letters by the stage that gave them up.", "run", "stage")
RESIDUAL = _gauge(
    "run_accounting_residual_records", "Stored records that are neither a row nor a dead letter. Expected: 0.", "run"
)
LAG_RECORDS = _gauge("run_lag_records", "Records that a stage has not taken.", "run", "stage")
LAG_SECONDS = _gauge(
    "run_lag_seconds", "Time for which records have waited for a stage that took none; 0 if none waits.", "run", "stage"
)
STALENESS = _gauge(
    "run_staleness_versions",
    "Steps between the version that wrote a group and the one that learned from it, over the last 20 updates. "
    "statistic: median, p95 or max.",
    "run",
    "statistic",
)
REWARD = _gauge("run_reward_mean", "Mean reward of the groups of the version with role rewarded.", "run")
DEV = _gauge("run_dev_score", "Score on dev queries by version's role (measured, best).", "run", "role", "measure")
LEARNING = _gauge("run_learning", "Metrics of the newest update, by their names in the log.", "run", "metric")
ALERTS = _gauge("run_alerts_firing", "Alerts that fire now.", "run")
ALERT = _gauge("run_alert_firing", "1 if this alert fires, 0 if it does not.", "run", "alert")
LAST_GROUP = _gauge("run_last_group_timestamp_seconds", "Time of the newest rewarded group.", "run")
LAST_UPDATE = _gauge("run_last_update_timestamp_seconds", "Time of the newest update.", "run")
READ = _gauge("run_read_timestamp_seconds", "Time at which the run's log was read for these metrics.", "run")

LOOP = (
    RUN_INFO,
    RUN_POLICY_INFO,
    GROUPS,
    CANDIDATES,
    UPDATES,
    UPDATES_WANTED,
    LETTERS,
    RESIDUAL,
    LAG_RECORDS,
    LAG_SECONDS,
    STALENESS,
    REWARD,
    DEV,
    LEARNING,
    ALERTS,
    ALERT,
    LAST_GROUP,
    LAST_UPDATE,
    READ,
)

SERVE_INFO = _gauge(
    "serve_info", "1 for the server. Its labels name the run of the traffic and the index.", "run", "index"
)
SERVE_POLICY_INFO = _gauge(
    "serve_policy_info",
    "1 for each version that may help. role: process (answers new queries) or ramp.",
    "role",
    "policy",
)
REQUESTS = _counter(
    "serve_requests_total",
    "Requests by route and class of status (2xx, 3xx, 4xx, 5xx, or gone if the client left).",
    "route",
    "status",
)
SECONDS = Metric(
    name=f"{PREFIX}serve_request_duration_seconds",
    kind="histogram",
    says="Time to answer a request.",
    labels=("route",),
)
SEARCHES = _counter("serve_searches_total", "Searches by what was shown: raw, helped or interleaved results.", "shown")
EVENTS = _counter(
    "serve_events_total",
    "Events of people by outcome: accepted, refused (wrong), or unkept (no space; the sender was told).",
    "outcome",
)
LOST = _counter("serve_lost_impressions_total", "Searches that were answered, and could not be logged.")
WAITING = _gauge("serve_spool_waiting_bytes", "Events on disk that Kafka does not have yet.")
ANSWERS = _gauge("serve_ready_answers", "Queries with a ready answer.")
TROUBLE = _gauge("serve_trouble", "1 if this part has trouble, else 0. part: policy, kafka or index.", "part")
DRAINING = _gauge("serve_draining", "1 if the server ends after its last answers.")
STARTED = _gauge("serve_start_timestamp_seconds", "Time at which the process that answered this scrape started.")

SERVE = (
    SERVE_INFO,
    SERVE_POLICY_INFO,
    REQUESTS,
    SECONDS,
    SEARCHES,
    EVENTS,
    LOST,
    WAITING,
    ANSWERS,
    TROUBLE,
    DRAINING,
    STARTED,
)


def metrics_reference() -> str:
    """Return both tables in Markdown, as `infra/MONITORING.md` shows them."""
    return "\n".join(
        [
            "### The loop, by run",
            "",
            *_table(LOOP),
            "",
            "### The server",
            "",
            *_table(SERVE),
            "",
        ]
    )


def _table(metrics: Iterable[Metric]) -> list[str]:
    rows = [
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{name}`' for name in each.labels)} | {each.says} |"
        for each in metrics
    ]
    return ["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows]


if __name__ == "__main__":
    print(metrics_reference(), end="")
