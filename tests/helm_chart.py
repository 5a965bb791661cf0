"""The chart as Helm renders it, and the judges of what comes out: Kubernetes' schemas, the operators', and the CLI."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import helm_python
import jsonschema
import kubernetes_validate
import yaml

from infra.cli import cli
from tests.commands import ROOT

CHART = ROOT / "deploy" / "searchloop"
CRDS = ROOT / "tests" / "golden" / "crds"
KUBERNETES = "1.37"
CORE = {"v1", "apps/v1", "batch/v1", "policy/v1", "networking.k8s.io/v1"}

Manifest = dict[str, Any]

SECRETS = {role: {"name": "", "secret": f"kafka-{role}"} for role in ("operator", "environment", "generator")}
EXTERNAL: Manifest = {
    "kafka": {
        "bootstrap": "broker.example:9093",
        "users": SECRETS | {"monitor": {"name": "watcher", "secret": "kafka-monitor"}},
    },
    "elasticsearch": {"url": "https://search.example", "secret": {"name": "engine", "key": "api_key"}},
}
"""Values for a cluster that has its own Kafka and Elasticsearch: all pods on one node."""

WHOLE: Manifest = {
    "image": {"repository": "registry.example/searchloop", "digest": "sha256:" + "a" * 64},
    "run": "leser-shop-1",
    "partitions": 12,
    "strimzi": {"cluster": "kafka", "topics": True, "users": True},
    "eck": {"enabled": True},
    "store": {"url": "s3://bucket/prefix", "secret": "bucket-key"},
    "load": {"enabled": True, "claim": "corpora"},
    "train": {"gpus": 1},
    "environment": {"enabled": True},
    "generator": {
        "enabled": True,
        "replicas": 2,
        "vllm": {"enabled": True, "model": "/models/policy", "modelClaim": "models", "extraArgs": ["--dtype=bfloat16"]},
    },
    "keda": {"enabled": True, "replicasMax": 12},
    "serve": {"origins": ["https://shop.example"]},
    "ui": {"names": ["loop.example"]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {
        "serveFrom": [{"podSelector": {"matchLabels": {"app": "gateway"}}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    },
}
"""Values with everything: Strimzi, ECK, KEDA, GPUs, workers on other nodes."""

CASES = {"external": EXTERNAL, "whole": WHOLE}


def render(values: Manifest, *, release: str = "shop", namespace: str = "loop") -> list[Manifest]:
    """Return all objects that Helm makes of the chart. Raises HelmError as `helm template` would fail."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name=release, namespace=namespace)
    return [
        document
        for name, text in files.items()
        if not name.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document
    ]


def of_kind(objects: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    """Return the objects of these kinds."""
    return [each for each in objects if each["kind"] in kinds]


def named(objects: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """Return one object."""
    (found,) = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def pods(objects: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yield (component, pod template) of everything that runs pods of ours."""
    for each in of_kind(objects, "Job", "StatefulSet", "Deployment"):
        template = each["spec"]["template"]
        yield template["metadata"]["labels"]["app.kubernetes.io/component"], template


def containers(template: Manifest) -> list[Manifest]:
    """Return all containers of a pod, sidecars first."""
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def ours(template: Manifest) -> Manifest:
    """Return the container of a pod that runs searchloop."""
    (container,) = template["spec"]["containers"]
    return container


def schema_errors(document: Manifest) -> list[str]:
    """Return what the schema of its kind says against an object; unknown fields count as errors."""
    if document["apiVersion"] in CORE:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [str(error)]
        return []
    schema = strict(crd_schema(document["apiVersion"], document["kind"]))
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(document)
    ]


def crd_schema(api: str, kind: str) -> Manifest:
    """Return the schema that an operator's CustomResourceDefinition has for a kind."""
    group, _, version = api.partition("/")
    for path in sorted(CRDS.glob("*.yaml")):
        spec = yaml.safe_load(path.read_text())["spec"]
        if (spec["group"], spec["names"]["kind"]) == (group, kind):
            (found,) = [each for each in spec["versions"] if each["name"] == version and each["served"]]
            schema: Manifest = found["schema"]["openAPIV3Schema"]
            return schema
    raise AssertionError(f"no CustomResourceDefinition for {kind} of {api} in {CRDS}")


def strict(schema: Any) -> Any:
    """Return a schema that refuses unknown fields, which Kubernetes would drop without a word; metadata is open."""
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items() if name != "properties"}
    if properties := schema.get("properties"):
        made["properties"] = {
            name: value if name == "metadata" else strict(value) for name, value in properties.items()
        }
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    return made


def parse(arguments: Sequence[str]) -> click.Context:
    """Return what the CLI makes of a command line; nothing is run. Raises ClickException as the CLI would."""
    top = cli.make_context("searchloop", list(arguments), resilient_parsing=False)
    name, command, rest = cli.resolve_command(top, [*top._protected_args, *top.args])
    assert command is not None
    context = command.make_context(name, rest, parent=top)
    while isinstance(context.command, click.Group):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(name, rest, parent=context)
    return context


def variables(container: Manifest) -> dict[str, str]:
    """Return a container's variables; $(NAME) and values from the pod's own fields get a plausible text."""
    given = {
        each["name"]: each.get("value", "10.0.0.7" if each["name"] == "POD_IP" else "1") for each in container["env"]
    }
    return {name: re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], value) for name, value in given.items()}


def arguments(container: Manifest) -> list[str]:
    """Return a container's arguments, with its variables in place."""
    known = variables(container)
    return [re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], each) for each in container["args"]]


def with_secrets(given: dict[str, str], folder: Path) -> dict[str, str]:
    """Return variables whose files in /run/secrets exist in `folder`, each with one line."""
    made = {}
    for name, value in given.items():
        if value.startswith("/run/secrets/"):
            path = folder / value.removeprefix("/run/secrets/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("one-line\n")
            value = str(path)
        made[name] = value
    return made


def changed(values: Manifest, path: str, value: Any) -> Manifest:
    """Return values with one of them changed."""
    made: Manifest = copy.deepcopy(values)
    *tables, key = path.split(".")
    table = made
    for name in tables:
        table = table.setdefault(name, {})
    table[key] = value
    return made


def restricted_faults(template: Manifest) -> list[str]:
    """Return what Kubernetes' restricted Pod Security Standard has against a pod."""
    spec, said = template["spec"], []
    said += [field for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    said += [f"volume {each['name']}" for each in spec.get("volumes", ()) if not set(each) - {"name"} <= allowed]
    pod = spec.get("securityContext", {})
    for container in containers(template):
        own = container.get("securityContext", {})
        where = container["name"]

        def of(field: str, own: Manifest = own) -> Any:
            return own.get(field, pod.get(field))

        if own.get("privileged") or own.get("procMount", "Default") != "Default":
            said.append(f"{where}: privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            said.append(f"{where}: allowPrivilegeEscalation")
        if of("runAsNonRoot") is not True or of("runAsUser") == 0:
            said.append(f"{where}: root")
        if (of("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            said.append(f"{where}: seccomp")
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
            said.append(f"{where}: capabilities")
        said += [f"{where}: hostPort" for port in container.get("ports", ()) if port.get("hostPort")]
    return said
