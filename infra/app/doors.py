"""The socket on which a server of ours answers."""

from __future__ import annotations

import socket

from streams.errors import SettingsError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Hosts that only this machine reaches."""

BACKLOG = 1_024  # Connections that wait to be accepted.


def open_door(host: str, port: int, *, table: str) -> socket.socket:
    """Return a listening socket, which no other process can have. Raises SettingsError if the address is taken.

    table: the settings table of host and port.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"{table}.port: expected an address to listen on, got {host}:{port} ({error.strerror}). "
            "Choose another: --port N, or 0 for a free one"
        ) from error
