"""Messages through the pipes of a child process: each has its length before it."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from typing import IO

import pyarrow as pa

_LENGTH = struct.Struct("<Q")


def start_serving(call: str) -> subprocess.Popen[bytes]:
    """Start a process that runs a statement of ours, such as "from storage.building import serve; serve()"."""
    return subprocess.Popen(
        [sys.executable, "-c", call],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ.get("PATH", "")},
        start_new_session=True,  # Ctrl-C is for the parent, which ends its child itself.
    )


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    """Close both pipes of a child; one that serves ends when its input does."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def send_message(pipe: IO[bytes], content: bytes | pa.Buffer) -> None:
    """Write one message. Raises OSError if the other end is gone."""
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def receive_message(pipe: IO[bytes]) -> bytearray:
    """Return one message. Raises EOFError if the other end is gone."""
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return _exactly(pipe, length)


def _exactly(pipe: IO[bytes], length: int) -> bytearray:
    content = bytearray(length)
    view, done = memoryview(content), 0
    while done < length:
        read = pipe.readinto(view[done:])  # type: ignore[attr-defined]
        if not read:
            raise EOFError("expected an answer of the other process, got the end of its output")
        done += read
    return content
