"""`searchloop doctor --acls`: the rights that the roles of a run need on the user's own Kafka."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from infra.app.app import App
from streams.acls import ROLES, acls_of, kafka_acls_command


def print_acls(app: App, run: str, users: Sequence[str], *, as_json: bool) -> None:
    """Print the rights that a run's roles need, as commands of the Kafka command-line tool or as one JSON list.

    users: texts ROLE=USER. Raises UsageError if one has another form.
    """
    named = dict(text.partition("=")[::2] for text in users)
    if wrong := [text for text in users if text.partition("=")[0] not in ROLES or not text.partition("=")[2]]:
        raise click.UsageError(f"--user: expected ROLE=USER with a role of {', '.join(ROLES)}, got {wrong[0]!r}")
    rights = list(acls_of(run))
    if as_json:
        click.echo(msgspec.json.encode(rights))
        return
    bootstrap = app.connections.kafka.bootstrap or "HOST:PORT"
    for acl in rights:
        click.echo(kafka_acls_command(acl, user=named.get(acl.role, acl.role), bootstrap=bootstrap))
