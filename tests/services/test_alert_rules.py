"""The rules and dashboards in a real Prometheus: each rule fires and recovers, and each panel has something to show."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import NamedTuple

import yaml

from infra.monitoring.alert_rules import RULES
from infra.monitoring.exposition import metrics_text
from services.local import Endpoints
from tests.kafka_cluster import wait_until
from tests.prometheus import prometheus, promtool
from tests.services.test_prometheus import SCRAPE, answering
from tests.services.test_serving import click, serving, shop
from tests.unit.test_dashboards import FOLDER, panel_queries
from tests.unit.test_metrics import full_values

__all__ = ["shop"]

RULE_FILE = FOLDER / "prometheus-rules.yml"
WORKS = 'searchloop_run_info{run="r", state="running"}', "1x240"
LABEL = {"run": "r"}
BUCKET = 'searchloop_serve_request_duration_seconds_bucket{job="s", route="/search"}'


class Case(NamedTuple):
    """Series by name as promtool writes them, a minute a value; when a rule fires, and when it has recovered.

    recovered: None where the values never allow it within the case.
    """

    series: dict[str, str]
    fires: str
    labels: dict[str, str]
    recovered: str | None


CASES = {
    "RunStalled": Case({'searchloop_run_info{run="r", state="stalled"}': "1x10 _x20"}, "5m", LABEL, "20m"),
    "RunAlert": Case(
        {'searchloop_run_alert_firing{run="r", alert="stall"}': "1x10 0x20"}, "5m", LABEL | {"alert": "stall"}, "20m"
    ),
    "LagRises": Case(
        {'searchloop_run_lag_seconds{run="r", stage="learner"}': "0+30x20 0x20", WORKS[0]: WORKS[1]},
        "15m",
        LABEL | {"stage": "learner"},
        "35m",
    ),
    "DeadLetters": Case(
        {
            'searchloop_run_dead_letters_total{run="r", stage="sink"}': "0+1x30 30x200",
            'searchloop_run_groups_total{run="r"}': "0+100x230",
        },
        "20m",
        LABEL,
        "150m",
    ),
    "AccountingResidual": Case(
        {'searchloop_run_accounting_residual_records{run="r"}': "2x10 0x20"}, "8m", LABEL, "20m"
    ),
    "FailedOutcomes": Case(
        {
            'searchloop_run_candidates{run="r", fate="failed"}': "5x230",
            'searchloop_run_candidates{run="r", fate="scored"}': "100x20 1000x200",
        },
        "15m",
        LABEL,
        "60m",
    ),
    "NoUpdate": Case(
        {'searchloop_run_last_update_timestamp_seconds{run="r"}': "0x90 5400x30", WORKS[0]: WORKS[1]},
        "70m",
        LABEL,
        "100m",
    ),
    "ServeErrors": Case(
        {
            'searchloop_serve_requests_total{job="s", route="/search", status="5xx"}': "0+10x20 200x40",
            'searchloop_serve_requests_total{job="s", route="/search", status="2xx"}': "0+90x60",
        },
        "15m",
        {"job": "s"},
        "50m",
    ),
    "ServeSlow": Case(
        {
            f'{BUCKET[:-1]}, le="1"}}': "0x30 0+100x40",
            f'{BUCKET[:-1]}, le="2.5"}}': "0+10x30 300+100x40",
            f'{BUCKET[:-1]}, le="5"}}': "0+100x70",
            f'{BUCKET[:-1]}, le="+Inf"}}': "0+100x70",
        },
        "25m",
        {"job": "s"},
        "60m",
    ),
    "ServeTrouble": Case(
        {'searchloop_serve_trouble{job="s", part="kafka"}': "1x10 0x20"}, "8m", {"job": "s", "part": "kafka"}, "20m"
    ),
    "EventsWait": Case({'searchloop_serve_spool_waiting_bytes{job="s"}': "2e7x30 0x30"}, "20m", {"job": "s"}, "45m"),
    "EventsLost": Case({'searchloop_serve_lost_impressions_total{job="s"}': "0x5 3x50"}, "8m", {"job": "s"}, "40m"),
}


def test_each_rule_fires_on_its_fault_and_recovers(tmp_path: Path) -> None:
    """Oracle: promtool's own evaluation of rules over written series."""
    assert set(CASES) == {rule.name for rule in RULES}
    promtool("check", "rules", str(RULE_FILE))
    tests = []
    for rule in RULES:
        case = CASES[rule.name]
        told = {"exp_labels": {"severity": rule.severity, **case.labels}, "exp_annotations": {"summary": rule.says}}
        for name, value in case.labels.items():
            told["exp_annotations"]["summary"] = told["exp_annotations"]["summary"].replace(
                f"{{{{ $labels.{name} }}}}", value
            )
        alert = f"Searchloop{rule.name}"
        expected = [{"eval_time": case.fires, "alertname": alert, "exp_alerts": [told]}]
        if case.recovered is not None:
            expected.append({"eval_time": case.recovered, "alertname": alert, "exp_alerts": []})
        series = [{"series": name, "values": values} for name, values in case.series.items()]
        tests.append({"name": rule.name, "interval": "1m", "input_series": series, "alert_rule_test": expected})
    path = tmp_path / "cases.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULE_FILE)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(path))


