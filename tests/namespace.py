"""Namespaces of a machine's own, which need no root: its network, files, processes and host name.

Inside there is one interface, the loopback, and on it nothing but *doors*: ports that lead to the same port of the real
loopback. The machine's first process (`tests.machine_init`) listens on them and hands the listening sockets out, and a
thread of this process joins each connection with one to the service. No interface leads out, so nothing needs a route,
an address or a right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil

from tests import machine_init
from tests.commands import ROOT

NEEDED = (
    "These tests need Linux 5.12 or newer, util-linux (unshare), and the right to make user namespaces: "
    "user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0 where AppArmor has it, and in a "
    "container a seccomp profile that allows unshare and mount"
)
UNSHARE = (
    *("unshare", "--user", "--map-root-user", "--net", "--mount", "--uts", "--ipc"),
    *("--pid", "--fork", "--kill-child"),
)
BOOT_SECONDS = 120.0
READ_BYTES = 1 << 16


class MachineCommand:
    """A command that a machine runs; it looks like a `subprocess.Popen` as far as tests need it."""

    def __init__(self) -> None:
        self.process: psutil.Process | None = None  # As this process sees it: with another pid than within the machine.
        self.returncode: int | None = None
        self.told = threading.Event()
        self.error = ""
        self._ended = threading.Event()

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Return the exit status. Raises TimeoutError if the command still runs after so many seconds."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the command still runs after {timeout:g} s")
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the command alone."""
        if self.returncode is None and self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.send_signal(number)

    def end(self, status: int) -> None:
        """Take note of the exit status."""
        if self.returncode is None:
            self.returncode = status
        self.told.set()
        self._ended.set()


