"""Which Java is taken, who counts as ours, what the settings tell: all without a service."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

import services.jdks as jdks
from infra.app.app import App
from infra.app.home import Home
from infra.commands.services import doctor
from search_env.engine.client import ElasticsearchSettings
from services.artefacts import read_lock
from services.elasticsearch import LocalElasticsearch, make_open, open_directory
from services.errors import ProvisionError, ServiceError
from services.jdks import ELASTICSEARCH_MODULES, find_jdks, jdk_for_elasticsearch, jdk_for_kafka
from services.launch import spawn
from services.local import LocalServices, ServiceStatus
from services.processes import (
    ProcessUser,
    ServiceProcess,
    can_enter,
    free_ports,
    is_alive,
    port_is_free,
    service_account,
    tagged_processes,
    tags,
)
from services.settings import LocalSettings, ServiceSettings
from streams.kafka_settings import KafkaSettings

ALL_MODULES = ("java.base", *ELASTICSEARCH_MODULES)


def fake_jdk(home: Path, version: str, modules: tuple[str, ...] = ALL_MODULES, javac: bool = True) -> Path:
    """A folder that answers `java --list-modules` like a JDK of this version."""
    (home / "bin").mkdir(parents=True)
    listed = "".join(f"echo {module}@{version}\n" for module in modules)
    for name in ("java", "javac") if javac else ("java",):
        (home / "bin" / name).write_text(f"#!/bin/sh\n{listed}")
        (home / "bin" / name).chmod(0o755)
    return home


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any Java, but for what a test puts into it."""
    for variable in ("JAVA_HOME", "ES_JAVA_HOME", "JDK_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin/nothing")
    monkeypatch.setattr(jdks, "PLACES", (str(tmp_path / "jvm" / "*"),))
    return tmp_path / "jvm"


def test_no_java_says_what_to_install(machine: Path) -> None:
    with pytest.raises(ProvisionError, match=r"Kafka needs Java 17 or newer: no Java was found\. Install one"):
        jdk_for_kafka(find_jdks())
    with pytest.raises(ProvisionError, match=r"Elasticsearch needs a JDK \(not a JRE\) 21 or newer: no Java was found"):
        jdk_for_elasticsearch(find_jdks())


def test_a_java_that_is_too_old_is_named_with_its_version(machine: Path) -> None:
    home = fake_jdk(machine / "jdk-17", "17.0.15")
    assert jdk_for_kafka(find_jdks()).home == str(home)
    with pytest.raises(ProvisionError, match=rf"{home} is 17, older than 21"):
        jdk_for_elasticsearch(find_jdks())


def test_a_jre_runs_kafka_but_not_elasticsearch(machine: Path) -> None:
    home = fake_jdk(machine / "jre-21", "21.0.2", modules=("java.base", "jdk.net"), javac=False)
    assert jdk_for_kafka(find_jdks()).home == str(home)
    with pytest.raises(ProvisionError, match=r"has no jdk\.attach, jdk\.compiler, .*jdk\.jdi, .*javac \(a JRE\?\)"):
        jdk_for_elasticsearch(find_jdks())


