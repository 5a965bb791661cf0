"""A local S3 server, as a process of its own, with one bucket and the environment that leads to it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "searchloop-tests"
_SERVE = "import sys; from moto.server import main; main(['-H', sys.argv[1], '-p', sys.argv[2]])"


@contextmanager
def s3_server(host: str = "127.0.0.1", port: int = 0) -> Iterator[dict[str, str]]:
    """Give the environment variables of clients of a local S3 server, which ends with the block."""
    port = port or _free_port(host)
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE, host, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://{host}:{port}"
    try:
        _make_bucket(address, server)
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.terminate()
        server.wait(10)


def _make_bucket(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"), timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, "the S3 server ended at its start"
            assert time.monotonic() < deadline, f"no answer from the S3 server at {address}"
            time.sleep(0.1)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
