"""A run's topics: missing ones are made, those known to be this run's are used, and all others are refused.

Kafka cannot store an owner with a topic. So the witness lies beside the run: `topics.json` in its folder holds the
cluster's id, and the id that Kafka gave each topic when it was made. The rules are:

1. A topic with the id that the witness holds is ours.
2. A topic that does not exist is made, and its id is written into the witness.
3. A topic that exists, is not in the witness, and has never held a record may be used if its settings fit: an
administrator may have made it for us.
4. A topic that exists and has held a record is somebody else's, unless this run has learned already and an older
searchloop left it without a witness. A foreign topic is never written to, changed or deleted.
5. If a topic of the witness is gone or has another id, this run's records are lost. The run then stops with an error. A
topic that can be derived from the others is made anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import (
    InvalidConfigurationError,
    TopicAlreadyExistsError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
    for_code,
)

from streams.errors import DeliveryError, SettingsError
from streams.kafka_errors import asked, told
from streams.locks import wait_for
from streams.topic_plans import COMPRESSION, FoundTopic, TopicPlan, differences, unequal_partitions
from streams.topics import KINDS, topic_name
from streams.whole_file import whole_file

WITNESS = "topics.json"
LATEST = -1  # Kafka's own code for a partition's end in ListOffsets.
SHOWN_SECONDS = 30.0
log = logging.getLogger(__name__)


class TakenError(SettingsError, DeliveryError):
    """The run's name is taken: its topics hold records that are not this run's. topics: their names."""

    def __init__(self, message: str, topics: Sequence[str]) -> None:
        super().__init__(message)
        self.topics = tuple(topics)


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """The topics of a run: the cluster's id, and Kafka's id of each topic by its name."""

    cluster: str
    topics: dict[str, str] = {}


class Provisioned(msgspec.Struct, frozen=True, kw_only=True):
    """The names of all topics, and the ids of the topics that this call made."""

    names: tuple[str, ...]
    made: dict[str, str]


def provision(
    admin: KafkaAdminClient, plans: Sequence[TopicPlan], *, run: str, folder: Path | None, known: bool
) -> Provisioned:
    """Make the missing topics of a run, and return its topics, by the rules above.

    folder: the run's folder with its witness; None for topics without a run, which may never have held a record.
    known: this run has learned or stored something already, so existing topics without a witness are its own.
    Raises TakenError if a topic is somebody else's, and DeliveryError if a topic does not fit or has lost the run's
    records.
    """
    with _locked(folder):
        witness = read_witness(folder)
        cluster = str(asked("could not read the cluster's id", admin.describe_cluster)["cluster_id"])
        if witness is not None and witness.cluster != cluster:
            raise DeliveryError(
                f"run {run!r}: its topics lie in the Kafka cluster {witness.cluster!r}, and kafka.bootstrap leads to "
                f"{cluster!r}. Name the right one, or choose another --run NAME. If you moved the topics yourself, "
                f"delete {_path(folder)}"
            )
        own = dict(witness.topics) if witness is not None else _adopted(admin, run) if known else {}
        found = _usable(admin, plans, run=run, own=own, folder=folder)
        made: dict[str, str] = {}
        if missing := _missing(plans, found):
            faster = _make(admin, missing)
            # If another process was faster with one of the topics, its owner must be checked, too.
            found = _shown(admin, plans, run=run, own=own, folder=folder)
            made = {} if faster else {plan.name: found[plan.name].topic_id for plan in missing}
        if folder is not None:
            ids = own | {name: topic.topic_id for name, topic in found.items()}
            if witness is None or ids != witness.topics:
                _write_witness(folder, Witness(cluster=cluster, topics=ids))
        return Provisioned(names=tuple(plan.name for plan in plans), made=made)


def delete_made(admin: KafkaAdminClient, made: dict[str, str]) -> None:
    """Delete topics by the ids that they were made with; a topic that somebody else has remade stays.

    Raises DeliveryError if the broker refuses.
    """
    for name, topic_id in made.items():
        with (
            told(f"could not delete the topic {name}"),
            contextlib.suppress(UnknownTopicIdError, UnknownTopicOrPartitionError),
        ):
            admin.delete_topics([UUID(topic_id)])


def look(admin: KafkaAdminClient, names: Sequence[str]) -> dict[str, FoundTopic]:
    """Return those of these topics that exist, with their settings.

    Raises DeliveryError if the cluster does not show them, because then nobody can know whether they fit.
    """
    there = set(asked("could not list the cluster's topics", admin.list_topics))
    wanted = [name for name in names if name in there]
    if not wanted:
        return {}
    what = f"could not inspect the topics {', '.join(wanted)}"
    shown = {item["name"]: item for item in asked(what, lambda: _described(admin, wanted))}
    resources = [ConfigResource("TOPIC", name) for name in wanted]
    settings = asked(what, lambda: admin.describe_configs(resources, config_filter="all")).get("topic", {})
    if hidden := [name for name in wanted if not settings.get(name)]:
        raise DeliveryError(
            f"{what}: the cluster does not show the settings of {hidden[0]}; allow DescribeConfigs on the run's topics"
        )
    partitions = [
        TopicPartition(name, each["partition_index"]) for name in wanted for each in shown[name]["partitions"]
    ]
    ends = asked(what, lambda: admin.list_partition_offsets(dict.fromkeys(partitions, LATEST)))
    return {
        name: FoundTopic(
            name=name,
            topic_id=str(shown[name]["topic_id"]),
            partitions=len(shown[name]["partitions"]),
            replication=min(len(each["replica_nodes"]) for each in shown[name]["partitions"]),
            used=any(ends[item].offset > 0 for item in partitions if item.topic == name),
            settings={key: str(value["value"]) for key, value in settings[name].items()},
        )
        for name in wanted
    }


def read_witness(folder: Path | None) -> Witness | None:
    """Return the topics that are known to be the run's, None if there is no witness yet.

    Raises DeliveryError if the file cannot be read: a guess could write to somebody else's topics.
    """
    if folder is None:
        return None
    try:
        return msgspec.json.decode(_path(folder).read_bytes(), type=Witness)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise DeliveryError(
            f"{_path(folder)}: expected the ids of the run's topics, got {error}. Put it back from a copy, or delete "
            "it if the topics in Kafka are this run's"
        ) from error


def _usable(
    admin: KafkaAdminClient, plans: Sequence[TopicPlan], *, run: str, own: dict[str, str], folder: Path | None
) -> dict[str, FoundTopic]:
    """Return the existing topics, all of which this run may use; derivable topics that are lost leave `own`."""
    found = look(admin, [plan.name for plan in plans])
    _require_whole(run, plans, own, found, folder)
    taken = [plan.name for plan in plans if plan.name in found and found[plan.name].used and plan.name not in own]
    if taken:
        what = (
            f"its topics {', '.join(taken)} hold records" if len(taken) > 1 else f"its topic {taken[0]} holds records"
        )
        raise TakenError(f"run {run!r}: expected a new run, but {what}; choose another name", taken)
    there = [(plan, found[plan.name]) for plan in plans if plan.name in found]
    said = [line for plan, topic in there for line in differences(plan, topic, ours=plan.name in own)]
    said += unequal_partitions(there, ours=all(plan.name in own for plan, _ in there))
    if said:
        raise DeliveryError(
            f"topics that exist do not fit: {'; '.join(said)}. Change these settings of the topics, or choose another "
            "name"
        )
    return found


def _shown(
    admin: KafkaAdminClient, plans: Sequence[TopicPlan], *, run: str, own: dict[str, str], folder: Path | None
) -> dict[str, FoundTopic]:
    """Return all topics as soon as they exist; a broker may learn of them later than the broker that made them.

    An id that is not recorded now would later mark the topic as somebody else's. Raises DeliveryError after
    `SHOWN_SECONDS`.
    """
    deadline = time.monotonic() + SHOWN_SECONDS
    while True:
        found = _usable(admin, plans, run=run, own=own, folder=folder)
        absent = _missing(plans, found)
        if not absent:
            return found
        if time.monotonic() > deadline:
            raise DeliveryError(f"the cluster does not show the topic {absent[0].name}, which it has made; try again")
        time.sleep(0.1)


def _missing(plans: Sequence[TopicPlan], found: dict[str, FoundTopic]) -> list[TopicPlan]:
    """Return the topics to make, with as many partitions as the existing topics have."""
    counts = [found[plan.name].partitions for plan in plans if plan.partitioned and plan.name in found]
    return [
        msgspec.structs.replace(plan, partitions=counts[0]) if plan.partitioned and counts else plan
        for plan in plans
        if plan.name not in found
    ]


def _require_whole(
    run: str, plans: Sequence[TopicPlan], own: dict[str, str], found: dict[str, FoundTopic], folder: Path | None
) -> None:
    """Raise DeliveryError if a topic of the log is not the topic that holds this run's records."""
    for plan in plans:
        if plan.name not in own or (plan.name in found and found[plan.name].topic_id == own[plan.name]):
            continue
        if plan.compacted and (plan.name not in found or not found[plan.name].used):
            own.pop(plan.name)  # The topic is made anew from the others.
            continue
        what = "it was deleted and made anew" if plan.name in found else "it is gone"
        raise DeliveryError(
            f"run {run!r}: expected the topic {plan.name} with its records, but {what}. The archive may hold them: "
            f"searchloop verify --offline. Choose another --run NAME; if you moved the topics, delete {_path(folder)}"
        )


