"""The two services of one home directory: start them, find them again, mend them, stop them."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from infra.services.artefacts import Progress, silent
from infra.services.elasticsearch import ROLE as ELASTICSEARCH
from infra.services.errors import ServiceError
from infra.services.guardian import Guardian
from infra.services.health import elasticsearch_answers, kafka_answers
from infra.services.kafka import ROLE as KAFKA
from infra.services.launch import launch, log_file, why_it_ended
from infra.services.processes import ServiceProcess, is_alive, stop_processes, tagged_processes
from infra.services.settings import ElasticsearchSettings, LocalSettings, ServiceSettings
from streams.clients import KafkaSettings

ROLES = (KAFKA, ELASTICSEARCH)
POLL_SECONDS = 0.1
PROBE_SECONDS = 5.0


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """Where clients find the services: kafka "host:port[,host:port]", elasticsearch "http://host:port"."""

    kafka: str
    elasticsearch: str


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `searchloop status`; health is "ok", "starting", "unhealthy", "down" or "external"."""

    role: str
    pid: int | None
    port: int | None
    health: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What state.json remembers: who runs, and which ports to ask for again after a stop."""

    processes: tuple[ServiceProcess, ...] = ()
    ports: dict[str, int] = {}


class LocalServices:
    """The Kafka and the Elasticsearch that belong to one home directory.

    attached: the services end when this process does, however it ends (tests, the demo). Detached, they run until
    `down`, from whichever process. Used as a context manager it starts on entry and stops on exit.
    """

    def __init__(
        self, home: Path, settings: ServiceSettings | LocalSettings | None = None, *, attached: bool = False
    ) -> None:
        self.home = Path(home).expanduser().absolute()
        if isinstance(settings, LocalSettings):
            settings = ServiceSettings(local=settings)
        self.settings = settings or ServiceSettings()
        self.attached = attached
        self.directory = self.home / "services"
        self._guardian: Guardian | None = None

    def __enter__(self) -> LocalServices:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()

    def endpoints(self) -> Endpoints:
        """Return where the services are, without starting any; raises ServiceError where a local one is down."""
        state = self._read_state()
        running = {process.role: process.port for process in state.processes if is_alive(process, self.home)}
        absent = [role for role in self._local_roles() if role not in running]
        if absent:
            raise ServiceError(f"{' and '.join(absent)} of {self.home} is not running. Run: searchloop up")
        return Endpoints(
            kafka=self.settings.kafka.bootstrap or f"127.0.0.1:{running[KAFKA]}",
            elasticsearch=self.settings.elasticsearch.url or f"http://127.0.0.1:{running[ELASTICSEARCH]}",
        )

    def up(self, progress: Progress = silent) -> Endpoints:
        """Start what is not running, mend what does not answer, and return when both services answer.

        On any failure, Ctrl-C included, what this call started is stopped again.
        """
        with self._home_lock(progress):
            state = self._read_state()
            wanted = self._local_roles()
            keep = [process for process in state.processes if process.role in wanted and self._answers(process)]
            strangers = [p for p in tagged_processes(self.home, ROLES) if p.pid not in {k.pid for k in keep}]
            if strangers:
                progress("stopping what an earlier run left behind", 0, 0)
                stop_processes(strangers, self.home, self.settings.local.stop_seconds)
            absent = [role for role in wanted if role not in {process.role for process in keep}]
            self._write_state(State(processes=tuple(keep), ports=state.ports))
            if self.attached and self._guardian is None and (absent or keep):
                self._guardian = Guardian(self.home, self.settings.local.stop_seconds)
            if absent:
                self._start(absent, keep, state.ports, progress)
        return self.endpoints()

    def down(self, progress: Progress = silent) -> list[ServiceProcess]:
        """Stop both services and return what was stopped; nothing running is no error."""
        with self._home_lock(progress):
            state = self._read_state()
            alive = [process for process in state.processes if is_alive(process, self.home)]
            known = {process.pid for process in alive}
            alive += [process for process in tagged_processes(self.home, ROLES) if process.pid not in known]
            if alive:
                progress(f"stopping {' and '.join(process.role for process in alive)}", 0, 0)
            stop_processes(alive, self.home, self.settings.local.stop_seconds)
            self._write_state(State(ports=state.ports))
            if self._guardian is not None:
                self._guardian.release()
                self._guardian = None
            return alive

    def status(self, more: Sequence[ServiceStatus] = ()) -> list[ServiceStatus]:
        """Return one row per service, then the rows that the caller knows of (workers)."""
        processes = {process.role: process for process in self._read_state().processes}
        rows = []
        for role in ROLES:
            if role not in self._local_roles():
                rows.append(ServiceStatus(role=role, pid=None, port=None, health=self._external_health(role)))
            elif role in processes and is_alive(processes[role], self.home):
                process = processes[role]
                health = "ok" if self._answers(process) else "unhealthy"
                rows.append(ServiceStatus(role=role, pid=process.pid, port=process.port, health=health))
            else:
                rows.append(ServiceStatus(role=role, pid=None, port=None, health="down"))
        return [*rows, *more]

    def _local_roles(self) -> list[str]:
        external = {KAFKA: self.settings.kafka.bootstrap, ELASTICSEARCH: self.settings.elasticsearch.url}
        return [role for role in ROLES if not external[role]]

    def _external_health(self, role: str) -> str:
        if role == KAFKA:
            answers = kafka_answers(self.settings.kafka, PROBE_SECONDS)
        else:
            answers = elasticsearch_answers(self.settings.elasticsearch, PROBE_SECONDS)
        return "external" if not answers else f"external, {answers}"

    def _start(self, roles: list[str], keep: list[ServiceProcess], remembered: dict[str, int], progress: Progress) -> None:
        """Provision, start and await the roles; on failure stop them again."""
        local = self.settings.local
        guardian = self._guardian or Guardian(self.home, local.stop_seconds)
        started: list[ServiceProcess] = []
        try:
            ports = dict(remembered)
            # Elasticsearch first: it takes longest, so Kafka comes up in its shadow.
            for role in sorted(roles):
                process = launch(role, self.home, local, ports.get(role, 0), progress)
                ports[role] = process.port
                started.append(process)
                self._write_state(State(processes=(*keep, *started), ports=ports))
            self._await(started, progress)
        except BaseException:
            stop_processes(started, self.home, local.stop_seconds)
            stop_processes(list(tagged_processes(self.home, roles)), self.home, local.stop_seconds)
            self._write_state(State(processes=tuple(keep), ports=remembered))
            if not self.attached:
                guardian.release()
            raise
        if not self.attached:
            guardian.release()

    def _await(self, started: list[ServiceProcess], progress: Progress) -> None:
        """Wait until each one answers; raises ServiceError if one ends or takes too long."""
        begun = time.monotonic()
        deadline = begun + self.settings.local.start_seconds
        waiting = list(started)
        while waiting:
            for process in list(waiting):
                if self._answers(process):
                    waiting.remove(process)
                elif not is_alive(process, self.home):
                    raise ServiceError(why_it_ended(process.role, self.home))
                elif time.monotonic() > deadline:
                    raise ServiceError(
                        f"{process.role} did not answer on port {process.port} within "
                        f"{self.settings.local.start_seconds:g} s; its log is {log_file(process.role, self.home)}. A slow "
                        "machine needs more: services.local.start_seconds"
                    )
            if waiting:
                names = " and ".join(process.role for process in waiting)
                progress(f"waiting for {names}", int(time.monotonic() - begun), 0)
                time.sleep(POLL_SECONDS)

    def _answers(self, process: ServiceProcess) -> bool:
        if not is_alive(process, self.home):
            return False
        if process.role == KAFKA:
            return bool(kafka_answers(KafkaSettings(bootstrap=f"127.0.0.1:{process.port}"), PROBE_SECONDS))
        return bool(elasticsearch_answers(ElasticsearchSettings(url=f"http://127.0.0.1:{process.port}"), PROBE_SECONDS))

    @property
    def _state_file(self) -> Path:
        return self.directory / "state.json"

    def _read_state(self) -> State:
        try:
            return msgspec.json.decode(self._state_file.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except msgspec.DecodeError:
            return State()  # torn by a full disk: the tags on the command lines still tell which processes are ours

    def _write_state(self, state: State) -> None:
        aside = self._state_file.with_suffix(".aside")
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        aside.replace(self._state_file)

    @contextlib.contextmanager
    def _home_lock(self, progress: Progress) -> Iterator[None]:
        """Let one process at a time start or stop the services of this home."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle = (self.directory / ".lock").open("w")
        except OSError as error:
            raise ServiceError(f"{self.directory} cannot be written: {error.strerror}. Name another --home") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("another searchloop starts or stops these services; waiting for it", 0, 0)
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