class Namespace:
    """A machine that is on: nothing of it is left after `kill`."""

    def __init__(self, home: Path, *, doors: Sequence[int], hidden: Sequence[Path]) -> None:
        """Switch a machine on.

        home: the one folder that the machine and this process both see, at the same path. Everything else is
        read-only. doors: ports of 127.0.0.1 that are open. hidden: folders whose place an empty one takes, besides
        that of temporary files; code and Python stay visible in them.
        Raises RuntimeError, which says what is needed, if the kernel refuses.
        """
        places = (Path(tempfile.gettempdir()), Path("/dev/shm"), home.parent, *hidden)
        covered = {path.resolve() for path in places}
        needed = {path.resolve() for path in (home, ROOT, Path(sys.prefix), Path(sys.base_prefix))}
        kept = [path for path in needed if any(path.is_relative_to(above) for above in covered)]
        machine = {
            "name": home.name,
            "home": str(home.resolve()),
            "doors": list(doors),
            "hidden": [str(path) for path in covered],
            "kept": [str(path) for path in kept],
        }
        self._doors = tuple(doors)
        self._commands: list[MachineCommand] = []
        self._copies = set[asyncio.Future[tuple[None, None]]]()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*UNSHARE, sys.executable, "-I", machine_init.__file__, str(theirs.fileno())]
        said = home / "machine.out"
        with theirs, said.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                self._control.close()
                raise RuntimeError(f"{error}. {NEEDED}") from error
        listening = self._begin(machine, said)
        self._init = psutil.Process(self._process.pid).children()[0]
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)), name="doors", daemon=True)
        self._thread.start()

    def start(self, command: Sequence[str], *, variables: Mapping[str, str], output: Path) -> MachineCommand:
        """Start a command in the folder of the code; its output goes to the end of a file in the home."""
        started = MachineCommand()
        self._commands.append(started)
        asked = {
            "number": len(self._commands) - 1,
            "command": list(command),
            "folder": str(ROOT),
            "variables": dict(variables),
            "output": str(output),
        }
        self._control.send(json.dumps(asked).encode())
        assert started.told.wait(BOOT_SECONDS), f"the machine did not start {command[0]}"
        if started.error:
            raise RuntimeError(f"the machine could not start {command[0]}: {started.error}")
        return started

    def processes(self) -> list[psutil.Process]:
        """Return every process of the machine but the first one."""
        return list(self._init.children(recursive=True))

    def find(self, pid: int) -> psutil.Process | None:
        """Return the living process that has this pid within the machine."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                if _pid_within(process) == pid and process.status() != psutil.STATUS_ZOMBIE:
                    return process
        return None

    def kill(self) -> None:
        """Kill every process of the machine at once with SIGKILL, and return when none is left and no door is open."""
        if self._process.poll() is not None and not self._thread.is_alive():
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            self._init.kill()  # The kernel kills the others with the first one, and ends it after them.
        self._process.wait()
        self._stop.close()
        self._thread.join()
        for command in self._commands:
            command.end(-signal.SIGKILL)
        for each in (self._control, self._stopped):
            each.close()

    def _begin(self, machine: Mapping[str, object], said: Path) -> list[socket.socket]:
        """Say what the machine is, and return its listening sockets, in the order of its doors."""
        self._control.settimeout(BOOT_SECONDS)
        answer, sockets = b"", list[int]()
        with contextlib.suppress(OSError):
            self._control.send(json.dumps(machine).encode())
            answer, sockets, _, _ = socket.recv_fds(self._control, len(machine_init.DOORS), len(self._doors))
        if answer != machine_init.DOORS or len(sockets) != len(self._doors):
            self._process.kill()
            self._process.wait()
            self._control.close()
            why = said.read_text(errors="replace").strip()[-1000:] or "no answer"
            raise RuntimeError(f"no machine in namespaces of its own: {why}. {NEEDED}")
        self._control.setblocking(False)
        return [socket.socket(fileno=each) for each in sockets]

    async def _serve(self, listening: Sequence[socket.socket]) -> None:
        """Join every connection to a door with its service, and hear what the first process tells, until `kill`."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._control, self._hear)
        servers = [
            await asyncio.start_server(partial(self._join, port), sock=door)
            for port, door in zip(self._doors, listening, strict=True)
        ]
        self._stopped.setblocking(False)
        await loop.sock_recv(self._stopped, 1)
        loop.remove_reader(self._control)
        self._hear()
        for server in servers:
            server.close()
        # `asyncio.run` cancels the connections that are open.

    async def _join(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join a connection from the machine with one to the port out here."""
        try:
            out_reader, out_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            return
        # A reference, because asyncio keeps none to a connection that has ended on one side.
        copies = asyncio.gather(_copy(reader, out_writer), _copy(out_reader, writer))
        self._copies.add(copies)
        try:
            await copies
        except asyncio.CancelledError:  # The machine was cut off; asyncio would report it as an error.
            pass
        finally:
            self._copies.discard(copies)
            for each in (writer, out_writer):
                each.transport.abort()

    def _hear(self) -> None:
        """Take note of every message that has come."""
        with contextlib.suppress(OSError):
            while message := self._control.recv(machine_init.MESSAGE_BYTES_MAX):
                told = json.loads(message)
                command = self._commands[told["number"]]
                if "pid" in told:
                    command.process = self.find(told["pid"])
                    command.told.set()
                elif "error" in told:
                    command.error = told["error"]
                    command.told.set()
                else:
                    command.end(told["status"])
            # The first process has ended, and with it the machine.
            asyncio.get_running_loop().remove_reader(self._control)
            for command in self._commands:
                command.end(-signal.SIGKILL)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the one side ends, and say so to the other side, which may have more to say."""
    try:
        while part := await reader.read(READ_BYTES):
            writer.write(part)
            await writer.drain()
        writer.write_eof()
    except OSError:  # One side was reset, so the other is, too.
        writer.transport.abort()


def _pid_within(process: psutil.Process) -> int:
    """Return the pid that a process has in its own namespace."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[-1]) for line in lines if line.startswith("NSpid:"))
