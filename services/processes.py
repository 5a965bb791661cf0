"""Child processes, attached or detached: how to identify them, check that they live, and stop them."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

POLL_SECONDS = 0.05
PORTS = 20_000, 32_000  # Outgoing connections have ports from 32,768 on (Linux) or 49,152 (macOS).
PORT_TRIES = 50
START_TOLERANCE_SECONDS = 2.0  # a change of the clock moves the start times that the kernel reports


class ServiceProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process that we started.

    started: seconds since the epoch, from the kernel. Pids are reused; a pid with its start time is unique.
    session: the name of the start, a tag on the process's command line; empty if no tag was requested.
    keeper: the pid and start time of the process that this one must not outlive, or None if it may.
    """

    role: str
    pid: int
    started: float
    port: int
    session: str = ""
    keeper: tuple[int, float] | None = None


class ProcessUser(msgspec.Struct, frozen=True, kw_only=True):
    """The user that a process runs as, if it is not our own user."""

    uid: int
    gid: int


def tags(home: Path, role: str, session: str) -> list[str]:
    """Return the command-line arguments that mark a process as ours: its home, its role and its start."""
    return [f"-Dsearchloop.{role}={home}", f"-Dsearchloop.session={session}"]


def is_alive(process: ServiceProcess, home: Path) -> bool:
    """Return whether the process still runs and is the one that we started, not another one with the same pid.

    The unique tags on its command line identify it; the start time alone would shift with the clock. If the command
    line cannot be read (another user's process on macOS, or a child during exec), the start time decides.
    """
    try:
        seen = psutil.Process(process.pid)
        if seen.status() == psutil.STATUS_ZOMBIE:
            return False
        command = seen.cmdline()
    except psutil.AccessDenied:
        command = []
    except psutil.NoSuchProcess:
        return False
    if not command:
        return same_process(process.pid, process.started)
    mine, session = tags(home, process.role, process.session)
    return mine in command and (not process.session or session in command)


def same_process(pid: int, started: float) -> bool:
    """Return whether a process with this pid runs and started at this time."""
    try:
        seen = psutil.Process(pid)
        gone = seen.status() == psutil.STATUS_ZOMBIE
        return not gone and bool(abs(seen.create_time() - started) <= START_TOLERANCE_SECONDS)
    except psutil.NoSuchProcess:
        return False


def tagged_processes(home: Path, roles: Sequence[str], session: str = "") -> Iterator[ServiceProcess]:
    """Find processes of this home by their tags alone, including those that a crash kept out of the state file.

    session: the name of one start; empty means all starts.
    """
    wanted = {tags(home, role, session)[0]: role for role in roles}
    for seen in psutil.process_iter(["pid", "cmdline", "create_time"]):
        command = seen.info["cmdline"] or []
        for argument in command:
            if argument in wanted and (not session or tags(home, "", session)[1] in command):
                yield ServiceProcess(role=wanted[argument], pid=seen.pid, started=seen.info["create_time"], port=0)


def describe(pid: int, role: str, port: int, session: str) -> ServiceProcess:
    """Return the record of a new child, with its start time from the kernel."""
    return ServiceProcess(role=role, pid=pid, started=psutil.Process(pid).create_time(), port=port, session=session)


def this_process() -> tuple[int, float]:
    """Return our own pid and start time."""
    return os.getpid(), psutil.Process().create_time()


def java_environment(temporary: Path) -> dict[str, str]:
    """Return the whole environment of a Java child; it inherits nothing from ours.

    The locale makes Java read paths as UTF-8, whatever the user's own locale is.
    """
    return {"HOME": str(temporary), "PATH": os.defpath, "LC_ALL": "C.UTF-8"}


def stop_processes(processes: Sequence[ServiceProcess], home: Path, limit_seconds: float) -> list[ServiceProcess]:
    """Ask all processes to end, wait, kill those that live after the limit, and return those that survive even this."""
    running = [process for process in processes if is_alive(process, home)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)
        deadline = time.monotonic() + limit_seconds
        while running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            for process in running:
                # A child stays a zombie until its parent waits for it; we do not always know its parent.
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
            running = [process for process in running if is_alive(process, home)]
    return running


def service_account() -> ProcessUser | None:
    """Return the account of Elasticsearch: nobody if we are root, which it refuses; otherwise None, our own user."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return ProcessUser(uid=nobody.pw_uid, gid=nobody.pw_gid)


def can_enter(path: Path, account: ProcessUser | None) -> bool:
    """Return whether the account may enter every existing folder above `path` and read `path`."""
    if account is None:
        return True
    for folder in [path, *path.parents]:
        try:
            status = folder.stat()
        except FileNotFoundError:
            continue
        shift = 6 if status.st_uid == account.uid else 3 if status.st_gid == account.gid else 0
        needed = 0o5 if folder == path else 0o1  # read and enter the last one, only enter those above it
        if status.st_mode >> shift & needed != needed:
            return False
    return True


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return distinct ports on which nobody listens.

    The ports are below those that the kernel gives to outgoing connections. Otherwise a client that retries a service
    that is down may get the service's own port, connect to itself, and block the service's restart.
    """
    draw = random.SystemRandom()
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            for port in (*(draw.randrange(*PORTS) for _ in range(PORT_TRIES)), 0):  # 0: any, if all were taken.
                with contextlib.suppress(OSError):
                    probe.bind(("127.0.0.1", port))
                    break
        return [int(probe.getsockname()[1]) for probe in probes]
