"""`searchloop index` that is broken off, or finds no room, leaves nothing: no process, no index, no half file."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
from elasticsearch import Elasticsearch

from services.local import ROLES, Endpoints, LocalServices
from services.processes import tagged_processes
from tests.commands import command, environment, interrupt, start
from tests.small_disk import on_small_disk


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a corpus that takes seconds to index, and megabytes that no compression makes small."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(20_000):
            text = " ".join(f"{draw.getrandbits(40):x}" for _ in range(30))
            file.write(json.dumps({"_id": f"d{number}", "title": f"thing {number % 50}", "text": text}) + "\n")
    return path


def indexes_of(services: Endpoints, name: str) -> list[str]:
    with Elasticsearch(services.elasticsearch) as client:
        return list(client.indices.get(index=f"{name}*").body)


def test_ctrl_c_stops_the_services_that_it_started_and_removes_the_half_filled_index(
    local_services: Endpoints, corpus: Path, tmp_path: Path, unique_name: str
) -> None:
    variables = environment(local_services)
    del variables["SEARCHLOOP_KAFKA__BOOTSTRAP"]  # Kafka is ours to start, and so to stop.
    try:
        process = start(tmp_path, "index", str(corpus), "--name", unique_name, variables=variables, until="indexing")
        assert list(tagged_processes(tmp_path, ROLES))
        assert interrupt(process) == (130, "stopped")
        assert list(tagged_processes(tmp_path, ROLES)) == []
        assert indexes_of(local_services, unique_name) == []
        assert [each for each in (tmp_path / "indexes").rglob("*") if unique_name in str(each)] == []
    finally:
        LocalServices(tmp_path).remove()


def test_a_full_disk_is_one_line_and_leaves_the_old_version(
    local_services: Endpoints, corpus: Path, tmp_path: Path, unique_name: str
) -> None:
    small = tmp_path / "small.jsonl"
    small.write_text('{"_id": "d1", "title": "red mug", "text": "mug"}\n')
    variables, home = environment(local_services), tmp_path / "home"
    index = [*command(home, "index"), str(small), "--name", unique_name]
    subprocess.run(index, env=variables, check=True, capture_output=True)
    index[index.index(str(small))] = str(corpus)
    # The disk under the home's indexes seems empty: the versions go on counting from what Elasticsearch holds.
    ended = subprocess.run(
        on_small_disk(home / "indexes", 2, index), env=variables, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"error: index '{unique_name}': its documents in {home}/indexes/{unique_name}: the disk is full. Free some "
        "space, or choose another path"
    )
    assert "Traceback" not in ended.stderr
    assert indexes_of(local_services, unique_name) == [f"{unique_name}-1"]
