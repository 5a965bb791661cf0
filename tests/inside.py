"""What a machine sees of this computer, told as JSON from inside: `python -m tests.inside '{"ports": [9092]}'`."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

CONNECT_SECONDS = 20.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """addresses: to connect to. paths: to look for. folders: to write into."""

    addresses: tuple[tuple[str, int], ...] = ()
    paths: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The answers, in the order of the questions; connections and writes have the name of their error, or none."""

    host: str
    interfaces: tuple[str, ...]
    processes: tuple[int, ...]
    connections: tuple[str, ...]
    visible: tuple[bool, ...]
    writes: tuple[str, ...]


def look(asked: Asked) -> Seen:
    """Return what this process sees."""
    return Seen(
        host=socket.gethostname(),
        interfaces=tuple(name for _, name in socket.if_nameindex()),
        processes=tuple(sorted(int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())),
        connections=tuple(_error(lambda to=to: _connect(to)) for to in asked.addresses),  # type: ignore[misc]
        visible=tuple(Path(path).exists() for path in asked.paths),
        writes=tuple(_error(lambda to=to: _write(Path(to))) for to in asked.folders),  # type: ignore[misc]
    )


def _connect(address: tuple[str, int]) -> None:
    socket.create_connection(address, timeout=CONNECT_SECONDS).close()


def _write(folder: Path) -> None:
    (folder / "written").write_text("from inside")


def _error(work: Callable[[], None]) -> str:
    try:
        work()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return ""


if __name__ == "__main__":
    print(json.dumps(msgspec.to_builtins(look(msgspec.json.decode(sys.argv[1], type=Asked)))))
