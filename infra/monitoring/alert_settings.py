"""The settings of alerts: the user's rules, and the webhook that is told of changes."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from streams.descriptions import describe
from streams.secrets import GuardedSettings, SecretText


class AlertSettings(GuardedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The alert rules of the user, and the webhook that the monitor tells of every change (infra/ALERTS.md)."""

    rules: Annotated[
        str,
        describe("Path of a TOML file with alert rules, over the built-in ones. Empty: only the built-in ones."),
    ] = ""
    webhook: Annotated[
        str,
        describe("URL (http or https) to which the monitor posts each change of an alert, as JSON. Empty: none."),
    ] = ""
    webhook_secret: Annotated[
        SecretText,
        describe("Secret that each post carries, as `Authorization: Bearer SECRET`. Empty: none is sent."),
    ] = ""
    webhook_secret_file: Annotated[
        str, describe("Path of a file that holds webhook_secret, which then stays empty.")
    ] = ""
    webhook_timeout_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=60), describe("Time that the webhook may take to answer one post.")
    ] = 5.0
    webhook_attempts: Annotated[
        int, msgspec.Meta(ge=1, le=20), describe("Posts of one change, the first one included, before it is given up.")
    ] = 6
    webhook_pause_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=600),
        describe("Pause before the second post of a change. It doubles with each further one, up to 5 minutes."),
    ] = 2.0

    def __post_init__(self) -> None:
        """Hide the secret. Raises ValueError for a URL that is not http(s), or that would show the secret."""
        super().__post_init__()
        if not self.webhook_secret.isascii():
            raise ValueError("webhook_secret: expected ASCII, because no header can hold other characters")
        if not self.webhook:
            return
        try:
            url = urlsplit(self.webhook)
            host, _ = url.hostname or "", url.port
        except ValueError:
            raise ValueError("webhook: expected a URL such as https://example.org/hook, got another text") from None
        if url.scheme not in ("http", "https") or not host:
            raise ValueError("webhook: expected a URL that begins with http:// or https:// and names a host")
        if any(not 0x21 <= ord(character) < 0x7F for character in self.webhook):
            raise ValueError("webhook: expected a URL of visible ASCII characters, got others; encode them with %")
        if url.username is not None or url.password is not None:
            raise ValueError("webhook: expected a URL without user and password; use webhook_secret")
        if (self.webhook_secret or self.webhook_secret_file) and url.scheme == "http" and not _is_loopback(host):
            raise ValueError("webhook: expected https:// with a secret, because http:// would show it on the network")


class AlertTable(msgspec.Struct, frozen=True, kw_only=True):
    """The table of settings that alerts need."""

    alerts: AlertSettings = AlertSettings()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