def _adopted(admin: KafkaAdminClient, run: str) -> dict[str, str]:
    """Return the ids of all topics of a run that an older searchloop made without a witness."""
    names = [topic_name(run, kind) for kind in sorted(KINDS)]
    there = set(asked("could not list the cluster's topics", admin.list_topics))
    wanted = [name for name in names if name in there]
    if not wanted:
        return {}
    log.info("run %r has no %s: its topics count as its own, because it has learned already", run, WITNESS)
    shown = asked("could not inspect the run's topics", lambda: _described(admin, wanted))
    return {item["name"]: str(item["topic_id"]) for item in shown}


def _described(admin: KafkaAdminClient, names: Sequence[str]) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = admin.describe_topics(list(names))
    for item in shown:
        for code in (item["error_code"], *(each["error_code"] for each in item["partitions"])):
            # An absent replica (9) is no reason to fail: the topic exists, and its leader answers.
            if code not in (0, 9):
                raise for_code(code)(item["name"])
    return shown


def _make(admin: KafkaAdminClient, plans: Sequence[TopicPlan]) -> bool:
    """Create topics; if the broker does not know a compression setting, create them without it.

    Returns whether another process was faster with one of them. Raises DeliveryError if the broker refuses.
    """
    try:
        with told(f"could not create the topics {', '.join(plan.name for plan in plans)}"):
            try:
                admin.create_topics(_wanted(plans, COMPRESSION), wait_for_metadata=True)
            except InvalidConfigurationError as error:
                log.warning(
                    "the broker takes no %s (%s); creating the topics without it", ", ".join(COMPRESSION), error
                )
                admin.create_topics(_wanted(plans, {}), wait_for_metadata=True)
    except DeliveryError as error:
        if not isinstance(error.__cause__, TopicAlreadyExistsError):
            raise
        return True
    return False


def _wanted(plans: Sequence[TopicPlan], more: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {
        plan.name: {
            "num_partitions": plan.partitions,
            "replication_factor": plan.replication,
            "configs": plan.required() | more,
        }
        for plan in plans
    }


def _path(folder: Path | None) -> Path:
    return (folder or Path()) / WITNESS


def _write_witness(folder: Path, witness: Witness) -> None:
    with whole_file(_path(folder)) as aside:
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(witness)))


@contextlib.contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    """Let only one process of this home at a time inspect and make a run's topics."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        wait_for(handle)
        yield
    finally:
        os.close(handle)