def test_java_home_wins_over_a_newer_one_and_one_jdk_serves_both(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_jdk(machine / "jdk-25", "25.0.1")
    chosen = fake_jdk(machine.parent / "mine", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(chosen))
    assert jdk_for_elasticsearch(find_jdks()).home == jdk_for_kafka(find_jdks()).home == str(chosen)


def test_kafka_takes_the_jdk_that_elasticsearch_needs_too(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = fake_jdk(machine / "jdk-25", "25.0.1")
    monkeypatch.setenv("JAVA_HOME", str(fake_jdk(machine.parent / "mine", "17.0.1")))
    assert jdk_for_kafka(find_jdks()).home == str(newer)


def test_a_java_that_does_not_run_is_passed_over(machine: Path) -> None:
    (fake_jdk(machine / "jdk-25", "25.0.1") / "bin" / "java").write_text("#!/bin/sh\nexit 3\n")
    (fake_jdk(machine / "jdk-26", "26") / "bin" / "java").write_bytes(b"\x7fELF for another machine")
    home = fake_jdk(machine / "jdk-21", "21.0.1")
    assert [jdk.home for jdk in find_jdks()] == [str(home)]


def test_the_setting_java_home_is_the_only_place_to_look(machine: Path, tmp_path: Path) -> None:
    fake_jdk(machine / "jdk-25", "25.0.1")
    assert find_jdks(str(tmp_path / "nowhere")) == []


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    while not psutil.Process(process.pid).cmdline():  # In the midst of exec it has none to be known by.
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_a_pid_that_somebody_else_got_is_neither_alive_nor_stopped(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    started = psutil.Process(sleeper.pid).create_time()
    row = {"role": "kafka", "pid": sleeper.pid, "started": started, "port": 9092, "session": "s"}
    services = LocalServices(tmp_path)
    services.directory.mkdir()
    (services.directory / "state.json").write_text(json.dumps({"processes": [row], "ports": {"kafka": 9092}}))
    assert not is_alive(ServiceProcess(**row), tmp_path)  # type: ignore[arg-type]
    assert [row.health for row in services.status()] == ["down", "down"]
    assert services.down() == []
    assert sleeper.poll() is None


def test_a_process_that_the_state_lost_is_found_by_its_tags(tmp_path: Path) -> None:
    marks = tags(tmp_path, "kafka", "one")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *marks])
    try:
        assert [found.pid for found in tagged_processes(tmp_path, ["kafka"])] == [process.pid]
        assert [found.pid for found in tagged_processes(tmp_path, ["kafka"], "one")] == [process.pid]
        assert list(tagged_processes(tmp_path, ["kafka"], "two")) == []
        assert list(tagged_processes(tmp_path, ["elasticsearch"])) == []
        assert list(tagged_processes(tmp_path / "other", ["kafka"])) == []
        assert [stopped.pid for stopped in LocalServices(tmp_path).down()] == [process.pid]
        assert process.poll() is not None
    finally:
        process.kill()
        process.wait()


def test_what_a_service_wrote_before_it_was_started_again_is_kept(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for said in ("first", "second", "third"):
        process = spawn("kafka", [sys.executable, "-c", f"print({said!r})"], tmp_path, 1, "one", environment={})
        with contextlib.suppress(psutil.NoSuchProcess):  # It may have ended already.
            psutil.Process(process.pid).wait(30)
    assert (tmp_path / "logs" / "console.before.log").read_text() == "second\n"
    assert (tmp_path / "logs" / "console.log").read_text() == "third\n"


def test_a_state_file_that_is_torn_counts_as_none(tmp_path: Path) -> None:
    services = LocalServices(tmp_path)
    services.directory.mkdir()
    (services.directory / "state.json").write_text('{"processes": [{"role": "ka')
    assert [row.health for row in services.status()] == ["down", "down"]


def test_status_adds_the_rows_that_it_is_given(tmp_path: Path) -> None:
    learner = ServiceStatus(role="learner", pid=12, port=None, health="ok")
    assert [row.role for row in LocalServices(tmp_path).status([learner])] == ["kafka", "elasticsearch", "learner"]


def test_services_that_are_down_say_how_to_start_them(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"kafka and elasticsearch of .* is not running\. Run: searchloop up"):
        LocalServices(tmp_path).endpoints()


def test_a_port_in_use_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not port_is_free(port)
        services = LocalServices(tmp_path, LocalSettings(kafka_port=port))
        with pytest.raises(ServiceError, match=rf"port {port} for kafka is in use .* services\.kafka_port"):
            services.up()
    assert [row.health for row in services.status()] == ["down", "down"]


def test_a_full_disk_is_found_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 100 << 20, "total": 1 << 40, "used": 1 << 40})
    monkeypatch.setattr("services.launch.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ServiceError, match=r"is full: 512 MiB are needed, 100 MiB are free\. Make room"):
        LocalServices(tmp_path).up()


def test_a_home_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match=r"cannot be written: Not a directory\. Name another --home"):
        LocalServices(tmp_path / "file" / "home").up()