def test_a_run_that_has_stopped_rings_no_bell_about_waiting_work(tmp_path: Path) -> None:
    series = {
        'searchloop_run_lag_seconds{run="r", stage="learner"}': "0+60x240",
        'searchloop_run_last_update_timestamp_seconds{run="r"}': "0x240",
        'searchloop_run_info{run="r", state="stopped"}': "1x240",
    }
    quiet = [
        {"eval_time": at, "alertname": f"Searchloop{name}", "exp_alerts": []}
        for name in ("LagRises", "NoUpdate", "RunStalled")
        for at in ("30m", "120m", "200m")
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    case = {"interval": "1m", "input_series": inputs, "alert_rule_test": quiet}
    path = tmp_path / "quiet.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULE_FILE)], "tests": [case]}))
    assert "SUCCESS" in promtool("test", "rules", str(path))


def test_prometheus_loads_the_rules_and_every_panel_has_data(
    shop: tuple[Path, str], local_services: Endpoints, tmp_path: Path
) -> None:
    home, index = shop
    configuration = f'{SCRAPE}\nrule_files: ["{RULE_FILE}"]\n'
    stop = threading.Event()
    with (
        serving(home, index, local_services, SEARCHLOOP_SERVE__UNGATED="true") as server,
        answering(metrics_text([full_values()])) as loop,
    ):

        def visit() -> None:
            """Keep the rates above 0."""
            while not stop.wait(0.5):
                _, found = server.get("/search?query=red+mug")
                server.post("/events", [click(found["query_id"])])

        visitor = threading.Thread(target=visit)
        visitor.start()
        try:
            targets = ", ".join(f'"{each}"' for each in (server.url.removeprefix("http://"), loop))
            with prometheus(tmp_path / "prometheus", configuration.format(token="none", targets=targets)) as asked:
                loaded = {rule["name"] for rule in asked.rules()}
                assert loaded == {f"Searchloop{rule.name}" for rule in RULES}
                wait_until(asked.targets_up, "both targets were scraped", seconds=60)
                # A server without a policy has no version to name.
                wanted = {
                    query.replace("$run", ".+") for _, query in panel_queries() if "serve_policy_info" not in query
                }
                empty = set(wanted)

                def all_drawn() -> bool:
                    empty.difference_update([query for query in empty if asked.query(query)])
                    return not empty

                with contextlib.suppress(TimeoutError):
                    wait_until(all_drawn, "every panel has data", seconds=60)
                assert empty == set(), "these panels stay empty"
                assert all(rule["health"] in ("ok", "unknown") for rule in asked.rules())
        finally:
            stop.set()
            visitor.join()
