"""Rights of a run's workers on the embedded Kafka, whose operator is searchloop.

On a cluster of your own nothing is granted: `searchloop doctor --acls` prints the rights that its administrator has to
grant.
"""

from __future__ import annotations

from pathlib import Path

from kafka.admin import ACL, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePattern, ResourceType
from kafka.errors import KafkaError

from infra.app.app import App
from services.errors import ServiceError
from services.security import SecurityFolder
from streams.acls import Acl, acls_of
from streams.clients import connect_admin, create_derived_topics


def give_rights(app: App, run: str) -> int:
    """Grant the roles their rights for this run, and return the number of rights; 0 without users by role.

    Existing rights stay. Raises ServiceError if the broker refuses.
    """
    kafka = app.connections.kafka
    security = SecurityFolder(app.home.root.absolute())
    if not kafka.credentials or Path(kafka.credentials) != security.kafka:
        return 0
    create_derived_topics(kafka, run)  # A monitor may write them, but not make them.
    rights = [_as_kafka(acl) for acl in acls_of(run, operator=False)]
    admin = connect_admin(kafka)
    try:
        failed = admin.create_acls(rights)["failed"]
    except KafkaError as error:
        raise ServiceError(f"Kafka did not grant the rights for run {run!r}: {error}") from error
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
