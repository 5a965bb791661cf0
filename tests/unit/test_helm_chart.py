"""The Helm chart: every object fits its schema, every command line and variable is one that searchloop takes, and the
cluster lets a pod do what its role needs, and nothing else."""

from __future__ import annotations

import copy
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import msgspec
import pytest

from infra.app.layers import combine, environment_layer
from infra.app.settings import Settings
from infra.cli import cli
from infra.serving.openapi import ROUTES
from learner.vllm import addresses
from services.vllm import VllmModel, VllmServerSettings, vllm_command
from streams.acls import RIGHTS
from streams.kafka_settings import KafkaSettings
from tests.helm_chart import (
    CASES,
    CHART,
    EXTERNAL,
    WHOLE,
    Manifest,
    arguments,
    changed,
    containers,
    named,
    of_kind,
    ours,
    parse,
    pods,
    render,
    restricted_faults,
    schema_errors,
    variables,
    with_secrets,
)

OF_THE_CLI = {parameter.envvar for parameter in cli.params if parameter.envvar}


@pytest.fixture(scope="module", params=list(CASES))
def objects(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(CASES[request.param])


@pytest.fixture(scope="module")
def whole() -> list[Manifest]:
    return render(WHOLE)


def test_helms_own_lint_finds_nothing_but_the_missing_icon() -> None:
    found = helm_python.lint(CHART)
    assert [message["error"] for message in found["messages"]] == ["icon is recommended"]
    assert found["errors"] == []


def test_every_object_fits_the_schema_of_its_kind(objects: list[Manifest]) -> None:
    assert {f"{each['kind']} {each['metadata']['name']}": schema_errors(each) for each in objects} == {
        f"{each['kind']} {each['metadata']['name']}": [] for each in objects
    }


def test_the_schemas_refuse_a_field_that_does_not_exist_and_a_value_out_of_range(whole: list[Manifest]) -> None:
    for kind, path, value in (
        ("StatefulSet", ("spec", "replica"), 1),
        ("Job", ("spec", "podReplacementPolicy"), 3),
        ("KafkaTopic", ("spec", "partition"), 1),
        ("KafkaUser", ("spec", "authentication", "type"), "password"),
        ("ScaledObject", ("spec", "maxReplicas"), 3),
        ("Elasticsearch", ("spec", "volumeClaimDeletePolicy"), "Keep"),
        ("ServiceMonitor", ("spec", "endpoints"), {}),
    ):
        wrong = copy.deepcopy(of_kind(whole, kind)[0])
        table = wrong
        for name in path[:-1]:
            table = table[name]
        table[path[-1]] = value
        assert schema_errors(wrong), f"{kind}.{'.'.join(path)} = {value!r} was accepted"


def test_the_operators_pod_template_and_claims_fit_too(whole: list[Manifest]) -> None:
    (nodes,) = of_kind(whole, "Elasticsearch")[0]["spec"]["nodeSets"]
    labels = {"app": "engine"}
    template = nodes["podTemplate"] | {"metadata": {"labels": labels}}
    template["spec"]["containers"][0] |= {"image": "the operator's"}
    holder = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "engine"},
        "spec": {
            "serviceName": "engine",
            "selector": {"matchLabels": labels},
            "template": template,
            "volumeClaimTemplates": nodes["volumeClaimTemplates"],
        },
    }
    assert schema_errors(holder) == []
    assert restricted_faults(template) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("train.gpus", -1, "at '/train/gpus': minimum"),
        ("run", "Leser_1", "at '/run'"),
        ("no_such_value", 1, "additional properties 'no_such_value' not allowed"),
        ("serve.tokenSecret", {"name": "", "key": "serve"}, "at '/serve/tokenSecret/name'"),
        ("elasticsearch.url", "http://search.example", "at '/elasticsearch/url'"),
        ("kafka.bootstrap", "", "kafka.bootstrap: expected the addresses of your brokers, or strimzi.cluster"),
        ("kafka.users.operator.secret", "", "kafka.users.operator.secret: expected a secret with the key `password`"),
        ("elasticsearch.secret.name", "", "elasticsearch.secret.name: expected a secret with an API key"),
        ("environment.enabled", True, "environment.enabled: expected store.url with it"),
        ("strimzi.topics", True, "strimzi.cluster: expected the name of a Kafka cluster with strimzi.topics"),
        ("store.url", "abfss://container@account/prefix", "at '/store/url'"),
        ("store.url", "s3://key:secret@bucket", "at '/store/url'"),
        ("load.enabled", True, "load.claim: expected a volume claim with the corpus"),
    ],
)
def test_wrong_values_are_refused_with_what_was_expected(path: str, value: Any, said: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        render(changed(EXTERNAL, path, value))
    assert said in str(refused.value)


def test_the_cli_takes_every_command_line(objects: list[Manifest]) -> None:
    verbs = {}
    for component, template in pods(objects):
        parsed = parse(arguments(ours(template)))
        verbs[component] = parsed.info_name
        if parsed.info_name == "run":
            assert parsed.params["role"] == component
            assert parsed.params["run_name"] in ("leser-shop-0", "leser-shop-1")
    runs = dict.fromkeys(("environment", "generator", "monitor"), "run")
    stay = {"load": "index", "train": "train", "serve": "serve", "listen": "listen", "ui": "ui"}
    assert verbs == {name: verb for name, verb in (stay | runs).items() if name in verbs}
    assert {"train", "serve", "listen", "ui", "monitor"} <= set(verbs)


def test_train_leaves_to_other_nodes_exactly_the_roles_that_have_pods_of_their_own() -> None:
    for environment, generator in ((False, False), (True, False), (False, True), (True, True)):
        values = changed(changed(WHOLE, "environment.enabled", environment), "generator.enabled", generator)
        by_component = dict(pods(render(values)))
        train = parse(arguments(ours(by_component["train"])))
        assert set(train.params["elsewhere"]) == {"environment", "generator"} & set(by_component)


def test_every_variable_is_a_setting_and_every_value_one_that_it_takes(objects: list[Manifest], tmp_path: Path) -> None:
    seen = set()
    for _, template in pods(objects):
        given = {
            name: value
            for name, value in with_secrets(variables(ours(template)), tmp_path).items()
            if name.startswith("SEARCHLOOP_") and name not in OF_THE_CLI
        }
        combine(Settings, [("the chart", environment_layer(given))])
        seen |= set(given)
    assert {"SEARCHLOOP_KAFKA__BOOTSTRAP", "SEARCHLOOP_ELASTICSEARCH__URL", "SEARCHLOOP_UI__NAMES"} <= seen


def test_the_file_of_settings_is_one_that_searchloop_takes(objects: list[Manifest]) -> None:
    text = named(objects, "ConfigMap", "shop-config")["data"]["searchloop.toml"]
    assert combine(Settings, [("the chart", tomllib.loads(text))]).generation.candidates == 8


def test_environments_follow_the_lag_of_the_topic_that_they_read(whole: list[Manifest]) -> None:
    (scaled,) = of_kind(whole, "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["topic"] == "leser-shop-1.generations"
    assert trigger["metadata"]["topic"].split(".")[1] in RIGHTS["environment"].reads
    assert trigger["metadata"]["consumerGroup"] == f"leser-shop-1.{RIGHTS['environment'].joins_groups[0]}"
    target = named(whole, "StatefulSet", scaled["spec"]["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"], "each upgrade would set the number back"
    assert scaled["spec"]["maxReplicaCount"] <= WHOLE["partitions"]
    with pytest.raises(helm_python.HelmError, match=r"keda\.replicasMax: expected at most partitions \(12\)"):
        render(changed(WHOLE, "keda.replicasMax", 13))
    with pytest.raises(helm_python.HelmError, match=r"keda\.replicasMin: expected at most keda\.replicasMax \(12\)"):
        render(changed(WHOLE, "keda.replicasMin", 13))
    (login,) = of_kind(whole, "TriggerAuthentication")
    keys = {each["parameter"]: each for each in login["spec"]["secretTargetRef"]}
    assert set(keys) == {"username", "password", "ca"}
    assert keys["password"]["name"] == named(whole, "KafkaUser", "shop-scaler")["metadata"]["name"]
    assert named(whole, "Secret", keys["username"]["name"])["stringData"]["username"] == "shop-scaler"


def test_workers_are_numbered_from_one_as_the_cli_wants(whole: list[Manifest]) -> None:
    for role in ("environment", "generator"):
        spec = named(whole, "StatefulSet", f"shop-{role}")["spec"]
        assert spec["ordinals"]["start"] == 1
        worker = next(each for each in ours(spec["template"])["env"] if each["name"] == "WORKER")
        assert worker["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['apps.kubernetes.io/pod-index']"
        assert ours(spec["template"])["args"][-1] == "$(WORKER)"
        budget = named(whole, "PodDisruptionBudget", f"shop-{role}")["spec"]
        assert budget["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_http_probes_ask_paths_that_need_no_token_at_the_port_that_is_open(objects: list[Manifest]) -> None:
    open_ = {"serve": {route.path for route in ROUTES}, "ui": {"/health"}}
    asked = 0
    for component, template in pods(objects):
        container = ours(template)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if http := container.get(probe, {}).get("httpGet"):
                assert http["path"] in open_[component]
                assert http["port"] == container["ports"][0]["name"]
                asked += 1
    assert asked == 6
    serve = ours(dict(pods(objects))["serve"])
    assert serve["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert serve["ports"][0]["containerPort"] == Settings().serve.port
    assert ours(dict(pods(objects))["ui"])["ports"][0]["containerPort"] == Settings().ui.port


def test_a_worker_is_alive_while_its_polls_touch_the_file(whole: list[Manifest], tmp_path: Path) -> None:
    file = tmp_path / "alive"
    for role in ("environment", "generator", "listen"):
        container = ours(dict(pods(whole))[role])
        path = variables(container)["SEARCHLOOP_BEAT__FILE"]

        def answer(probe: str, container: Manifest = container, path: str = path) -> int:
            command = [part.replace(path, str(file)) for part in container[probe]["exec"]["command"]]
            return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode

        file.unlink(missing_ok=True)
        assert (answer("startupProbe"), answer("readinessProbe"), answer("livenessProbe")) == (1, 1, 1)
        file.touch()
        assert (answer("startupProbe"), answer("readinessProbe"), answer("livenessProbe")) == (0, 0, 0)
        longest = KafkaSettings().poll_interval_seconds_max
        old = file.stat().st_mtime - longest - 61
        os.utime(file, (old, old))
        assert answer("livenessProbe") == 1
        # A container that is started again finds the volume as its process before left it.
        command = container["lifecycle"]["postStart"]["exec"]["command"]
        subprocess.run([part.replace(path, str(file)) for part in command], check=True)
        assert (answer("startupProbe"), answer("readinessProbe")) == (1, 1)


def test_a_changed_job_gets_a_new_name_and_an_unchanged_one_keeps_its(whole: list[Manifest]) -> None:
    def job(values: Manifest) -> str:
        (found,) = [each for each in of_kind(render(values), "Job") if "-train-" in each["metadata"]["name"]]
        return str(found["metadata"]["name"])

    assert job(WHOLE) == job(copy.deepcopy(WHOLE))
    assert job(WHOLE) != job(changed(WHOLE, "image.digest", "sha256:" + "b" * 64))
    assert job(WHOLE) != job(changed(WHOLE, "config", "[generation]\ncandidates = 4\n"))
    (train,) = [each for each in of_kind(whole, "Job") if "-train-" in each["metadata"]["name"]]
    assert train["spec"]["podReplacementPolicy"] == "Failed"


def test_changed_settings_reach_every_pod_that_stays(whole: list[Manifest]) -> None:
    before = dict(pods(whole))
    after = dict(pods(render(changed(WHOLE, "config", "[generation]\ncandidates = 4\n"))))
    assert {name for name in before if before[name] == after[name]} == {"load"}


def test_learner_and_vllm_get_their_gpus_and_nobody_else(whole: list[Manifest]) -> None:
    found = {
        (component, container["name"]): container["resources"]["limits"]["nvidia.com/gpu"]
        for component, template in pods(whole)
        for container in containers(template)
        if "nvidia.com/gpu" in container["resources"]["limits"]
    }
    assert found == {("train", "train"): 1, ("generator", "vllm"): 1}
    assert named(whole, "StatefulSet", "shop-generator")["spec"]["replicas"] == 2


def test_vllm_gets_the_flags_that_searchloops_own_server_gets(whole: list[Manifest]) -> None:
    vllm = containers(dict(pods(whole))["generator"])[0]
    given = dict(each.partition("=")[::2] for each in vllm["args"])
    command = vllm_command(
        VllmServerSettings(),
        VllmModel(folder="/models/policy", rank=16, adapters_max=4),
        python=Path("python3"),
        port=8000,
        tags=[],
        on_gpu=True,
    )
    flags = command[command.index("--model") :]
    expected = {
        flag: "" if flags[at + 1 : at + 2] == [] or flags[at + 1].startswith("--") else flags[at + 1]
        for at, flag in enumerate(flags)
        if flag.startswith("--")
    }
    left_to_vllm = {"--dtype", "--max-num-seqs", "--enforce-eager"}
    assert {name: value for name, value in given.items() if name not in ("--dtype", "--max-model-len")} == {
        name: value for name, value in expected.items() if name not in left_to_vllm | {"--max-model-len"}
    }
    assert variables(ours(dict(pods(whole))["generator"]))["SEARCHLOOP_VLLM__URL"] == "http://127.0.0.1:8000"
    mounts = {each["name"]: each for each in vllm["volumeMounts"]}
    assert mounts["home"] == {"name": "home", "mountPath": "/state", "readOnly": True}, "it loads adapters from there"


def test_several_vllms_beside_a_generator_are_alike_and_it_asks_them_all() -> None:
    objects = render(changed(WHOLE, "generator.vllm.replicas", 3))
    pod = dict(pods(objects))["generator"]
    servers = containers(pod)[:-1]
    assert [each["name"] for each in servers] == ["vllm", "vllm-2", "vllm-3"]
    assert {each["resources"]["limits"]["nvidia.com/gpu"] for each in servers} == {1}
    ports = [dict(each.partition("=")[::2] for each in server["args"])["--port"] for server in servers]
    asked = addresses(variables(ours(pod))["SEARCHLOOP_VLLM__URL"])
    assert asked == tuple(f"http://127.0.0.1:{port}" for port in ports) and len(set(ports)) == 3
    for server, url in zip(servers, asked, strict=True):
        for probe in ("startupProbe", "livenessProbe"):
            assert f"{url}/health" in server[probe]["exec"]["command"][-1]
    assert not [fault for each in objects for fault in schema_errors(each)]


def test_a_vllm_with_several_gpus_uses_them_all(whole: list[Manifest]) -> None:
    assert not [each for each in containers(dict(pods(whole))["generator"])[0]["args"] if "parallel" in each]
    server = containers(dict(pods(render(changed(WHOLE, "generator.vllm.gpus", 4))))["generator"])[0]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert "--tensor-parallel-size=4" in server["args"]


def test_prometheus_asks_where_the_metrics_are_with_the_token_of_the_server(whole: list[Manifest]) -> None:
    for monitor in of_kind(whole, "ServiceMonitor"):
        role = monitor["metadata"]["name"].removeprefix("shop-")
        service = named(whole, "Service", f"shop-{role}")
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["path"] == "/metrics"
        assert endpoint["port"] == service["spec"]["ports"][0]["name"]
        token = next(each for each in dict(pods(whole))[role]["spec"]["volumes"] if each["name"] == "token")["secret"]
        assert endpoint["authorization"]["credentials"] == {
            "name": token["secretName"],
            "key": token["items"][0]["key"],
        }
    assert len(of_kind(whole, "ServiceMonitor")) == 2
    names = msgspec.json.decode(variables(ours(dict(pods(whole))["ui"]))["SEARCHLOOP_UI__NAMES"])
    assert names == ["loop.example", "shop-ui", "10.0.0.7"], "the kubelet and Prometheus ask by the pod's address"
