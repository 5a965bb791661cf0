"""A machine in namespaces of its own reaches Kafka, Elasticsearch and the store, and nothing else of this computer."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from services.local import Endpoints
from tests.commands import ROOT
from tests.inside import Asked, Seen
from tests.machines import Machine, doors, wait_until
from tests.namespace import Namespace
from tests.object_store import BUCKET, s3_server

SECONDS = 120.0
ASLEEP = "import time; print('asleep', flush=True); time.sleep(600)"
REFUSED, NO_ROUTE, READ_ONLY = "Connection refused", "Network is unreachable", "Read-only file system"
ASK = f"""
import os
from elasticsearch import Elasticsearch
from kafka import KafkaAdminClient
from streams.shared_store import StoreSettings, open_store

print(sorted(KafkaAdminClient(bootstrap_servers=os.environ["SEARCHLOOP_KAFKA__BOOTSTRAP"]).list_topics()) != None)
print(Elasticsearch(os.environ["SEARCHLOOP_ELASTICSEARCH__URL"]).info()["version"]["number"])
print(open_store(StoreSettings(url="s3://{BUCKET}/doors")).names("runs"))
"""

Make = Callable[..., Machine]


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Give the environment of a local S3 server."""
    with s3_server() as variables:
        yield variables


@pytest.fixture
def variables(s3: dict[str, str], local_services: Endpoints) -> dict[str, str]:
    """Give the variables of a machine's commands: three addresses, and what they inherit."""
    addresses = {
        "SEARCHLOOP_KAFKA__BOOTSTRAP": local_services.kafka,
        "SEARCHLOOP_ELASTICSEARCH__URL": local_services.elasticsearch,
    }
    return dict(os.environ) | s3 | addresses


@pytest.fixture
def make(tmp_path: Path, variables: dict[str, str]) -> Iterator[Make]:
    """Give a function that makes a machine beside the others; all of them end with the test."""
    made: list[Machine] = []

    def machine(name: str, *hidden: Path) -> Machine:
        made.append(Machine(tmp_path / "fleet" / name, variables, hidden=hidden))
        return made[-1]

    (tmp_path / "fleet").mkdir()
    yield machine
    for each in made:
        each.cut_off()


def look(machine: Machine, asked: Asked) -> Seen:
    """Return what a machine sees."""
    name = f"look-{len(list(machine.home.root.glob('look-*')))}"
    looking = machine.execute([sys.executable, "-m", "tests.inside", msgspec.json.encode(asked).decode()], name)
    assert looking.wait(SECONDS) == 0, machine.said(name)
    return msgspec.json.decode(machine.said(name), type=Seen)


def test_a_machine_reaches_three_ports_and_no_other(make: Make, variables: dict[str, str]) -> None:
    machine = make("alone")
    with socket.create_server(("127.0.0.1", 0)) as no_door:
        other = no_door.getsockname()[1]
        ports = [*doors(variables), other]
        for port in ports:
            socket.create_connection(("127.0.0.1", port), SECONDS).close()  # Out here, all four listen.
        addresses = tuple(("127.0.0.1", port) for port in ports)
        seen = look(machine, Asked(addresses=(*addresses, ("192.0.2.1", 80))))
    assert seen.connections == ("", "", "", REFUSED, NO_ROUTE)
    assert seen.interfaces == ("lo",)
    assert seen.host == "alone"
    assert len(seen.processes) == 2 and 1 in seen.processes  # Itself, and the machine's first one.


def test_the_doors_lead_to_the_services(make: Make) -> None:
    machine = make("asking")
    assert machine.execute([sys.executable, "-c", ASK], "ask").wait(SECONDS) == 0, machine.said("ask")
    topics, version, stored = machine.said("ask").splitlines()
    assert (topics, version.partition(".")[0].isdigit(), stored) == ("True", True, "[]")


def test_a_machine_sees_neither_the_other_homes_nor_the_worlds(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, world, temporary = make("other"), tmp_path / "world", tmp_path / "temporary"
    world.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))  # All homes lie outside, or that folder would hide them.
    mine = make("mine", world)
    secrets = [folder / "secret" for folder in (mine.home.root, other.home.root, world)]
    for path in secrets:
        path.write_text(path.parent.name)
    paths = (*(str(path) for path in secrets), str(other.home.root), __file__)
    assert look(mine, Asked(paths=paths)).visible == (True, False, False, False, True)
    # The world was hidden from the first machine alone.
    assert look(other, Asked(paths=paths)).visible == (False, True, True, True, True)


def test_a_machine_writes_nowhere_but_into_its_home(make: Make) -> None:
    first, second = make("first"), make("second")
    folders = (str(first.home.root), "/dev/shm", str(Path(__file__).parent), str(Path.home()))
    assert all(os.access(folder, os.W_OK) for folder in folders)  # Out here, we may.
    assert look(first, Asked(folders=folders)).writes == ("", "", READ_ONLY, READ_ONLY)
    written = Asked(paths=tuple(f"{folder}/written" for folder in folders))
    # A command finds what an earlier one of its machine wrote beside the home; nobody else does.
    assert look(first, written).visible == (True, True, False, False)
    assert look(second, written).visible == (False, False, False, False)
    assert [Path(path).exists() for path in written.paths] == [True, False, False, False]


