"""The two services of one home directory: start, find, repair and stop them."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from search_env.engine.client import ElasticsearchSettings
from services.artefacts import Progress, silent
from services.elasticsearch import ROLE as ELASTICSEARCH
from services.engine_keys import make_engine_keys
from services.errors import ServiceError
from services.guardian import Guardian
from services.health import (
    OK,
    RED,
    SILENT,
    Answer,
    ask_elasticsearch,
    ask_kafka,
    elasticsearch_health,
    kafka_health,
)
from services.kafka import ROLE as KAFKA
from services.launch import Launcher, log_file, service_directory, why_it_ended
from services.processes import (
    ServiceProcess,
    is_alive,
    same_process,
    stop_processes,
    tagged_processes,
    this_process,
)
from services.roles import secure_kafka, with_credentials
from services.security import SecurityFolder
from services.settings import LocalSettings, ServiceSettings
from streams.acls import OPERATOR
from streams.kafka_settings import KafkaSettings
from streams.locks import in_turn
from streams.whole_file import write_file

ROLES = (KAFKA, ELASTICSEARCH)
POLL_SECONDS = 0.1
PROBE_SECONDS = 5.0
# `up` restarts a service that lives but is silent for this long. Garbage collection on a busy machine takes a fraction
# of this time.
PATIENCE_SECONDS = 30.0
STARTING_SECONDS = 30.0


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses of the services: kafka "host:port[,host:port]", elasticsearch "http://host:port"."""

    kafka: str
    elasticsearch: str


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `searchloop status`.

    pid is None if no process of ours runs (the service is down, or the user's own). health: "ok", "starting",
    "unhealthy" (lives but does not answer), "red" (an index cannot be searched), or "down".
    """

    role: str
    pid: int | None
    port: int | None
    health: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The content of state.json: the running processes, and the ports to request again after a stop."""

    processes: tuple[ServiceProcess, ...] = ()
    ports: dict[str, int] = {}


class LocalServices:
    """The Kafka and the Elasticsearch that belong to one home directory.

    attached: True ends the services that this object starts when this process ends, however it ends (tests, the demo).
    False lets them run until any process calls `down`. As a context manager, the object starts the services on entry
    and ends those that it started on exit.
    """

    def __init__(
        self, home: Path | str, settings: ServiceSettings | LocalSettings | None = None, *, attached: bool = False
    ) -> None:
        if isinstance(settings, LocalSettings):
            settings = ServiceSettings(local=settings)
        self.home = Path(home).expanduser().absolute()
        self.settings = settings or ServiceSettings()
        self.attached = attached
        self.directory = self.home / "services"
        self._security_folder = SecurityFolder(self.home)
        self._guardian: Guardian | None = None
        self._started: list[ServiceProcess] = []

    def __enter__(self) -> LocalServices:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_started()

    def endpoints(self) -> Endpoints:
        """Return the services' addresses without starting any; raises ServiceError if a local service is down."""
        running = {process.role: process.port for process in self._alive()}
        absent = [role for role in self.local_roles() if role not in running]
        if absent:
            raise ServiceError(f"{' and '.join(absent)} of {self.home} is not running. Run: searchloop up")
        return Endpoints(
            kafka=self.settings.kafka.bootstrap or f"127.0.0.1:{running[KAFKA]}",
            elasticsearch=self.settings.elasticsearch.url or self._engine_url(running[ELASTICSEARCH]),
        )

    def up(self, progress: Progress = silent) -> Endpoints:
        """Start services that are down, restart those that do not answer, and return when both services answer.

        After any failure, Ctrl-C included, the services that this call started are stopped; others run on.
        Raises ServiceError or its subclass ProvisionError.
        """
        for role in ROLES:
            if role not in self.local_roles() and (answer := self.external_answer(role)).health == SILENT:
                where = self._external_address(role)
                raise ServiceError(f"{role} at {where} does not answer or refuses us: {answer.reason}")
        with self._home_lock(progress):
            self._require_lockable()
            keep = [process for process in self._alive() if self._answers_in_time(process, progress)]
            kept = {process.pid for process in keep}
            for process in keep:
                if process.keeper and not self.attached:
                    progress(f"{process.role} belongs to process {process.keeper[0]} and ends with it", 0, 0)
            strangers = [process for process in tagged_processes(self.home, ROLES) if process.pid not in kept]
            if strangers:
                progress("stopping what an earlier run left behind", 0, 0)
                stop_processes(strangers, self.home, self.settings.local.stop_seconds)
            absent = [role for role in self.local_roles() if role not in {process.role for process in keep}]
            if absent:
                try:
                    self._start(absent, keep, progress)
                except OSError as error:
                    raise ServiceError(
                        f"{self.directory}: {error.strerror or error}. Make room, or name another --home"
                    ) from error
            return self.endpoints()

    def down(self, progress: Progress = silent) -> list[ServiceProcess]:
        """Stop both services, whichever process started them, and return the stopped ones, possibly none."""
        with self._home_lock(progress):
            ending = self._alive()
            known = {process.pid for process in ending}
            ending += [process for process in tagged_processes(self.home, ROLES) if process.pid not in known]
            return self._end(ending, progress)

    def stop_started(self, progress: Progress = silent) -> list[ServiceProcess]:
        """Stop the services that this object started and that still run, and return them."""
        with self._home_lock(progress):
            return self._end([process for process in self._started if is_alive(process, self.home)], progress)

    def remove(self) -> None:
        """Stop both services and delete their data, logs and settings."""
        self.down()
        for role in ROLES:
            directory = service_directory(role, self.home)
            shutil.rmtree(directory, ignore_errors=True)
            if not directory.is_relative_to(self.home):
                with contextlib.suppress(OSError):
                    directory.parent.rmdir()
        shutil.rmtree(self.directory, ignore_errors=True)

    def status(self, more: Sequence[ServiceStatus] = ()) -> list[ServiceStatus]:
        """Return one row per service, then the rows that the caller adds (workers)."""
        alive = {process.role: process for process in self._alive()}
        rows = []
        for role in ROLES:
            if role not in self.local_roles():
                _, _, port = self._external_address(role).rpartition(":")
                number = int(port) if port.isdigit() else None
                health = self.external_answer(role).health or "down"
                rows.append(ServiceStatus(role=role, pid=None, port=number, health=health))
            elif role in alive:
                process = alive[role]
                young = time.time() - process.started < STARTING_SECONDS
                health = self._health(process) or ("starting" if young else "unhealthy")
                rows.append(ServiceStatus(role=role, pid=process.pid, port=process.port, health=health))
            else:
                rows.append(ServiceStatus(role=role, pid=None, port=None, health="down"))
        return [*rows, *more]

    def local_roles(self) -> list[str]:
        """Return the services that we start ourselves, because no address is set for them."""
        return [role for role in ROLES if not self._external_address(role)]

    def _external_address(self, role: str) -> str:
        return self.settings.kafka.bootstrap if role == KAFKA else self.settings.elasticsearch.url

    def external_answer(self, role: str) -> Answer:
        """Return the answer of the user's own cluster, with the reason if it refuses us."""
        if role == KAFKA:
            return ask_kafka(self.settings.kafka, PROBE_SECONDS)
        return ask_elasticsearch(self.settings.elasticsearch, PROBE_SECONDS)

    def _alive(self) -> list[ServiceProcess]:
        return [process for process in self._read_state().processes if is_alive(process, self.home)]

    def _start(self, roles: list[str], keep: list[ServiceProcess], progress: Progress) -> None:
        """Provision, start and await the roles; on failure end them again."""
        local, remembered = self.settings.local, self._read_state().ports
        session = uuid.uuid4().hex
        launcher = Launcher(self.home, local, session, progress, self._security(wanted=local.secure))
        launcher.provision(roles)
        # The guardian also watches a detached start: if that is killed half-way, nothing half-started stays.
        guardian = Guardian(self.home, roles, session, local.stop_seconds)
        started: list[ServiceProcess] = []
        try:
            ports = dict(remembered)
            for role in sorted(roles):  # Elasticsearch first: it takes longest, and Kafka starts meanwhile
                process = msgspec.structs.replace(launcher.start(role, ports.get(role, 0)), keeper=this_process())
                ports[role] = process.port
                started.append(process)
                self._write_state(State(processes=(*keep, *started), ports=ports))
            self._await(started, progress)
            self._make_engine_keys(started)
        except BaseException:  # Ctrl-C too: nothing half-started may stay
            stop_processes([*started, *tagged_processes(self.home, roles)], self.home, local.stop_seconds)
            guardian.finish()  # finds by its tags a child whose start Ctrl-C interrupted
            self._write_state(State(processes=tuple(keep), ports=remembered))
            raise
        if self.attached:
            self._guardian, self._started = guardian, [*self._started, *started]
        else:
            free = [msgspec.structs.replace(process, keeper=None) for process in started]
            self._write_state(State(processes=(*keep, *free), ports=ports))
            guardian.release()

    def _end(self, ending: list[ServiceProcess], progress: Progress) -> list[ServiceProcess]:
        """End these processes and remove them from the state; the home must be locked. Return them."""
        if ending:
            progress(f"stopping {' and '.join(process.role for process in ending)}", 0, 0)
        stop_processes(ending, self.home, self.settings.local.stop_seconds)
        ended = {process.pid for process in ending}
        staying = tuple(process for process in self._alive() if process.pid not in ended)
        self._write_state(State(processes=staying, ports=self._read_state().ports))
        self._started = [process for process in self._started if is_alive(process, self.home)]
        if self._guardian is not None and not self._started:
            self._guardian.release()
            self._guardian = None
        return ending

    def _await(self, started: list[ServiceProcess], progress: Progress) -> None:
        """Wait until each process answers; raises ServiceError if one ends or takes too long."""
        begun = time.monotonic()
        limit = self.settings.local.start_seconds
        waiting = list(started)
        while waiting:
            late = time.monotonic() - begun > limit
            for process in list(waiting):
                health = self._health(process)
                # An index may be red while it is opened. If it stays red, the user must repair it while we run.
                if health == OK or (health == RED and late):
                    waiting.remove(process)
                elif not is_alive(process, self.home):
                    raise ServiceError(why_it_ended(process.role, self.home))
                elif late:
                    raise ServiceError(
                        f"{process.role} did not answer on port {process.port} within {limit:g} s; its log is "
                        f"{log_file(process.role, self.home)}. On a slow machine, raise services.start_seconds"
                    )
            if waiting:
                names = " and ".join(process.role for process in waiting)
                progress(f"waiting for {names}: {time.monotonic() - begun:.0f} s", 0, 0)
                time.sleep(POLL_SECONDS)

    def _answers_in_time(self, process: ServiceProcess, progress: Progress) -> bool:
        """Return whether a process that should be up answers before the timeout."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        if process.role not in self.local_roles() or (process.keeper and not same_process(*process.keeper)):
            return False  # a guardian is about to end it
        while is_alive(process, self.home):
            if self._health(process) != SILENT:
                return True
            if time.monotonic() > deadline:
                break
            progress(f"{process.role} lives but does not answer", 0, 0)
            time.sleep(POLL_SECONDS)
        return False

    def _health(self, process: ServiceProcess) -> str:
        if process.role == KAFKA:
            kafka = KafkaSettings(bootstrap=f"127.0.0.1:{process.port}")
            if (security := self._security()) is not None:
                kafka, _ = with_credentials(secure_kafka(security, kafka), ElasticsearchSettings(), role=OPERATOR)
            return kafka_health(kafka, PROBE_SECONDS)
        return elasticsearch_health(self._engine_as_superuser(process.port), PROBE_SECONDS)

    def _require_lockable(self) -> None:
        """Raise ServiceError if security is wanted but the services were made, or run, without it; change nothing."""
        if not self.settings.local.secure or self._security_folder.exists:
            return
        formatted = service_directory(KAFKA, self.home) / "data" / "meta.properties"
        if KAFKA in self.local_roles() and formatted.exists():
            raise ServiceError(
                f"the Kafka of {self.home} was made without users, and they cannot be added to an existing storage. "
                "Name another --home for `up --secure`"
            )
        if self._alive():
            raise ServiceError(f"the services of {self.home} run without security. Run: searchloop down")

    def _security(self, *, wanted: bool = False) -> SecurityFolder | None:
        """Return the security folder of this home if it exists or is wanted; otherwise None."""
        return self._security_folder if wanted or self._security_folder.exists else None

    def _engine_url(self, port: int) -> str:
        return f"{'http' if self._security() is None else 'https'}://127.0.0.1:{port}"

    def _engine_as_superuser(self, port: int) -> ElasticsearchSettings:
        engine = ElasticsearchSettings(url=self._engine_url(port))
        if (security := self._security()) is None:
            return engine
        password = security.engine_password.read_text().strip()
        return msgspec.structs.replace(engine, username="elastic", password=password, ca_certs=str(security.authority))

    def _make_engine_keys(self, started: Sequence[ServiceProcess]) -> None:
        """Make API keys once for the roles that call Elasticsearch, each with the rights that it needs."""
        for process in started:
            if process.role == ELASTICSEARCH and (security := self._security()) is not None:
                make_engine_keys(security, self._engine_as_superuser(process.port))

    @property
    def _state_file(self) -> Path:
        return self.directory / "state.json"

    def _read_state(self) -> State:
        try:
            return msgspec.json.decode(self._state_file.read_bytes(), type=State)
        except (FileNotFoundError, msgspec.DecodeError):
            # Absent or damaged: the tags on the command lines still identify our processes.
            return State()

    def _write_state(self, state: State) -> None:
        write_file(self._state_file, msgspec.json.format(msgspec.json.encode(state)))

    def _home_lock(self, progress: Progress) -> contextlib.AbstractContextManager[None]:
        """Let one process at a time start or stop the services of this home."""
        return in_turn(
            self.directory / ".lock",
            refusal=lambda error: ServiceError(
                f"{self.directory} cannot be written: {error.strerror}. Name another --home"
            ),
            waiting=lambda: progress("another searchloop is starting or stopping these services; waiting for it", 0, 0),
        )
