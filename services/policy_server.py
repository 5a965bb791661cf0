"""The vLLM of one home directory: its start for a base model, its restart and its end.

Unlike Kafka and Elasticsearch, it serves one run's base model, so a run starts and ends it. Like them, it is identified
by pid and tags, listens only on the loopback interface, and never outlives a parent that was killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
import urllib.request
import uuid
from pathlib import Path

import msgspec
import psutil

from services.artefacts import Progress, silent
from services.errors import ServiceError
from services.guardian import Guardian
from services.launch import choose_ports, log_file, require_port, require_room, spawn
from services.local import ServiceStatus
from services.processes import ServiceProcess, is_alive, stop_processes, tagged_processes, tags, this_process
from services.security import write_private
from services.vllm import (
    ROLE,
    VllmModel,
    VllmServerSettings,
    has_gpu,
    vllm_command,
    vllm_environment,
    vllm_python,
)
from streams.locks import in_turn
from streams.secrets import Secret, reveal
from streams.whole_file import write_file

POLL_SECONDS = 0.2
PROBE_SECONDS = 5.0
STOP_SECONDS = 10.0
LOG_LINES = 200


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """The content of state.json: the process, its model, and the port that a restart asks for."""

    process: ServiceProcess
    model: VllmModel


class PolicyServer:
    """The local vLLM of one home. A server that this object starts ends when this process ends, however it ends."""

    def __init__(self, home: Path | str, settings: VllmServerSettings | None = None) -> None:
        self.home = Path(home).expanduser().absolute()
        self.directory = self.home / "services" / ROLE
        self._settings = settings or VllmServerSettings()
        self._guardian: Guardian | None = None
        self._started: Served | None = None

    def url(self) -> str:
        """Return the server's address without starting it; raises ServiceError if the server is down."""
        served = self._alive()
        if served is None:
            raise ServiceError(
                f"vllm of {self.home} is not running. `searchloop train` starts it for a run; for a server of your "
                "own, set vllm.url"
            )
        return f"http://127.0.0.1:{served.process.port}"

    def key(self) -> Secret:
        """Return the API key of the server; '' if it never ran in this home."""
        try:
            return Secret(self._key_file.read_text().strip())
        except FileNotFoundError:
            return Secret("")

    def start(self, model: VllmModel, progress: Progress = silent) -> str:
        """Start a server for this model, or use one that serves it already; return its address when it answers.

        Raises ServiceError if this home's server serves another model for another process, or if it does not start.
        """
        with self._lock():
            served = self._alive()
            if served is not None and served.model == model and self._answers(served):
                return f"http://127.0.0.1:{served.process.port}"
            if served is not None and served.model != model and served.process.keeper != this_process():
                raise ServiceError(
                    f"vllm of {self.home} serves {served.model.folder} for process "
                    f"{(served.process.keeper or (0,))[0]}. Wait for that run, stop it with `searchloop down`, or name "
                    "another --home"
                )
            self._end()
            return self._start(model, progress)

    def check(self, progress: Progress = silent) -> None:
        """Restart the server at the same address if it has died; do nothing if this object started none."""
        if self._started is not None and not is_alive(self._started.process, self.home):
            progress("vllm has died; restarting it", 0, 0)
            with self._lock():
                self._end()
                self._start(self._started.model, progress)

    def stop(self) -> list[ServiceProcess]:
        """Stop the server, whichever process started it, and return the stopped processes, possibly none."""
        with self._lock():
            return self._end()

    def stop_started(self) -> None:
        """Stop the server if this object started it."""
        if self._started is not None:
            self.stop()
            self._started = None

    def status(self) -> list[ServiceStatus]:
        """Return the server's row, or no row if it never ran in this home; most runs need no vLLM."""
        served = self._read_state()
        if served is None:
            return []
        process = served.process
        if not is_alive(process, self.home):
            return [ServiceStatus(role=ROLE, pid=None, port=None, health="down")]
        young = time.time() - process.started < self._settings.start_seconds
        health = "ok" if self._answers(served) else "starting" if young else "unhealthy"
        return [ServiceStatus(role=ROLE, pid=process.pid, port=process.port, health=health)]

    def _start(self, model: VllmModel, progress: Progress) -> str:
        settings = self._settings
        python = vllm_python(settings)
        require_port(ROLE, settings.port)
        (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        require_room(self.directory)
        before = self._read_state()
        port, _ = choose_ports(settings.port, before.process.port if before else 0)
        session = uuid.uuid4().hex
        command = vllm_command(
            settings, model, python=python, port=port, tags=tags(self.home, ROLE, session), on_gpu=has_gpu(python)
        )
        if self._guardian is not None:
            self._guardian.release()
        self._guardian = Guardian(self.home, [ROLE], session, STOP_SECONDS)
        try:
            # vLLM takes the key from a variable or the command line. Only the process's own user can read a variable.
            write_private(self._key_file, secrets.token_urlsafe(24))
            variables = vllm_environment(settings, self.directory, api_key=reveal(self.key()))
            process = spawn(ROLE, command, self.directory, port, session, environment=variables)
            self._started = Served(process=msgspec.structs.replace(process, keeper=this_process()), model=model)
            self._write_state(self._started)
            self._await(self._started, progress)
        except BaseException:  # Ctrl-C, too: nothing half-started may stay.
            self._end()
            raise
        return f"http://127.0.0.1:{port}"

    def _await(self, served: Served, progress: Progress) -> None:
        begun = time.monotonic()
        while not self._answers(served):
            seconds = time.monotonic() - begun
            if not is_alive(served.process, self.home):
                raise ServiceError(f"vllm ended while it started: {self._last_words()}. Its log is {self._log}")
            if seconds > self._settings.start_seconds:
                raise ServiceError(
                    f"vllm did not answer on port {served.process.port} within {self._settings.start_seconds:g} s; its "
                    f"log is {self._log}. On a slow machine, raise vllm_server.start_seconds"
                )
            progress(f"waiting for vllm: {seconds:.0f} s", 0, 0)
            time.sleep(POLL_SECONDS)

    def _end(self) -> list[ServiceProcess]:
        """End the tagged processes, then the rest of their sessions; the home must be locked."""
        served = self._read_state()
        ending = list(tagged_processes(self.home, [ROLE]))
        leaders = {process.pid for process in ending} | ({served.process.pid} if served else set())
        stop_processes(ending, self.home, STOP_SECONDS)
        for leader in leaders:
            end_session(leader, self.directory.resolve())
        if self._guardian is not None:
            self._guardian.release()
            self._guardian = None
        return [served.process] if served is not None and ending else ending[:1]

    def _answers(self, served: Served) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{served.process.port}/health", timeout=PROBE_SECONDS):
                return True
        except (OSError, ValueError):
            return False

    def _alive(self) -> Served | None:
        served = self._read_state()
        return served if served is not None and is_alive(served.process, self.home) else None

    @property
    def _key_file(self) -> Path:
        return self.directory / "api.key"

    @property
    def _log(self) -> Path:
        return log_file(ROLE, self.home).with_name("console.log")

    def _last_words(self) -> str:
        """Return the line of the server's log that best explains its end."""
        try:
            lines = self._log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
        except OSError:
            lines = []
        errors = [line for line in lines if "Error: " in line]
        return ((errors or lines or ["it wrote no reason"])[-1]).strip()[-300:]

    def _read_state(self) -> Served | None:
        try:
            return msgspec.json.decode((self.directory / "state.json").read_bytes(), type=Served)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _write_state(self, served: Served) -> None:
        write_file(self.directory / "state.json", msgspec.json.format(msgspec.json.encode(served)))

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        """Let one process at a time start or stop the server."""
        return in_turn(
            self.directory / ".lock",
            refusal=lambda error: ServiceError(
                f"{self.directory} cannot be written: {error.strerror}. Name another --home"
            ),
        )


def end_session(leader: int, directory: Path) -> None:
    """Kill the remaining processes of a session that we started in this directory.

    The system does not reuse a session's number while a member lives. The directory distinguishes our session from one
    that got the number after ours had ended.
    """
    for seen in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(seen.pid) == leader != os.getsid(0) and Path(seen.cwd()) == directory:
                os.kill(seen.pid, signal.SIGKILL)
