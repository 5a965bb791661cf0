"""Secrets among the environment variables: removed from the environment at once, so that no child inherits them.

Tools such as `ps` can read a child's first environment as long as the child lives. Our children therefore get their
secrets through a pipe: as the first line on standard input, or in the arguments that multiprocessing sends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping

from streams.secrets import sounds_secret

PREFIX = "SEARCHLOOP_"  # The prefix of every variable that is a setting.
FROM_PIPE = "SEARCHLOOP_SECRETS"  # The number of the file descriptor with the secrets, one line of JSON.
LINE_BYTES_MAX = 1 << 20
# By role: the tables whose secrets a worker gets. The operator, which runs all other verbs, gets all.
TABLES = {
    "generator": ("KAFKA", "VLLM"),
    "environment": ("KAFKA", "ELASTICSEARCH"),
    "learner": ("KAFKA",),
    "evaluator": ("KAFKA", "ELASTICSEARCH"),
    "joiner": ("KAFKA",),
    "sink": ("KAFKA",),
    "monitor": ("KAFKA", "ALERTS"),
}
_ADDRESS_ENDINGS = ("URL", "BOOTSTRAP")


def is_private(name: str, value: str) -> bool:
    """Return whether a variable holds, or may hold, a secret; a variable that only names a file does not."""
    if not name.startswith(PREFIX):
        return False
    return sounds_secret(name) or (name.endswith(_ADDRESS_ENDINGS) and "@" in value)


def take_private(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Remove the secrets from an environment and return them, with those that the parent sent through a pipe."""
    pipe = environment.pop(FROM_PIPE, "")
    sent = _first_line(int(pipe)) if pipe.isdigit() else {}
    taken = {name: value for name, value in environment.items() if is_private(name, value)}
    for name in taken:
        del environment[name]
    return taken | sent


def public(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without secrets."""
    return {name: value for name, value in environment.items() if not is_private(name, value)}


def for_role(environment: Mapping[str, str], role: str) -> dict[str, str]:
    """Return an environment with only those secrets that a worker of this role needs."""
    mine = tuple(f"{PREFIX}{table}__" for table in TABLES.get(role, ()))
    return {name: value for name, value in environment.items() if not is_private(name, value) or name.startswith(mine)}


def piped(environment: Mapping[str, str], descriptor: int = 0) -> tuple[dict[str, str], bytes]:
    """Return a child's environment without secrets, and the line of secrets that it reads from this descriptor."""
    private = {name: value for name, value in environment.items() if is_private(name, value)}
    return public(environment) | {FROM_PIPE: str(descriptor)}, json.dumps(private).encode() + b"\n"


def _first_line(descriptor: int) -> dict[str, str]:
    """Read the line byte by byte, because another reader needs the bytes after it."""
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
        more = os.read(descriptor, 1)
        if not more:
            return {}
        line += more
    try:
        sent = json.loads(line)
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in sent.items()} if isinstance(sent, dict) else {}
