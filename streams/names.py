"""Names from outside that become part of a path: accepted whole or refused, never repaired.

Anybody may write a path or a name into an event, a manifest, a letter or a settings file. It may be absolute, or
contain `..` or a NUL. Joined to a folder, it would lead out of that folder. So the code that joins such a name checks
it here first.
"""

from __future__ import annotations

import re

from streams.errors import EventError
from streams.topics import version_name

CHECKPOINTS = "checkpoints"
NAME_CHARACTERS_MAX = 200  # A file name may have 255 bytes; the rest is left for the suffixes of files beside it.

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_VERSION = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*-[0-9]{6,}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def is_name(text: str) -> bool:
    """Return whether a text may be the name of one file or folder, with only letters, digits and `_.+-`.

    The text must not be a path and not be hidden.
    """
    return len(text) <= NAME_CHARACTERS_MAX and _NAME.fullmatch(text) is not None


def is_version_name(text: str) -> bool:
    """Return whether a text has the form of a policy version's name: `<lineage>-<step>`.

    A lineage is words of letters and digits with single '-' between them, such as `2-ab12cd`. The step has six digits
    or more.
    """
    return len(text) <= NAME_CHARACTERS_MAX and _VERSION.fullmatch(text) is not None


def is_topic_name(text: str) -> bool:
    """Return whether Kafka accepts a text as a topic's name; that name is also the name of a folder."""
    return _TOPIC.fullmatch(text) is not None and text not in (".", "..")


def version_folder(path: str, policy: object) -> str:
    """Return an announced path if it is exactly `checkpoints/<name of this policy version>`.

    policy: has `lineage` and `step`, as `PolicyRef` does.
    Raises EventError for every other path: absolute ones, ones with `..`, and those of another version.
    """
    name = version_name(policy)
    if not is_version_name(name):
        raise EventError(f"policy version: expected a name like 1-ab12cd-000007, got {name[:NAME_CHARACTERS_MAX]!r}")
    if path != f"{CHECKPOINTS}/{name}":
        raise EventError(
            f"policy version {name}: expected the path '{CHECKPOINTS}/{name}', got {path[:NAME_CHARACTERS_MAX]!r}"
        )
    return path
