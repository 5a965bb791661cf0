"""Races of making topics that a real broker shows only now and then: a small fake cluster has them every time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from kafka import TopicPartition
from kafka.errors import InvalidConfigurationError, TopicAlreadyExistsError

import streams.provisioning as provisioning
from infra.app.home import Home
from infra.runs.topics import is_known
from learner.checkpoints import Manifest, save_checkpoint
from streams.errors import DeliveryError
from streams.events import PolicyRef, Update
from streams.provisioning import TakenError, provision, read_witness
from streams.topic_plans import COMPRESSION, plan_topics

RUN = "shop"
PLANS = plan_topics(RUN, partitions=2, replication=1)


class FakeCluster:
    """The answers of an admin client that `provision` reads.

    late: so many looks after they were made, topics are not listed yet. old: it knows no level of compression.
    """

    def __init__(self, *, late: int = 0, old: bool = False) -> None:
        self.topics: dict[str, dict[str, Any]] = {}
        self.used: set[str] = set()
        self.rival: str = ""
        self._late = late
        self._old = old
        self._looks_left: dict[str, int] = {}

    def make(self, name: str, options: dict[str, Any]) -> None:
        self.topics[name] = options | {"id": str(uuid4())}
        self._looks_left[name] = self._late

    def describe_cluster(self) -> dict[str, str]:
        return {"cluster_id": "fake"}

    def list_topics(self) -> list[str]:
        shown = [name for name in self.topics if self._looks_left[name] <= 0]
        self._looks_left = {name: left - 1 for name, left in self._looks_left.items()}
        return shown

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "error_code": 0,
                "topic_id": self.topics[name]["id"],
                "partitions": [
                    {"partition_index": number, "error_code": 0, "replica_nodes": [1]}
                    for number in range(self.topics[name]["num_partitions"])
                ],
            }
            for name in names
        ]

    def describe_configs(self, resources: list[Any], config_filter: str) -> dict[str, Any]:
        shown = {each.name: self.topics[each.name]["configs"] for each in resources}
        return {"topic": {name: {key: {"value": v} for key, v in configs.items()} for name, configs in shown.items()}}

    def list_partition_offsets(self, wanted: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        return {item: SimpleNamespace(offset=int(item.topic in self.used)) for item in wanted}

    def create_topics(self, wanted: dict[str, dict[str, Any]], wait_for_metadata: bool) -> None:
        if self._old and any(set(COMPRESSION) & set(options["configs"]) for options in wanted.values()):
            raise InvalidConfigurationError("Unknown topic config name: compression.gzip.level")
        taken = False
        for name, options in wanted.items():
            if name == self.rival:
                self.make(name, options)
                taken = True
            elif name not in self.topics:
                self.make(name, options)
        if taken:
            raise TopicAlreadyExistsError(self.rival)


def test_a_topic_that_is_shown_late_is_in_the_witness_all_the_same(tmp_path: Path) -> None:
    cluster = FakeCluster(late=3)
    made = provision(cluster, PLANS, run=RUN, folder=tmp_path, known=False)
    ids = {name: options["id"] for name, options in cluster.topics.items()}
    witness = read_witness(tmp_path)
    assert witness is not None and witness.topics == made.made == ids and len(ids) == len(PLANS)
    cluster.used |= set(ids)  # And so the run may go on with its own records.
    assert provision(cluster, PLANS, run=RUN, folder=tmp_path, known=False).made == {}


def test_topics_that_are_never_shown_are_an_error_and_no_witness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provisioning, "SHOWN_SECONDS", 0.0)
    with pytest.raises(DeliveryError, match=r"does not show the topic shop\.requests"):
        provision(FakeCluster(late=10**6), PLANS, run=RUN, folder=tmp_path, known=False)
    assert read_witness(tmp_path) is None


@pytest.mark.parametrize("wrote", [False, True])
def test_a_topic_that_another_process_made_at_the_same_moment_is_looked_at(tmp_path: Path, wrote: bool) -> None:
    cluster = FakeCluster()
    cluster.rival = f"{RUN}.rewards"
    cluster.used |= {cluster.rival} if wrote else set()
    if wrote:
        with pytest.raises(TakenError, match=r"shop\.rewards holds records"):
            provision(cluster, PLANS, run=RUN, folder=tmp_path, known=False)
    else:
        assert provision(cluster, PLANS, run=RUN, folder=tmp_path, known=False).made == {}


def test_a_broker_without_compression_levels_gets_topics_without_them(tmp_path: Path) -> None:
    cluster = FakeCluster(old=True)
    provision(cluster, PLANS, run=RUN, folder=tmp_path, known=False)
    assert all(options["configs"].keys().isdisjoint(COMPRESSION) for options in cluster.topics.values())
    assert all(options["configs"]["min.insync.replicas"] == "1" for options in cluster.topics.values())


@pytest.mark.parametrize(("of_run", "known"), [(RUN, True), ("another", False)])
def test_only_updates_of_its_own_speak_for_a_run_without_a_ledger(tmp_path: Path, of_run: str, known: bool) -> None:
    home = Home(tmp_path)
    policy = PolicyRef(lineage="1-a", step=3, sha256="")
    update = Update(run=of_run, policy=policy, parent=policy, trained=())
    assert not is_known(home, RUN)
    manifest = Manifest(policy=policy, parent=policy, update=update)
    save_checkpoint(home.run(RUN) / "checkpoints", policy, lambda folder: manifest)
    assert is_known(home, RUN) is known
