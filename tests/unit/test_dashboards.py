"""Dashboards and rules: each query uses metrics and labels that exist, and Grafana's own types read every file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.monitoring.alert_rules import DATASOURCE, RULES
from infra.monitoring.dashboards import files, write
from storage.monitor.metrics import LOOP, PREFIX, SERVE
from streams.errors import SettingsError

FOLDER = Path(__file__).parents[2] / "infra" / "monitoring" / "grafana"
SCRAPED = {"job", "instance"}  # Prometheus adds these to every series.
LABELS = {name: set(each.labels) | SCRAPED for each in (*LOOP, *SERVE) for name in each.series()}
LABELS = {name: labels | ({"le"} if name.endswith("_bucket") else set()) for name, labels in LABELS.items()}


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))}


def panel_queries() -> Iterator[tuple[str, str]]:
    """Give each panel's title and query."""
    for board in dashboards().values():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{board['uid']}: {panel['title']}", target["expr"]


def all_queries() -> list[tuple[str, str]]:
    """Return every query of the folder, with the name of what asks it."""
    found = list(panel_queries())
    for board in dashboards().values():
        for variable in board["templating"]["list"]:
            found.append((variable["name"], variable["query"]["query"]))
    rules = yaml.safe_load((FOLDER / "prometheus-rules.yml").read_text())
    found += [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]
    alerting = yaml.safe_load((FOLDER / "provisioning" / "alerting" / "searchloop.yml").read_text())
    return found + [
        (rule["uid"], query["model"]["expr"])
        for group in alerting["groups"]
        for rule in group["rules"]
        for query in rule["data"]
        if query["datasourceUid"] == DATASOURCE
    ]


def labels_used(query: str) -> set[str]:
    """Return the labels in matchers, groupings and label_values."""
    found = {
        name for group in re.findall(r"\{([^}]*)\}", query) for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", group)
    }
    for group in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", query):
        found |= {name.strip() for name in group.split(",") if name.strip()}
    return found | set(re.findall(r"label_values\(\w+, (\w+)\)", query))


@pytest.mark.parametrize(("asks", "query"), all_queries())
def test_a_query_uses_metrics_and_labels_that_exist(asks: str, query: str) -> None:
    names = set(re.findall(rf"\b{PREFIX}\w+", query))
    assert names, asks
    assert names <= set(LABELS), asks
    assert labels_used(query) <= set.union(*(LABELS[name] for name in names)), asks


def test_every_metric_but_the_time_of_reading_is_on_a_dashboard() -> None:
    shown = {name for _, query in panel_queries() for name in re.findall(rf"\b{PREFIX}\w+", query)}
    missing = {each.name for each in (*LOOP, *SERVE) if not shown & set(each.series())}
    assert missing == {"searchloop_run_read_timestamp_seconds", "searchloop_run_alerts_firing"}


def test_the_folder_is_what_the_code_says() -> None:
    found = {str(path.relative_to(FOLDER)): path.read_text() for path in FOLDER.rglob("*") if path.is_file()}
    assert found == files(), "run: python -m infra.monitoring.dashboards NEW, and copy it to infra/monitoring/grafana"


def test_uids_are_fixed_and_each_query_goes_to_the_one_datasource() -> None:
    assert {name: board["uid"] for name, board in dashboards().items()} == {
        "loop": "searchloop-loop",
        "serving": "searchloop-serving",
    }
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/searchloop.yml").read_text())["datasources"]
    assert source["uid"] == DATASOURCE
    for board in dashboards().values():
        for panel in board["panels"]:
            used = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert {each["uid"] for each in used} == {DATASOURCE}
    uids = [rule.uid for rule in RULES]
    assert len(set(uids)) == len(uids)
    assert all(re.fullmatch(r"[a-z0-9-]{1,40}", uid) for uid in uids)


def test_panels_fill_rows_of_24_and_do_not_overlap() -> None:
    for board in dashboards().values():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken and max(x for x, _ in cells) < 24
            taken |= cells


def test_grafanas_own_types_know_every_field_of_the_dashboards() -> None:
    """Oracle: Grafana's Python types, generated from its schema. They drop a field that they do not know."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    for board in dashboards().values():
        known = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
        for name, value in board.items():
            if name not in ("panels", "templating"):
                assert known[name] == value, name
        for ours, theirs in zip(board["panels"], known["panels"], strict=True):
            assert {name: theirs.get(name) for name in ours} == ours
        for ours, theirs in zip(board["templating"]["list"], known["templating"]["list"], strict=True):
            assert set(ours) <= set(theirs)


def test_grafanas_own_types_know_every_field_of_the_alert_rules() -> None:
    from grafana_foundation_sdk.models.alerting import Query

    alerting = yaml.safe_load((FOLDER / "provisioning" / "alerting" / "searchloop.yml").read_text())
    (group,) = alerting["groups"]
    for rule in group["rules"]:
        # Of a file the rule holds these; the folder and the group stand above it.
        assert {"uid", "title", "condition", "data", "for", "noDataState", "execErrState"} <= set(rule)
        assert rule["condition"] in {query["refId"] for query in rule["data"]}
        assert "$" not in json.dumps([rule["labels"], rule["data"], rule["title"]]), "Grafana would replace it"
        for query in rule["data"]:
            assert {"refId", "datasourceUid", "model"} <= set(query)
            assert Query.from_json(query).ref_id == query["refId"]


def test_a_folder_with_content_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "new")
    assert {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.*")} == set(files())
    with pytest.raises(SettingsError, match="expected a new or an empty folder"):
        write(tmp_path / "new")