def test_a_machine_that_is_cut_off_leaves_no_process_and_no_connection(tmp_path: Path) -> None:
    """A daemon that left its session dies, too, and the service sees its connection end."""
    home = tmp_path / "cut"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(SECONDS)
        port = service.getsockname()[1]
        connect = f"import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'hello')"
        daemon = f"import os; os.fork() and os._exit(0); os.setsid(); {connect}; {ASLEEP}"
        namespace = Namespace(home, doors=[port], hidden=())
        try:
            parent = namespace.start([sys.executable, "-c", daemon], variables=os.environ, output=home / "out")
            connection, _ = service.accept()
            with connection:
                connection.settimeout(SECONDS)
                assert connection.recv(5) == b"hello"
                assert parent.wait(SECONDS) == 0
                (left,) = namespace.processes()
                namespace.kill()
                assert not left.is_running()
                assert connection.recv(1) == b""
        finally:
            namespace.kill()


def test_a_machine_ends_with_the_process_that_switched_it_on(tmp_path: Path) -> None:
    home = tmp_path / "left"
    home.mkdir()
    owner = f"""
import os, pathlib, sys, time
from tests.namespace import Namespace

home = pathlib.Path({str(home)!r})
namespace = Namespace(home, doors=[], hidden=())
namespace.start([sys.executable, "-c", {ASLEEP!r}], variables=os.environ, output=home / "out")
print(*(process.pid for process in namespace.processes()), flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", owner], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        asleep = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(asleep) == 1
    assert psutil.wait_procs(asleep, timeout=SECONDS)[1] == []


def test_an_answer_comes_through_a_door_when_the_asker_has_nothing_more_to_say(tmp_path: Path) -> None:
    home = tmp_path / "asking"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(SECONDS)
        port = service.getsockname()[1]
        ask = f"import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'?'); s.shutdown(1)"
        hear = "print(len(b''.join(iter(lambda: s.recv(65536), b''))))"
        namespace = Namespace(home, doors=[port], hidden=())
        try:
            asking = namespace.start(
                [sys.executable, "-c", f"{ask}; {hear}"], variables=os.environ, output=home / "out"
            )
            connection, _ = service.accept()
            with connection:
                connection.settimeout(SECONDS)
                assert b"".join(iter(lambda: connection.recv(1), b"")) == b"?"
                for _ in range(20):
                    gc.collect()  # asyncio itself keeps no connection alive that has ended on one side.
                    connection.sendall(b"!" * 50_000)
            assert asking.wait(SECONDS) == 0
            assert (home / "out").read_text() == "1000000\n"
        finally:
            namespace.kill()


def test_a_service_sees_that_a_connection_was_reset(tmp_path: Path) -> None:
    home = tmp_path / "resetting"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(SECONDS)
        port = service.getsockname()[1]
        connect = f"import socket, struct; s = socket.create_connection(('127.0.0.1', {port})); s.recv(1)"
        reset = "s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()"
        namespace = Namespace(home, doors=[port], hidden=())
        gc.disable()  # It would end a forgotten connection, some time.
        try:
            namespace.start([sys.executable, "-c", f"{connect}; {reset}"], variables=os.environ, output=home / "out")
            connection, _ = service.accept()
            with connection:
                connection.settimeout(SECONDS)
                connection.sendall(b"!")
                assert connection.recv(1) == b""
        finally:
            gc.enable()
            namespace.kill()


def test_a_signal_reaches_one_command_and_its_status_comes_back(make: Make) -> None:
    machine = make("signalled")
    pressed, killed, left = (machine.execute([sys.executable, "-c", ASLEEP], name) for name in "abc")
    wait_until(lambda: all("asleep" in machine.said(name) for name in "abc"), "three commands")
    pressed.send_signal(signal.SIGINT)
    killed.send_signal(signal.SIGKILL)
    assert pressed.wait(SECONDS) == -signal.SIGINT, machine.said("a")
    assert killed.wait(SECONDS) == -signal.SIGKILL
    assert left.poll() is None
    machine.cut_off()
    assert left.poll() == -signal.SIGKILL
    again = machine.execute([sys.executable, "-c", "raise SystemExit(7)"], "again")  # It is switched on again.
    assert again.wait(SECONDS) == 7


def test_a_command_that_is_missing_is_named(make: Make) -> None:
    with pytest.raises(RuntimeError, match=r"could not start no-such-command.*No such file"):
        make("bare").execute(["no-such-command"], "none")


@pytest.mark.parametrize("unshare", ["", "#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n"])
def test_a_computer_without_namespaces_is_told_what_it_needs(
    unshare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    if unshare:
        (tmp_path / "bin" / "unshare").write_text(unshare)
        (tmp_path / "bin" / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "home").mkdir()
    before = psutil.Process().children()
    with pytest.raises(RuntimeError, match=r"unshare(?s:.)*user namespaces"):
        Namespace(tmp_path / "home", doors=[], hidden=())
    assert psutil.Process().children() == before
