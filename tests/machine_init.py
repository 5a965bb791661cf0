"""The first process of a machine: it makes the machine's network and files, then starts commands on request.

It runs inside fresh namespaces (`tests.namespace`), with the standard library alone. Its first message says what the
machine is; it answers with the listening sockets of the doors. Each further message is a command to start, which it
answers with the command's pid, and later with the status that it ended with. As the first process of its namespace it
also waits for orphans. It ends when the other end of its socket closes, and every process of the machine ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

MESSAGE_BYTES_MAX = 200_000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC = 2, 4, 4096, 16384
MOUNT_SETATTR, MOUNT_ATTR_RDONLY, AT_RECURSIVE, AT_FDCWD = 442, 1, 0x8000, -100  # mount_setattr(2), Linux 5.12.
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
DOORS = b"doors"


def main() -> None:
    """Serve the machine whose socket is the given file descriptor."""
    control = socket.socket(fileno=int(sys.argv[1]))
    machine = json.loads(control.recv(MESSAGE_BYTES_MAX))
    socket.sethostname(machine["name"])
    make_files(machine["home"], machine["hidden"], machine["kept"])
    raise_loopback()
    doors = [listening(port) for port in machine["doors"]]
    socket.send_fds(control, [DOORS], [door.fileno() for door in doors])
    for door in doors:
        door.close()
    start_commands(control)


def make_files(home: str, hidden: list[str], kept: list[str]) -> None:
    """Make everything read-only but the home; put an empty folder in the place of each hidden one.

    kept: folders, the home among them, that stay where they are although a folder above is hidden.
    """
    before = {path: os.open(path, os.O_PATH) for path in kept}
    set_read_only("/", True, recursive=True)
    for path in sorted({*hidden, *kept}, key=lambda path: path.count("/")):
        if path in before:
            Path(path).mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{before[path]}", path, "", MS_BIND | MS_REC)
            set_read_only(path, path != home, recursive=False)
        elif Path(path).is_dir():  # One below another hidden folder is gone already.
            mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV)
    for descriptor in before.values():
        os.close(descriptor)
    mount("proc", "/proc", "proc", 0)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    """Call mount(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), f"mount {kind or source}: {os.strerror(ctypes.get_errno())}", target)


def set_read_only(path: str, value: bool, *, recursive: bool) -> None:
    """Make a mounted folder read-only, or writable again. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = struct.pack("QQQQ", *((MOUNT_ATTR_RDONLY, 0) if value else (0, MOUNT_ATTR_RDONLY)), 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    if libc.syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, wanted, ctypes.c_size_t(len(wanted))):
        raise OSError(ctypes.get_errno(), f"mount_setattr: {os.strerror(ctypes.get_errno())}", path)


def raise_loopback() -> None:
    """Bring the loopback device up: the one interface that a fresh network namespace has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP | IFF_RUNNING))


def listening(port: int) -> socket.socket:
    """Return a socket that listens on a port of the machine's own loopback."""
    return socket.create_server(("127.0.0.1", port), backlog=128)


def start_commands(control: socket.socket) -> None:
    """Start what is asked for, and tell of each command that ends, until the other end closes."""
    awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # Without a handler, the signal would wake nobody.
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # A shell's background jobs ignore Ctrl-C, and so would the commands.
    running: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), awake], [], [])
        if control.fileno() in ready:
            message = control.recv(MESSAGE_BYTES_MAX)
            if not message:
                return
            asked = json.loads(message)
            try:
                process = start(asked)
            except OSError as error:
                tell(control, number=asked["number"], error=str(error))
            else:
                running[process.pid] = asked["number"], process
                tell(control, number=asked["number"], pid=process.pid)
        if awake in ready:
            os.read(awake, 4096)
            for pid, status in ended():
                if pid in running:
                    number, process = running.pop(pid)
                    process.returncode = (
                        status  # Or Python would wait for this pid, too, which may be another's by then.
                    )
                    tell(control, number=number, status=status)


def start(asked: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a command with its output at the end of a file."""
    with Path(asked["output"]).open("ab") as output:
        return subprocess.Popen(
            asked["command"],
            cwd=asked["folder"],
            env=asked["variables"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def ended() -> list[tuple[int, int]]:
    """Return pid and status of each child that has ended, orphans among them: a negative status is a signal."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((child[0], os.waitstatus_to_exitcode(child[1])))
    return found


def tell(control: socket.socket, **message: object) -> None:
    control.send(json.dumps(message).encode())


if __name__ == "__main__":
    main()
