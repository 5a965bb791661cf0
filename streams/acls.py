"""The rights in Kafka: one table defines them for the embedded broker and for a user's own cluster.

Each role is a user. Only the environment writes rewards, only the generator writes generations, only the learner writes
updates and policy versions, only the evaluator writes dev scores, only the joiner writes the outcomes of impressions,
and only the monitor writes windows. Each worker reads the topics that it works on. The operator runs `train`, `serve`
and the other verbs, makes topics, and writes requests, impressions and actions; no worker may do that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from streams.topics import DERIVED, TOPICS, topic_name

Operation = Literal["READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS", "ALL"]
Resource = Literal["TOPIC", "GROUP", "CLUSTER", "TRANSACTIONAL_ID"]

OPERATOR = "operator"
WORKERS = ("generator", "environment", "learner", "evaluator", "joiner", "sink", "monitor")
ROLES = (*WORKERS, OPERATOR)
_ALL_KINDS = tuple(topic.kind for topic in TOPICS)
_DERIVED_KINDS = tuple(topic.kind for topic in DERIVED)


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """The rights of one worker, by kinds of topics and by the suffixes of consumer groups after the run's name.

    READ and WRITE contain DESCRIBE. describes and describes_groups: topics and groups that the worker only looks at.
    describes_configs: topics whose settings the worker compares with the required ones. group_families: prefixes of the
    names of groups that the worker makes itself.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    describes: tuple[str, ...] = ()
    describes_configs: tuple[str, ...] = ()
    joins_groups: tuple[str, ...] = ()
    describes_groups: tuple[str, ...] = ()
    group_families: tuple[str, ...] = ()


class Acl(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One right of one role. prefixed: the name is a prefix of names."""

    role: str
    resource: Resource
    name: str
    operation: Operation
    prefixed: bool = False


# The learner grants requests: it looks up the progress of requests and generations, and it reads the announcements of
# earlier learner processes. The environment reads rewards only if Kafka has forgotten its offsets, and outcomes only of
# a live run whose clicks are its rewards. Learner and sink join their groups only where machines share a store: the
# broker then says who of them works (`streams.lease`).
RIGHTS: dict[str, Rights] = {
    "generator": Rights(
        reads=("requests", "policy-versions", "updates"),
        writes=("generations", "dead-letters"),
        describes=("rewards",),
        joins_groups=("generator",),
    ),
    "environment": Rights(
        reads=("generations", "rewards", "impression-outcomes"),
        writes=("rewards", "dead-letters"),
        joins_groups=("environment",),
    ),
    "learner": Rights(
        reads=("rewards", "requests", "generations", "policy-versions"),
        writes=("updates", "policy-versions", "dead-letters"),
        joins_groups=("learner",),
        describes_groups=("generator", "environment"),
    ),
    "evaluator": Rights(reads=("policy-versions", "dev-scores"), writes=("dev-scores", "dead-letters")),
    "joiner": Rights(
        reads=("impressions", "actions", "impression-outcomes"),
        writes=("impression-outcomes", "dead-letters"),
    ),
    "sink": Rights(reads=_ALL_KINDS, writes=("dead-letters",), joins_groups=("sink",)),
    "monitor": Rights(
        reads=(*_ALL_KINDS, *_DERIVED_KINDS),
        writes=_DERIVED_KINDS,
        describes_configs=_DERIVED_KINDS,
        describes_groups=("generator", "environment"),
        group_families=("monitor.",),
    ),
}


def acls_of(run: str, *, operator: bool = True) -> Iterator[Acl]:
    """Yield every right that the roles need for one run.

    operator: False omits the operator's own rights; on an embedded broker the operator may do everything.
    Raises SettingsError if the run's name cannot be a topic's name.
    """
    for role, rights in RIGHTS.items():
        for operation, kinds in (
            ("READ", rights.reads),
            ("WRITE", rights.writes),
            ("DESCRIBE", rights.describes),
            ("DESCRIBE_CONFIGS", rights.describes_configs),
        ):
            for kind in kinds:
                yield Acl(role=role, resource="TOPIC", name=topic_name(run, kind), operation=operation)  # type: ignore[arg-type]
        for operation, groups in (("READ", rights.joins_groups), ("DESCRIBE", rights.describes_groups)):
            for group in groups:
                yield Acl(role=role, resource="GROUP", name=f"{run}.{group}", operation=operation)  # type: ignore[arg-type]
        for family in rights.group_families:
            yield Acl(role=role, resource="GROUP", name=f"{run}.{family}", operation="READ", prefixed=True)
    if operator:
        yield Acl(role=OPERATOR, resource="TOPIC", name=f"{run}.", operation="ALL", prefixed=True)
        yield Acl(role=OPERATOR, resource="GROUP", name=f"{run}.", operation="ALL", prefixed=True)
        yield Acl(role=OPERATOR, resource="CLUSTER", name="kafka-cluster", operation="DESCRIBE")


def allowed(role: str, kind: str, operation: str) -> bool:
    """Return whether the table lets a role read or write topics of this kind."""
    if role == OPERATOR:
        return True
    return kind in (RIGHTS[role].reads if operation == "READ" else RIGHTS[role].writes)


def kafka_acls_command(acl: Acl, *, user: str, bootstrap: str) -> str:
    """Return the command line of Kafka's own tool that gives this right to a user."""
    what = {"TOPIC": f"--topic '{acl.name}'", "GROUP": f"--group '{acl.name}'", "CLUSTER": "--cluster"}[acl.resource]
    pattern = " --resource-pattern-type prefixed" if acl.prefixed else ""
    return (
        f"kafka-acls.sh --bootstrap-server {bootstrap} --command-config admin.properties --add "
        f"--allow-principal 'User:{user}' --operation {acl.operation.title().replace('_', '')} {what}{pattern}"
    )
