"""Give the workers of a run their rights on the embedded Kafka, whose operator we are.

On a cluster of one's own nothing is given: `searchloop doctor --acls` prints what its administrator has to.
"""

from __future__ import annotations

from pathlib import Path

from kafka.admin import ACL, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePattern, ResourceType
from kafka.errors import KafkaError

from infra.app.app import App
from infra.services.errors import ServiceError
from infra.services.security import SecurityFolder
from streams.acls import Acl, acls_of
from streams.clients import connect_admin, create_derived_topics


def give_rights(app: App, run: str) -> int:
    """Let the roles do their work for this run, and return how many rights that are; 0 without users by role.

    What is there already stays. Raises ServiceError if the broker refuses.
    """
    kafka = app.connections.kafka
    security = SecurityFolder(app.home.root.absolute())
    if not kafka.credentials or Path(kafka.credentials) != security.kafka:
        return 0
    create_derived_topics(kafka, run)  # A monitor may write them, and not make them.
    rights = [_as_kafka(acl) for acl in acls_of(run, operator=False)]
    admin = connect_admin(kafka)
    try:
        failed = admin.create_acls(rights)["failed"]
    except KafkaError as error:
        raise ServiceError(f"Kafka gives the roles of run {run!r} no rights: {error}") from error
    finally:
        admin.close()
    if failed:
        raise ServiceError(f"Kafka refused {len(failed)} of {len(rights)} rights for run {run!r}: {failed[0]}")
    return len(rights)


def _as_kafka(acl: Acl) -> ACL:
    pattern = ACLResourcePatternType.PREFIXED if acl.prefixed else ACLResourcePatternType.LITERAL
    return ACL(
        principal=f"User:{acl.role}",
        host="*",
        operation=ACLOperation[acl.operation],
        permission_type=ACLPermissionType.ALLOW,
        resource_pattern=ResourcePattern(ResourceType[acl.resource], acl.name, pattern),
    )