def test_an_external_service_that_is_silent_is_an_error(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    settings = ServiceSettings(kafka=KafkaSettings(bootstrap=f"127.0.0.1:{port}"))
    with pytest.raises(ServiceError, match=rf"kafka at 127\.0\.0\.1:{port} does not answer"):
        LocalServices(tmp_path, settings).up()


def test_a_folder_closed_to_an_account_is_replaced_by_one_in_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger = ProcessUser(uid=54321, gid=54321)
    with tempfile.TemporaryDirectory() as name:
        closed, temporary = Path(name) / "closed", Path(name) / "temporary"
        for folder, mode in ((closed, 0o700), (temporary, 0o755), (Path(name), 0o755)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        assert can_enter(closed, None) and not can_enter(closed, stranger)
        assert open_directory(closed, None) == closed
        fallback = open_directory(closed / "services", stranger)
        assert fallback.parent == temporary and not fallback.exists()
        before = os.umask(0o077)
        make_open(fallback)
        os.umask(before)
        assert fallback == open_directory(closed / "services", stranger)
        assert stat.S_IMODE(fallback.stat().st_mode) == 0o755
        temporary.chmod(0o700)
        with pytest.raises(ProvisionError, match="that every user may enter, or do not run as root"):
            open_directory(closed / "services", stranger)


def test_the_server_reads_paths_of_any_script(tmp_path: Path) -> None:
    server = LocalElasticsearch(
        tmp_path / "ключ 🗝", cache=tmp_path, distribution=read_lock().elasticsearch[0], account=None
    )
    arguments = server.server_arguments({"a": "ü"})
    # Worked by hand from StreamOutput.writeString: the length in UTF-16 units, then one to three bytes for each.
    assert b"\x01\x01a\x00\x01\xc3\xbc" in arguments
    assert "ключ ".encode() + b"\xed\xa0\xbd\xed\xb7\x9d" in arguments


def test_secrets_are_not_in_the_repr() -> None:
    settings = ServiceSettings(
        kafka=KafkaSettings(bootstrap="k:9092", sasl_username="me", sasl_password="hunter2"),
        elasticsearch=ElasticsearchSettings(url="https://e:9200", api_key="topsecret"),
    )
    assert "hunter2" not in repr(settings) and "topsecret" not in repr(settings)
    assert "k:9092" in repr(settings) and "https://e:9200" in repr(settings)


def test_doctor_fails_and_says_so_where_java_is_missing(machine: Path, tmp_path: Path) -> None:
    app = App(Home(tmp_path))
    answer = CliRunner().invoke(doctor, ["--json"], obj=app)
    findings = {finding["name"]: finding for finding in json.loads(answer.stdout)}
    assert answer.exit_code == 1
    assert findings["java"]["level"] == "fail"
    assert "JDK" in findings["java"]["advice"]
    assert findings["loopback"]["level"] == "ok"
    assert CliRunner().invoke(doctor, [], obj=app).exit_code == 1


def test_root_never_runs_elasticsearch_as_root() -> None:
    account = service_account()
    assert (account is None) == (os.geteuid() != 0)
    assert account is None or account.uid != 0


def test_free_ports_are_different_and_none_that_an_outgoing_connection_could_be_given() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(1024 < port < lowest and port_is_free(port) for port in ports)


def test_a_home_that_was_made_without_users_is_not_locked_later_and_nothing_is_changed(tmp_path: Path) -> None:
    data = tmp_path / "services" / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\n")
    services = LocalServices(tmp_path, LocalSettings(secure=True))
    with pytest.raises(ServiceError, match="was made without users"):
        services.up()
    assert not (tmp_path / "services" / "security").exists()
    assert (data / "meta.properties").read_text() == "version=1\n"
