"""`searchloop acls`: the rights that the roles of a run need on the user's own Kafka."""

from __future__ import annotations

import click
import msgspec

from infra.app.app import App
from streams.acls import ROLES, acls_of, kafka_acls_command


@click.command()
@click.option("--run", "run_name", required=True, help="Name of the run, which need not exist yet.")
@click.option(
    "--user",
    "users",
    multiple=True,
    metavar="ROLE=USER",
    help="User of a role; may be repeated. Default: the role's name.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects with role, resource, name, operation.")
@click.pass_obj
def acls(app: App, run_name: str, users: tuple[str, ...], as_json: bool) -> None:
    """Print the rights that a run's roles need, as commands of the Kafka command-line tool.

    \b
    The roles are generator, environment, learner, sink, monitor and operator (for all other verbs). Several roles may
    share one user. On the Kafka of `up --secure`, searchloop grants these rights itself.

    \b
    Example:
      searchloop acls --run leser-shop-0 --user sink=warehouse
    """
    named = dict(text.partition("=")[::2] for text in users)
    if wrong := [text for text in users if text.partition("=")[0] not in ROLES or not text.partition("=")[2]]:
        raise click.UsageError(f"--user: expected ROLE=USER with a role of {', '.join(ROLES)}, got {wrong[0]!r}")
    rights = list(acls_of(run_name))
    if as_json:
        click.echo(msgspec.json.encode(rights))
        return
    bootstrap = app.connections.kafka.bootstrap or "HOST:PORT"
    for acl in rights:
        click.echo(kafka_acls_command(acl, user=named.get(acl.role, acl.role), bootstrap=bootstrap))
