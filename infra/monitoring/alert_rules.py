"""The alert rules for Prometheus and for Grafana: one table, from which both files are made.

Rules about a run's content (format, entropy, hacking) are searchloop's own. They arrive as
`searchloop_run_alert_firing`, and one rule passes all of them on.
"""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

DATASOURCE = "searchloop-prometheus"
FOLDER = "searchloop"
WORKS = '(max by (run) (searchloop_run_info{state=~"running|stalled"}) > 0)'
"""A run that has stopped or has finished has work that waits for ever; nobody needs to be told."""


class ScrapedRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule.

    expr: has a series above 0 for each violation. hold: how long it must hold. says: may use {{ $labels }}.
    """

    name: str
    expr: str
    hold: str
    severity: str
    says: str

    @property
    def uid(self) -> str:
        """The rule's name in Grafana, which never changes."""
        return f"searchloop-{self.name.lower()}"


RULES = (
    ScrapedRule(
        name="RunStalled",
        expr='max by (run) (searchloop_run_info{state="stalled"}) > 0',
        hold="1m",
        severity="critical",
        says="Run {{ $labels.run }} has work, and makes no progress. `searchloop status` names the stage.",
    ),
    ScrapedRule(
        name="RunAlert",
        expr="searchloop_run_alert_firing > 0",
        hold="1m",
        severity="warning",
        says="Run {{ $labels.run }}: {{ $labels.alert }}. See: searchloop watch --run {{ $labels.run }}",
    ),
    ScrapedRule(
        name="LagRises",
        expr=f"searchloop_run_lag_seconds > 60 and deriv(searchloop_run_lag_seconds[5m]) > 0 and on (run) {WORKS}",
        hold="2m",
        severity="warning",
        says="The {{ $labels.stage }} of run {{ $labels.run }} has taken nothing for more than a minute.",
    ),
    ScrapedRule(
        name="DeadLetters",
        expr="sum by (run) (increase(searchloop_run_dead_letters_total[1h])) > 0.001 * (sum by (run) "
        "(increase(searchloop_run_dead_letters_total[1h])) + sum by (run) (increase(searchloop_run_groups_total[1h])))",
        hold="5m",
        severity="warning",
        says="More than 0.1% of the records of run {{ $labels.run }} became dead letters. See: searchloop dead-letters",
    ),
    ScrapedRule(
        name="AccountingResidual",
        expr="searchloop_run_accounting_residual_records != 0",
        hold="5m",
        severity="critical",
        says="The ledger of run {{ $labels.run }} lacks records, or has some twice. Run: searchloop verify",
    ),
    ScrapedRule(
        name="FailedOutcomes",
        expr='sum by (run) (searchloop_run_candidates{fate="failed"}) > '
        "0.01 * sum by (run) (searchloop_run_candidates)",
        hold="5m",
        severity="warning",
        says="More than 1% of the candidates of run {{ $labels.run }} could not be scored. Look at Elasticsearch.",
    ),
    ScrapedRule(
        name="NoUpdate",
        expr=f"time() - searchloop_run_last_update_timestamp_seconds > 3600 and on (run) {WORKS}",
        hold="5m",
        severity="warning",
        says="Run {{ $labels.run }} works, and has made no update for an hour.",
    ),
    ScrapedRule(
        name="ServeErrors",
        expr='sum by (job) (rate(searchloop_serve_requests_total{status="5xx"}[5m])) > 0.05 * '
        "sum by (job) (rate(searchloop_serve_requests_total[5m]))",
        hold="5m",
        severity="critical",
        says="More than 5% of the server's answers are errors.",
    ),
    ScrapedRule(
        name="ServeSlow",
        expr="histogram_quantile(0.99, sum by (job, le) "
        '(rate(searchloop_serve_request_duration_seconds_bucket{route="/search"}[5m]))) > 2',
        hold="10m",
        severity="warning",
        says="One search in a hundred takes longer than 2 seconds.",
    ),
    ScrapedRule(
        name="ServeTrouble",
        expr="max by (job, part) (searchloop_serve_trouble) > 0",
        hold="5m",
        severity="warning",
        says="The server has trouble with its {{ $labels.part }}. `/ready` says which.",
    ),
    ScrapedRule(
        name="EventsWait",
        expr="max by (job) (min_over_time(searchloop_serve_spool_waiting_bytes[10m])) > 1e7",
        hold="5m",
        severity="warning",
        says="Events of people wait on the server's disk. Look at Kafka: searchloop status",
    ),
    ScrapedRule(
        name="EventsLost",
        expr="sum by (job) (increase(searchloop_serve_lost_impressions_total[10m])) > 0",
        hold="0m",
        severity="critical",
        says="Searches are answered that cannot be logged: the server's disk or spool is full.",
    ),
)


def prometheus_rules() -> str:
    """Return the rules as a rule file of Prometheus."""
    rules = [
        {
            "alert": f"Searchloop{rule.name}",
            "expr": rule.expr,
            "for": rule.hold,
            "labels": {"severity": rule.severity},
            "annotations": {"summary": rule.says},
        }
        for rule in RULES
    ]
    return as_yaml({"groups": [{"name": "searchloop", "rules": rules}]})


def grafana_rules() -> str:
    """Return the rules as a provisioning file of Grafana's alerting."""
    group = {
        "orgId": 1,
        "name": "searchloop",
        "folder": FOLDER,
        "interval": "1m",
        "rules": [_grafana_rule(rule) for rule in RULES],
    }
    return as_yaml({"apiVersion": 1, "groups": [group]})


def _grafana_rule(rule: ScrapedRule) -> dict[str, Any]:
    """Return a rule whose query has a series above 0 for each violation.

    The condition names the query without `$`: Grafana replaces `$NAME` in these files by variables.
    """
    query = {
        "refId": "A",
        "relativeTimeRange": {"from": 600, "to": 0},
        "datasourceUid": DATASOURCE,
        "model": {"refId": "A", "expr": rule.expr, "instant": True},
    }
    condition = {
        "refId": "B",
        "datasourceUid": "__expr__",
        "model": {
            "refId": "B",
            "type": "threshold",
            "expression": "A",
            "conditions": [{"evaluator": {"type": "gt", "params": [0]}}],
        },
    }
    return {
        "uid": rule.uid,
        "title": rule.name,
        "condition": "B",
        "data": [query, condition],
        "for": rule.hold,
        "noDataState": "OK",  # No series means no violation.
        "execErrState": "Error",
        "labels": {"severity": rule.severity},
        "annotations": {"summary": rule.says},
        "isPaused": False,
    }


def as_yaml(value: Any) -> str:
    """Return a value as a YAML document, in the order in which it is written."""
    return str(yaml.safe_dump(value, sort_keys=False, width=200, allow_unicode=True))
