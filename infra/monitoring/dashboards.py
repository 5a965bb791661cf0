"""The dashboards for Grafana, and the folder that provisions them: made from one table of panels.

`python -m infra.monitoring.dashboards FOLDER` writes the folder. `infra/monitoring/grafana` holds the same files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from infra.monitoring.alert_rules import DATASOURCE, FOLDER, as_yaml, grafana_rules, prometheus_rules
from streams.errors import SettingsError
from streams.whole_file import write_file

RUN = '{run=~"$run"}'
SOURCE = {"type": "prometheus", "uid": DATASOURCE}
WIDTH, HEIGHT = 24, 8


class PromQuery(msgspec.Struct, frozen=True):
    """One PromQL query, and the name of its lines."""

    expr: str
    legend: str


class DashboardPanel(msgspec.Struct, frozen=True, kw_only=True):
    """One panel. unit: as Grafana names it. width: of 24."""

    title: str
    says: str
    queries: tuple[PromQuery, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8


LOOP = (
    DashboardPanel(
        title="Training reward",
        says="Mean reward of the newest version with rewards. It may rise without held-out quality: look beside it.",
        queries=(PromQuery(f"searchloop_run_reward_mean{RUN}", "{{run}}"),),
        width=12,
    ),
    DashboardPanel(
        title="Held-out quality",
        says="Score on dev queries of the newest measured version, and of the best one.",
        queries=(PromQuery(f"searchloop_run_dev_score{RUN}", "{{run}} {{measure}} {{role}}"),),
        width=12,
    ),
    DashboardPanel(
        title="State",
        says="1 for the state of each run.",
        queries=(
            PromQuery(f"max by (run, recipe, state) (searchloop_run_info{RUN})", "{{run}} {{recipe}}: {{state}}"),
        ),
        kind="stat",
    ),
    DashboardPanel(
        title="Alerts that fire",
        says="Names of the alerts that fire now.",
        queries=(PromQuery(f"sum by (run, alert) (searchloop_run_alert_firing{RUN}) > 0", "{{run}}: {{alert}}"),),
        kind="stat",
    ),
    DashboardPanel(
        title="Accounting residual",
        says="Stored records without a row or a dead letter. Anything but 0 is a fault.",
        queries=(PromQuery(f"searchloop_run_accounting_residual_records{RUN}", "{{run}}"),),
        kind="stat",
    ),
    DashboardPanel(
        title="Updates",
        says="Updates so far, and the number that the run was started for.",
        queries=(
            PromQuery(f"searchloop_run_updates_total{RUN}", "{{run}}"),
            PromQuery(f"searchloop_run_updates_wanted{RUN}", "{{run}} wanted"),
        ),
    ),
    DashboardPanel(
        title="Groups a second",
        says="Rewarded groups.",
        queries=(PromQuery(f"rate(searchloop_run_groups_total{RUN}[5m])", "{{run}}"),),
        unit="ops",
    ),
    DashboardPanel(
        title="Candidates by fate",
        says="Shares of all candidates.",
        queries=(
            PromQuery(
                f"searchloop_run_candidates{RUN} / on (run) group_left sum by (run) (searchloop_run_candidates{RUN})",
                "{{run}} {{fate}}",
            ),
        ),
        unit="percentunit",
    ),
    DashboardPanel(
        title="Waiting time by stage",
        says="Time for which records have waited for a stage that took none.",
        queries=(PromQuery(f"searchloop_run_lag_seconds{RUN}", "{{run}} {{stage}}"),),
        unit="s",
    ),
    DashboardPanel(
        title="Waiting records by stage",
        says="Records that a stage has not taken. Most in front of the learner: learner-bound.",
        queries=(PromQuery(f"searchloop_run_lag_records{RUN}", "{{run}} {{stage}}"),),
    ),
    DashboardPanel(
        title="Staleness",
        says="Versions between writing and learning, over the last 20 updates.",
        queries=(PromQuery(f"searchloop_run_staleness_versions{RUN}", "{{run}} {{statistic}}"),),
    ),
    DashboardPanel(
        title="Dead letters an hour",
        says="Records that a stage gave up.",
        queries=(PromQuery(f"increase(searchloop_run_dead_letters_total{RUN}[1h])", "{{run}} {{stage}}"),),
    ),
    DashboardPanel(
        title="Entropy and KL",
        says="Of the newest update. A fast fall of the entropy means that the policy repeats itself.",
        queries=(
            PromQuery(
                'searchloop_run_learning{run=~"$run", metric=~"entropy|kl_behaviour|kl_reference"}',
                "{{run}} {{metric}}",
            ),
        ),
    ),
    DashboardPanel(
        title="Ratio, clipping and gradient",
        says="Of the newest update.",
        queries=(
            PromQuery(
                'searchloop_run_learning{run=~"$run", metric=~"ratio_mean|ratio_max|clip_share|grad_norm"}',
                "{{run}} {{metric}}",
            ),
        ),
    ),
    DashboardPanel(
        title="Time since",
        says="Age of the newest update and of the newest group.",
        queries=(
            PromQuery(f"time() - searchloop_run_last_update_timestamp_seconds{RUN}", "{{run}} update"),
            PromQuery(f"time() - searchloop_run_last_group_timestamp_seconds{RUN}", "{{run}} group"),
        ),
        unit="s",
    ),
    DashboardPanel(
        title="Versions that matter now",
        says="Newest, rewarded, measured and best version of each run.",
        queries=(
            PromQuery(f"max by (run, role, policy) (searchloop_run_policy_info{RUN})", "{{run}} {{role}}: {{policy}}"),
        ),
        kind="stat",
        width=24,
    ),
)

SERVING = (
    DashboardPanel(
        title="Requests a second",
        says="By route and class of status.",
        queries=(
            PromQuery("sum by (route, status) (rate(searchloop_serve_requests_total[5m]))", "{{route}} {{status}}"),
        ),
        unit="reqps",
        width=12,
    ),
    DashboardPanel(
        title="Time to answer a search",
        says="Quantiles.",
        queries=tuple(
            PromQuery(
                f"histogram_quantile({share}, sum by (le) "
                '(rate(searchloop_serve_request_duration_seconds_bucket{route="/search"}[5m])))',
                f"p{share[2:].ljust(2, '0')}",
            )
            for share in ("0.5", "0.95", "0.99")
        ),
        unit="s",
        width=12,
    ),
    DashboardPanel(
        title="Share of errors",
        says="Answers of class 5xx among all.",
        queries=(
            PromQuery(
                '(sum(rate(searchloop_serve_requests_total{status="5xx"}[5m])) or vector(0)) '
                "/ sum(rate(searchloop_serve_requests_total[5m]))",
                "errors",
            ),
        ),
        unit="percentunit",
    ),
    DashboardPanel(
        title="What people are shown",
        says="Shares of raw, helped and interleaved searches.",
        queries=(
            PromQuery(
                "sum by (shown) (rate(searchloop_serve_searches_total[5m])) "
                "/ on () group_left sum(rate(searchloop_serve_searches_total[5m]))",
                "{{shown}}",
            ),
        ),
        unit="percentunit",
    ),
    DashboardPanel(
        title="Events a second",
        says="Accepted, refused, and those that there was no space for.",
        queries=(PromQuery("sum by (outcome) (rate(searchloop_serve_events_total[5m]))", "{{outcome}}"),),
        unit="ops",
    ),
    DashboardPanel(
        title="Events that wait for Kafka",
        says="On the server's disk.",
        queries=(PromQuery("searchloop_serve_spool_waiting_bytes", "{{instance}}"),),
        unit="bytes",
    ),
    DashboardPanel(
        title="Trouble",
        says="Parts with trouble now.",
        queries=(
            PromQuery("searchloop_serve_trouble", "{{part}}"),
            PromQuery("increase(searchloop_serve_lost_impressions_total[1h])", "impressions lost in an hour"),
            PromQuery("searchloop_serve_draining", "draining"),
        ),
    ),
    DashboardPanel(
        title="Ready answers",
        says="Queries that need no model.",
        queries=(PromQuery("searchloop_serve_ready_answers", "{{instance}}"),),
        kind="stat",
    ),
    DashboardPanel(
        title="What serves",
        says="Run, index, and versions that may help.",
        queries=(
            PromQuery("max by (run, index) (searchloop_serve_info)", "{{run}} on {{index}}"),
            PromQuery("max by (role, policy) (searchloop_serve_policy_info)", "{{role}}: {{policy}}"),
            PromQuery("time() - searchloop_serve_start_timestamp_seconds", "seconds since the start"),
        ),
        kind="stat",
        width=16,
    ),
)


def files() -> dict[str, str]:
    """Return the folder's files by path."""
    return {
        "dashboards/loop.json": _dashboard("searchloop-loop", "Searchloop: the loop", LOOP, by_run=True),
        "dashboards/serving.json": _dashboard("searchloop-serving", "Searchloop: serving", SERVING, by_run=False),
        "prometheus-rules.yml": prometheus_rules(),
        "provisioning/alerting/searchloop.yml": grafana_rules(),
        "provisioning/dashboards/searchloop.yml": as_yaml(
            {
                "apiVersion": 1,
                "providers": [
                    {
                        "name": "searchloop",
                        "folder": FOLDER,
                        "folderUid": "searchloop",
                        "type": "file",
                        "allowUiUpdates": False,
                        "options": {"path": "${SEARCHLOOP_DASHBOARDS}"},
                    }
                ],
            }
        ),
        "provisioning/datasources/searchloop.yml": as_yaml(
            {
                "apiVersion": 1,
                "datasources": [
                    {
                        "name": "Searchloop",
                        "uid": DATASOURCE,
                        "type": "prometheus",
                        "access": "proxy",
                        "url": "${SEARCHLOOP_PROMETHEUS}",
                        "editable": False,
                    }
                ],
            }
        ),
    }


