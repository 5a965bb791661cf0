"""Server processes behind one port: one that dies again and again is given up with a reason; none stays behind."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.serving.workers import DEATHS_MAX, WorkerEnded, Workers
from tests.kafka_cluster import wait_until

ANSWERS_AND_DIES = "import os, socket, sys; socket.socket(fileno=int(sys.argv[1])).send(b'r'); os.kill(os.getpid(), 9)"
DEAF = (
    "import signal, socket, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "socket.socket(fileno=int(sys.argv[1])).send(b'r'); time.sleep(600)"
)


def workers(code: str, said: list[str]) -> Workers:
    return Workers(
        socket.create_server(("127.0.0.1", 0)),
        lambda number, door, pair: [sys.executable, "-c", code, str(pair)],
        environment={},
        secrets=b"{}\n",
        drain_seconds=0.1,
        say=said.append,
    )


def test_a_process_that_dies_again_and_again_is_given_up_and_the_reason_says_how(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("infra.serving.workers.PAUSE_SECONDS", 0.001)
    said: list[str] = []
    with pytest.raises(WorkerEnded, match=rf"died {DEATHS_MAX + 1} times within 60 s, last by signal 9"):
        asyncio.run(workers(ANSWERS_AND_DIES, said).keep(1, ready=lambda: None))
    assert said.count("server process 1 died by signal 9; it starts again") == DEATHS_MAX
    assert said.count("server process 1 answers again") == DEATHS_MAX


def test_a_process_that_does_not_drain_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.serving.workers.KILL_SECONDS", 0.1)
    said: list[str] = []
    asyncio.run(workers(DEAF, said).keep(2, ready=lambda: signal.raise_signal(signal.SIGTERM)))
    assert [each for each in said if "is killed" in each] == [
        "a server process did not end within 0.2 s; it is killed"
    ] * 2


POOL = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from infra.serving.tail import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_policys_process_ends_with_a_killed_server(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    wait_until(lambda: not psutil.pid_exists(int(ended.stdout)), "the end of the pool's process")
