"""What the chart's pods may do: restricted security, one node's volume, few ways over the network, rights of a role."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from infra.app.chart_tables import FILES, chart_tables
from infra.app.layers import combine, environment_layer
from infra.app.settings import Settings
from infra.cli import cli
from streams.acls import Acl, acls_of
from streams.errors import SettingsError
from streams.kafka_settings import KafkaSettings
from streams.topic_plans import FoundTopic, differences, plan_derived_topics, plan_topics, unequal_partitions
from tests.helm_chart import (
    CASES,
    EXTERNAL,
    WHOLE,
    Manifest,
    containers,
    named,
    of_kind,
    ours,
    pods,
    render,
    restricted_faults,
    variables,
)

OF_THE_CLI = {parameter.envvar for parameter in cli.params if parameter.envvar}
COMING = {"store.url"}  # The object store's setting.


@pytest.fixture(scope="module", params=list(CASES))
def objects(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(CASES[request.param])


@pytest.fixture(scope="module")
def whole() -> list[Manifest]:
    return render(WHOLE)


def test_every_pod_meets_the_restricted_standard_with_a_read_only_root_and_no_token(objects: list[Manifest]) -> None:
    for component, template in pods(objects):
        assert restricted_faults(template) == [], component
        assert template["spec"]["automountServiceAccountToken"] is False
        assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in containers(template))
        assert all({"requests", "limits"} <= set(each["resources"]) for each in containers(template))
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("allowPrivilegeEscalation", True, "train: allowPrivilegeEscalation"),
        ("capabilities", {"drop": ["ALL"], "add": ["SYS_PTRACE"]}, "train: capabilities"),
        ("runAsUser", 0, "train: root"),
        ("seccompProfile", {"type": "Unconfined"}, "train: seccomp"),
    ],
)
def test_a_pod_that_asks_for_more_than_the_standard_is_found(
    whole: list[Manifest], field: str, value: Any, fault: str
) -> None:
    template = copy.deepcopy(dict(pods(whole))["train"])
    ours(template)["securityContext"][field] = value
    assert restricted_faults(template) == [fault]


def test_no_volume_is_shared_by_nodes_and_all_pods_of_the_home_share_its_node(objects: list[Manifest]) -> None:
    (claim,) = of_kind(objects, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    users = set()
    for component, template in pods(objects):
        mounts = [
            each
            for each in template["spec"]["volumes"]
            if each.get("persistentVolumeClaim", {}).get("claimName") == "shop-home"
        ]
        labels = template["metadata"]["labels"]
        if not mounts:
            assert "searchloop.io/home" not in labels
            continue
        users.add(component)
        (term,) = template["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        # The first pod finds no other, and may go anywhere, because it matches the term itself.
        assert term["labelSelector"]["matchLabels"].items() <= labels.items()
    assert users == {"train", "serve", "listen", "ui", "monitor"} | ({"load"} & set(dict(pods(objects))))


def reachable(objects: list[Manifest], labels: dict[str, str], way: str) -> dict[int, list[Any]]:
    """Return the ports that a pod may reach ("egress") or be reached at ("ingress"), and the peers of each."""
    selecting = [
        each["spec"]
        for each in of_kind(objects, "NetworkPolicy")
        if each["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
        and all(
            labels.get(term["key"]) in term["values"]
            for term in each["spec"]["podSelector"].get("matchExpressions", ())
        )
    ]
    assert any(way.title() in spec["policyTypes"] for spec in selecting), f"no policy denies {labels} {way}"
    open_: dict[int, list[Any]] = {}
    for spec in selecting:
        for rule in spec.get(way, ()):
            for port in rule["ports"]:
                open_[port["port"]] = rule.get("to" if way == "egress" else "from", [])
    return open_


def test_a_pod_reaches_only_what_its_role_needs(whole: list[Manifest]) -> None:
    found = {name: set(reachable(whole, each["metadata"]["labels"], "egress")) for name, each in pods(whole)}
    dns, kafka, engine, store = 53, 9093, 9200, 443
    assert found == {
        "load": {dns, kafka, engine, store},
        "train": {dns, kafka, engine, store},
        "environment": {dns, kafka, engine, store},
        "generator": {dns, kafka, store},
        "serve": {dns, kafka, engine, store},
        "listen": {dns, kafka, store},
        "ui": {dns, kafka},
        "monitor": {dns, kafka},
    }
    train = reachable(whole, dict(pods(whole))["train"]["metadata"]["labels"], "egress")
    assert train[kafka][0]["podSelector"]["matchLabels"]["strimzi.io/cluster"] == "kafka"
    assert train[engine][0]["podSelector"]["matchLabels"] == {"elasticsearch.k8s.elastic.co/cluster-name": "shop"}


def test_a_pod_is_reached_only_where_the_values_say(whole: list[Manifest]) -> None:
    found = {name: set(reachable(whole, each["metadata"]["labels"], "ingress")) for name, each in pods(whole)}
    assert found == {name: {8600} if name == "serve" else {8700} if name == "ui" else set() for name in found}
    closed = render(EXTERNAL)
    for _, each in pods(closed):
        assert reachable(closed, each["metadata"]["labels"], "ingress") == {}


def test_kafka_users_have_the_rights_of_their_roles_and_no_other(whole: list[Manifest]) -> None:
    for role in ("operator", "environment", "generator", "monitor"):
        user = named(whole, "KafkaUser", f"shop-{role}")
        given = {
            Acl(
                role=role,
                resource=acl["resource"]["type"].upper(),
                name=acl["resource"].get("name", "kafka-cluster"),
                operation=re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper(),  # type: ignore[arg-type]
                prefixed=acl["resource"].get("patternType") == "prefix",
            )
            for acl in user["spec"]["authorization"]["acls"]
            for operation in acl["operations"]
        }
        assert given == {acl for run in ("leser-shop-1", "live") for acl in acls_of(run) if acl.role == role}


def test_kafka_topics_are_those_that_searchloop_accepts_as_its_own(whole: list[Manifest]) -> None:
    kafka = KafkaSettings(partitions=12, replication=3)
    live_ms = kafka.live_retention_hours * 3_600_000
    for run in ("leser-shop-1", "live"):
        plans = [
            *plan_topics(run, partitions=kafka.partitions, replication=kafka.replication, live_ms=live_ms),
            *plan_derived_topics(run, replication=kafka.replication),
        ]
        there = []
        for plan in plans:
            topic = named(whole, "KafkaTopic", plan.name)
            assert topic["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
            spec = topic["spec"]
            found = FoundTopic(
                name=plan.name,
                topic_id="",
                partitions=spec["partitions"],
                replication=spec["replicas"],
                used=False,
                settings=spec["config"],
            )
            assert differences(plan, found, ours=False) == []
            there.append((plan, found))
        assert unequal_partitions(there, ours=False) == []
    assert len(of_kind(whole, "KafkaTopic")) == 2 * len(plans)


def test_the_tables_in_the_chart_are_those_of_the_code() -> None:
    assert {path.name: path.read_bytes() for path in FILES.iterdir()} == chart_tables()


def test_each_role_logs_in_as_its_own_user(objects: list[Manifest]) -> None:
    def user(component: str) -> str:
        return variables(ours(dict(pods(objects))[component]))["SEARCHLOOP_KAFKA__SASL_USERNAME"]

    if "environment" in dict(pods(objects)):
        assert (user("train"), user("environment"), user("monitor")) == (
            "shop-operator",
            "shop-environment",
            "shop-monitor",
        )
    else:
        assert (user("train"), user("serve"), user("monitor")) == ("operator", "operator", "watcher")


def test_the_addresses_of_services_never_reach_searchloop_as_variables(objects: list[Manifest]) -> None:
    # Kubernetes would give each pod SHOP_SERVE_PORT; a release called searchloop would give SEARCHLOOP_SERVE_PORT.
    with pytest.raises(SettingsError, match="serve_port"):
        combine(Settings, [("service links", environment_layer({"SEARCHLOOP_SERVE_PORT": "tcp://10.0.0.1:8600"}))])
    assert [template["spec"]["enableServiceLinks"] for _, template in pods(objects)] == [False] * len(
        list(pods(objects))
    )