def write(folder: Path) -> None:
    """Write the files. Raises SettingsError if the folder holds anything, so nobody's dashboards are overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder}: expected a new or an empty folder, got one with content. Name another one")
    for name, content in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content.encode())


def _dashboard(uid: str, title: str, panels: Sequence[DashboardPanel], *, by_run: bool) -> str:
    made = {
        "uid": uid,
        "title": title,
        "tags": ["searchloop"],
        "timezone": "browser",
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": 38,
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_run_variable()] if by_run else []},
        "panels": _placed(panels),
    }
    return json.dumps(made, indent=2) + "\n"


def _run_variable() -> dict[str, Any]:
    query = "label_values(searchloop_run_info, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "run"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "sort": 1,
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(panels: Sequence[DashboardPanel]) -> list[dict[str, Any]]:
    """Return the panels in rows from left to right."""
    found, x, y = [], 0, 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y = 0, y + HEIGHT
        found.append(_panel(panel, number, x, y))
        x += panel.width
    return found


def _panel(panel: DashboardPanel, number: int, x: int, y: int) -> dict[str, Any]:
    instant = panel.kind == "stat"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "instant": instant,
                "range": not instant,
            }
            for place, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": _stat_options() if instant else {"tooltip": {"mode": "multi", "sort": "desc"}},
    }


def _stat_options() -> dict[str, Any]:
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
        "textMode": "value_and_name",
        "colorMode": "none",
    }


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]))
    except IndexError:
        sys.exit("expected a folder: python -m infra.monitoring.dashboards FOLDER")
    except SettingsError as error:
        sys.exit(str(error))
