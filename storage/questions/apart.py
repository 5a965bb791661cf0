"""SQL of people, answered in a process of its own, which can be ended at any moment and takes a bounded memory.

DuckDB's memory limit holds for its buffers, and not for what one function makes: `range(1000000000)` is a list of 8 GB.
Some functions cannot be interrupted either. So the process may not ask the system for more than `ADDRESSES_MIB`, and a
question that is late ends with its process; the next question starts a new one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import duckdb
import msgspec

from storage.ledger import explain, is_open_elsewhere
from storage.pipes import close_pipes, receive_message, send_message, start_serving
from storage.questions.asking import AskLimits, LedgerAnswer, Refusal, ask, reading_options
from storage.scratch import Scratch

GRACE_SECONDS = 2.0  # Beyond the time of a question, until its process is ended.
MEMORY_MIB = 1024
ADDRESSES_MIB = 3 * MEMORY_MIB  # Libraries and stacks take half a GB of addresses, and little memory.
LOOK_SECONDS = 1.0
NICE = 5  # Searches and the loop come first.
TOO_LARGE = (
    f"expected an answer within {MEMORY_MIB:,} MiB of memory, and stopped there. Ask for less: a version, a query, or "
    "an aggregate"
)


class AskedApart(msgspec.Struct, frozen=True, kw_only=True):
    """One question for the process. path: of a ledger that nobody writes. spill: a folder of the process."""

    path: str
    spill: str
    sql: str
    parameters: dict[str, object]
    limits: AskLimits


class ToldApart(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer, or why there is none. held: somebody else has opened the ledger meanwhile."""

    answer: LedgerAnswer | None = None
    refused: str = ""
    held: bool = False


class HeldElsewhere(Exception):
    """A sink has taken the ledger's file meanwhile."""


class AskingProcess:
    """The process that answers. It starts at the first question, and ends with this object or with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Scratch | None = None
        self._one = threading.Lock()

    def ask(
        self, path: Path, sql: str, parameters: Mapping[str, object] | None = None, *, limits: AskLimits | None = None
    ) -> LedgerAnswer:
        """Ask one SELECT of a ledger's file. One question at a time; others wait.

        Raises Refusal as `asking.ask` does, also for a question that is late or too large, and HeldElsewhere.
        """
        limits = limits or AskLimits()
        with self._one:
            process = self._process or self._started()
            assert process.stdin is not None and process.stdout is not None and self._scratch is not None
            asked = AskedApart(
                path=str(path), spill=str(self._scratch.path), sql=sql, parameters=dict(parameters or {}), limits=limits
            )
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(limits.seconds + GRACE_SECONDS, end)
            timer.daemon = True
            timer.start()
            told = None
            try:
                send_message(process.stdin, _as_json(asked))
                told = msgspec.json.decode(receive_message(process.stdout), type=ToldApart)
            except (OSError, EOFError):
                self._end()
            finally:
                timer.cancel()
                timer.join()
                if late.is_set():
                    self._end()
        if told is None:
            raise Refusal(
                f"expected an answer within {limits.seconds:g} s, and stopped there. Ask for less: a version, a query, "
                "or an aggregate"
                if late.is_set()
                else TOO_LARGE
            )
        if told.held:
            raise HeldElsewhere
        if told.answer is None:
            raise Refusal(told.refused)
        return told.answer

    def close(self) -> None:
        """End the process, also while it answers."""
        process = self._process
        if process is not None:
            process.kill()
        with self._one:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        self._scratch = Scratch()
        self._process = start_serving("from storage.questions.apart import serve; serve()")
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        scratch, self._scratch = self._scratch, None
        if process is not None:
            process.kill()
            process.wait()
            close_pipes(process)
        if scratch is not None:
            scratch.remove()


def serve() -> None:
    """Answer the questions of another process until its end of the pipe is closed, or it is gone."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.nice(NICE)
    with contextlib.suppress(ValueError, OSError):  # Not every system keeps such a limit.
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES_MIB * 2**20, ADDRESSES_MIB * 2**20))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, OSError):
        while True:
            send_message(sink, _as_json(_told(msgspec.json.decode(receive_message(source), type=AskedApart))))


def _told(asked: AskedApart) -> ToldApart:
    path, options = Path(asked.path), reading_options(memory_mib=MEMORY_MIB, spill=Path(asked.spill))
    try:
        connection = duckdb.connect(asked.path, read_only=True, config=options)
    except duckdb.Error as error:
        return ToldApart(held=True) if is_open_elsewhere(error) else ToldApart(refused=explain(path, error))
    with connection:
        try:
            return ToldApart(answer=ask(connection, asked.sql, asked.parameters, limits=asked.limits))
        except Refusal as error:
            return ToldApart(
                refused=TOO_LARGE if isinstance(error.__cause__, duckdb.OutOfMemoryException) else str(error)
            )
        except MemoryError:
            return ToldApart(refused=TOO_LARGE)


def _as_json(value: AskedApart | ToldApart) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, also during a question that cannot be interrupted."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
