"""The tables of the Helm chart, from the code: `python -m infra.app.chart_tables` writes them into the chart.

The chart makes topics and users for Strimzi. Which topics there are, their settings and each role's rights stand in
`streams/topics.py`, `streams/topic_plans.py` and `streams/acls.py`, and a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from streams.acls import acls_of
from streams.topic_plans import COMPRESSION, TopicPlan, plan_derived_topics, plan_topics
from streams.topics import BY_KIND

FILES = Path(__file__).parents[2] / "deploy" / "searchloop" / "files"
RUN = "run"  # Stands in the tables' making for each run's name.
OF_VALUES = ("min.insync.replicas",)  # The chart computes it from the number of replicas.


def chart_topics() -> list[dict[str, Any]]:
    """Return every topic of a run: its kind, whether it is partitioned or holds live traffic, and its settings."""
    plans = [*plan_topics(RUN, partitions=1, replication=1), *plan_derived_topics(RUN, replication=1)]
    return [
        {
            "kind": plan.kind,
            "partitioned": plan.partitioned,
            "live": plan.kind in BY_KIND and BY_KIND[plan.kind].live,
            "config": _config(plan),
        }
        for plan in plans
    ]


def chart_acls() -> dict[str, list[dict[str, Any]]]:
    """Return each role's rights in Strimzi's words; names are those after the run's, such as `.requests`."""
    roles: dict[str, dict[tuple[str, str, bool], list[str]]] = {}
    for acl in acls_of(RUN):
        named = acl.resource != "CLUSTER"
        resource = (acl.resource.lower(), acl.name.removeprefix(f"{RUN}.") if named else "", acl.prefixed)
        operation = acl.operation.title().replace("_", "")
        roles.setdefault(acl.role, {}).setdefault(resource, []).append(operation)
    return {
        role: [
            {
                "type": kind,
                "named": kind != "cluster",
                "name": name,
                "patternType": "prefix" if prefixed else "literal",
                "operations": operations,
            }
            for (kind, name, prefixed), operations in resources.items()
        ]
        for role, resources in roles.items()
    }


def chart_tables() -> dict[str, bytes]:
    """Return the content of each table by its file's name."""
    tables = {"topics.json": chart_topics(), "acls.json": chart_acls()}
    return {name: msgspec.json.format(msgspec.json.encode(table)) + b"\n" for name, table in tables.items()}


def main() -> None:
    """Write the tables into the chart."""
    FILES.mkdir(parents=True, exist_ok=True)
    for name, content in chart_tables().items():
        (FILES / name).write_bytes(content)


def _config(plan: TopicPlan) -> dict[str, str]:
    return {name: value for name, value in (plan.required() | COMPRESSION).items() if name not in OF_VALUES}


if __name__ == "__main__":
    main()
