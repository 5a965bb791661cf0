"""A real Prometheus for tests: its linter, its rules' checker, and a server that scrapes this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT
from tests.kafka_cluster import wait_until


def binary(name: str) -> str:
    """Return the path of prometheus or promtool. Fails, and says how to get it, if there is none."""
    unpacked = ROOT / ".prometheus" / "usr" / "bin" / name
    found = shutil.which(name) or (str(unpacked) if unpacked.exists() else None)
    if found is None:
        pytest.fail(f"this test needs {name}: make prometheus, or install Prometheus")
    return found


def promtool(*arguments: str, given: bytes = b"") -> str:
    """Run promtool, and return its words; fail with them if it finds anything."""
    ended = subprocess.run([binary("promtool"), *arguments], input=given, capture_output=True, check=False)
    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()
    return ended.stdout.decode()


class Prometheus:
    """A server's address, and questions to it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, promql: str) -> list[dict[str, Any]]:
        """Return the series of an instant query."""
        return list(self._get("query", query=promql)["result"])

    def value(self, promql: str) -> float:
        """Return the value of a query that has one series."""
        (series,) = self.query(promql)
        return float(series["value"][1])

    def rules(self) -> list[dict[str, Any]]:
        """Return every loaded alert rule."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets_up(self) -> bool:
        """Return whether every target was scraped without an error."""
        active = self._get("targets")["activeTargets"]
        return bool(active) and all(each["health"] == "up" for each in active)

    def _get(self, what: str, **parameters: str) -> Any:
        address = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.loads(answer.read())["data"]


@contextlib.contextmanager
def prometheus(folder: Path, configuration: str) -> Iterator[Prometheus]:
    """Start a Prometheus with this configuration on a free port, and end it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prometheus.yml"
    path.write_text(configuration)
    promtool("check", "config", str(path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary("prometheus"),
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: answers(f"http://{address}/-/ready"), "Prometheus answers", seconds=60)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Return whether an address answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
