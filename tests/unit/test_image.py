"""The image's recipe, as far as it can be checked without building it: its lock, its sources, its user."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

from tests.commands import ROOT

RECIPE = ROOT / "deploy" / "Containerfile"
PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?P<marker>[^\\\n]*)\\?\n(?P<hashes>(?:    --hash=.*\n)+)", re.M
)


def pins(lock: Path) -> dict[tuple[str, str], frozenset[str]]:
    """Return the hashes of each (name, version) of a lock file."""
    return {
        (found["name"], found["version"]): frozenset(re.findall(r"sha256:[0-9a-f]{64}", found["hashes"]))
        for found in PIN.finditer(lock.read_text().replace("    # via", "    # ") + "\n")
    }


def steps() -> list[str]:
    """Return the recipe's instructions, each on one line."""
    text = "\n".join(line for line in RECIPE.read_text().splitlines() if not line.startswith("#"))
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


def test_the_image_holds_the_versions_that_are_tested_with_the_same_hashes_and_no_tool_of_tests() -> None:
    image, tested = pins(ROOT / "deploy" / "requirements.lock"), pins(ROOT / "requirements.lock")
    assert len(image) > 100
    assert {pin: hashes for pin, hashes in image.items() if tested.get(pin) != hashes} == {}
    names = {name for name, _ in image}
    assert {"torch", "kafka-python", "elasticsearch", "duckdb", "hatchling"} <= names
    assert not names & {"pytest", "hypothesis", "ruff", "mypy", "playwright"}
    unpinned = [
        line
        for line in (ROOT / "deploy" / "requirements.lock").read_text().splitlines()
        if line and not line.startswith(("#", "    ")) and "==" not in line
    ]
    assert unpinned == []


def test_every_package_of_the_wheel_is_copied_and_the_ignore_file_lets_it_through() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = [
        part for step in steps() if step.startswith("COPY ") and "--from" not in step for part in step.split()[1:-1]
    ]
    assert set(packages["packages"]) <= set(copied)
    ignored = (ROOT / "deploy" / "Containerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    allowed = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    for path in copied:
        assert (ROOT / path).exists()
        assert any(fnmatch.fnmatch(path, pattern) for pattern in allowed), path


def test_packages_come_with_hashes_and_the_last_stage_builds_nothing_and_runs_as_a_user() -> None:
    installs = [step for step in steps() if "pip install" in step]
    assert all(
        "--require-hashes" in step or ("--no-deps" in step and "--no-build-isolation" in step) for step in installs
    )
    last = steps()[[at for at, step in enumerate(steps()) if step.startswith("FROM ")][-1] :]
    assert not any("pip" in step.split() or "/pip " in step for step in last)
    (user,) = [step.split()[1] for step in last if step.startswith("USER ")]
    assert user == "1000:1000"
    after = last[last.index(f"USER {user}") :]
    assert not any(step.startswith(("RUN", "COPY", "ADD")) for step in after)
    assert 'ENTRYPOINT ["tini", "--", "searchloop"]' in after
    chart = (ROOT / "deploy" / "searchloop" / "templates" / "_helpers.tpl").read_text()
    assert "runAsUser: 1000\n" in chart


def test_the_base_is_a_python_that_searchloop_supports_and_both_stages_share_it() -> None:
    (base,) = [step for step in steps() if step.startswith("ARG BASE=")]
    found = re.fullmatch(r"ARG BASE=python:(\d+\.\d+)\.\d+-slim-\w+", base)
    assert found is not None
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert requires == ">=3.11,<3.14" and found[1] in ("3.11", "3.12", "3.13")
    assert [step for step in steps() if step.startswith("FROM ")] == ["FROM ${BASE} AS build", "FROM ${BASE}"]
