"""Secrets: texts that settings hold and that are never printed.

A setting is marked by its type, `SecretText`, in a struct that derives from `GuardedSettings`. Its value is then a
`Secret`: libraries that need a str get the text, and every way of printing it gives `HIDDEN`. msgspec refuses to encode
a Secret, so no settings file can hold one by accident.

`redact` is the last safeguard: it blanks known secrets and the credentials of URLs in texts from other programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from urllib.parse import unquote

import msgspec

HIDDEN = "•••"
MARK = "secret"
SecretText = Annotated[str, msgspec.Meta(extra={MARK: True})]

REDACTED_LENGTH_MIN = 6  # A shorter secret would blank out parts of ordinary words.
_KNOWN: set[str] = set()
# Up to the last @ before a blank: a password may hold an unencoded / or @.
_USERINFO = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s\"'<>]*@")


class Secret(str):
    """A text that is used and never shown."""

    __slots__ = ()

    def __new__(cls, value: str) -> Secret:
        """Return the secret, and remember it for `redact`."""
        made = super().__new__(cls, value)
        if len(value) >= REDACTED_LENGTH_MIN:
            _KNOWN.add(str.__str__(value))
        return made

    def __repr__(self) -> str:
        """Return a placeholder that shows nothing of the secret, not even its length."""
        return repr(HIDDEN)

    def __str__(self) -> str:
        """Return a placeholder that shows nothing of the secret, not even its length."""
        return HIDDEN

    def __format__(self, spec: str) -> str:
        """Return a placeholder that shows nothing of the secret, not even its length."""
        return format(HIDDEN, spec)

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        """Keep the type in another process."""
        return Secret, (reveal(self),)


def reveal(secret: str) -> str:
    """Return the secret text, only for the code that sends it; a text that is not a Secret stays unchanged."""
    return str.__str__(secret)


class GuardedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings whose fields of the type `SecretText` always become a `Secret`; empty ones stay ''."""

    def __post_init__(self) -> None:
        """Hide the secrets. Raises ValueError for a secret that no service would accept."""
        for name in secret_fields(type(self)):
            value = getattr(self, name)
            if value and not isinstance(value, Secret):
                msgspec.structs.force_setattr(self, name, Secret(value))
            if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
                raise ValueError(f"{name}: expected a secret of one line, got one with control characters")


@cache
def secret_fields(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the names of a struct's own fields that are secrets."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(name for name in kind.__struct_fields__ if is_secret(hints[name]))


def sounds_secret(name: str) -> bool:
    """Return whether a setting or variable of this name holds a secret or a user's name; names of files do not."""
    return name.lower().endswith(("password", "key", "username", "token", "secret"))


def is_secret(hint: Any) -> bool:
    """Return whether a field of this type is marked as secret."""
    if get_origin(hint) is not Annotated:
        return False
    return any((getattr(meta, "extra", None) or {}).get(MARK) for meta in get_args(hint)[1:])


def secret_paths(kind: type[msgspec.Struct], path: str = "") -> Iterator[str]:
    """Yield the path of every secret in a tree of settings."""
    for field in msgspec.structs.fields(kind):
        where = f"{path}.{field.name}" if path else field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from secret_paths(field.type, where)
        elif field.name in secret_fields(kind):
            yield where


def redact(text: str) -> str:
    """Return the text without the secrets of this process and without the credentials of URLs."""
    for secret in _KNOWN:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return _USERINFO.sub(rf"\1{HIDDEN}@", text) if "@" in text else text


def split_credentials(url: str) -> tuple[str, str, str]:
    """Return a URL without its credentials, then user name and password, decoded; '' and '' if it has none.

    Raises ValueError, which shows no part of the URL, if the credentials cannot be told from the address.
    """
    scheme, separator, rest = url.partition("://")
    if "@" not in url:
        return url, "", ""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    userinfo, at, host = authority.rpartition("@")
    user, colon, password = userinfo.partition(":")
    if not (separator and at and colon and user and password) or "@" in userinfo:
        raise ValueError(
            "expected https://USER:PASSWORD@HOST:PORT, with %40 for @, %2F for / and %3A for : within name and "
            "password, got another form, which is not shown"
        )
    return scheme + separator + host + rest[len(authority) :], unquote(user), unquote(password)
