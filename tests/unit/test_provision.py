"""Artefacts come from the user's own mirror, whole and as pinned, or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

import services.artefacts as artefacts
from services.artefacts import Artefact, artefact_path, provision_artefacts, read_lock
from services.errors import ProvisionError

CONTENT = bytes(range(256)) * 5000
PATH = "/org/example/thing/1.0/thing-1.0.jar"
MIRROR = """<settings xmlns="http://maven.apache.org/SETTINGS/1.2.0"><mirrors><mirror>
<id>ours</id><mirrorOf>{of}</mirrorOf><url>{url}</url></mirror></mirrors></settings>"""
PROVISION = """
import sys, msgspec
from pathlib import Path
from services.artefacts import Artefact, provision_artefacts
provision_artefacts(Path(sys.argv[1]), (msgspec.json.decode(sys.argv[2], type=Artefact),))
"""


class FakeRepository:
    """A Maven repository on loopback with one jar; it can cut an answer short, or stop in the midst of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.content = CONTENT
        self.cut_short = 0
        self.in_the_midst = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        repository = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                repository.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        if request.path != PATH:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(self.content)))
        request.end_headers()
        request.wfile.write(self.content[:1000])
        request.wfile.flush()
        self.in_the_midst.set()
        self.go_on.wait(60)
        if self.cut_short:
            self.cut_short -= 1
        else:
            request.wfile.write(self.content[1000:])


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRepository]:
    """The only repository there is: named as a mirror in the settings of a user who has nothing else."""
    served = FakeRepository()
    home = tmp_path / "user"
    (home / ".m2").mkdir(parents=True)
    (home / ".m2" / "settings.xml").write_text(MIRROR.format(of="central", url=served.url))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("M2_REPO", raising=False)
    monkeypatch.delenv("JGO_CONFIG_FILE", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(artefacts, "PAUSE_SECONDS", 0.01)
    yield served
    served.go_on.set()
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def thing(content: bytes = CONTENT) -> Artefact:
    sha256 = hashlib.sha256(content).hexdigest()
    return Artefact(
        group="org.example", name="thing", version="1.0", packaging="jar", sha256=sha256, bytes=len(content)
    )


def files_in(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]


def provision_in_a_process(cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROVISION, str(cache), msgspec.json.encode(thing()).decode()]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2])


def test_an_artefact_comes_through_the_users_mirror_and_once(repository: FakeRepository, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    paths = provision_artefacts(cache, (thing(),), lambda *told: seen.append(told))
    assert [path.read_bytes() for path in paths] == [CONTENT]
    assert files_in(cache) == paths
    assert seen[-1][1:] == (1, 1)
    repository.asked.clear()
    assert provision_artefacts(cache, (thing(),)) == paths
    assert repository.asked == []


def test_a_mirror_of_everything_but_central_is_not_used(repository: FakeRepository) -> None:
    settings = Path.home() / ".m2" / "settings.xml"
    settings.write_text(MIRROR.format(of="*,!central", url=repository.url))
    assert artefacts.maven_repositories() is None
    settings.write_text(MIRROR.format(of="external:*", url=repository.url))
    assert artefacts.maven_repositories() == {"mirror": repository.url}


def test_what_the_local_maven_repository_holds_is_not_fetched(repository: FakeRepository, cache: Path) -> None:
    local = Path.home() / ".m2" / "repository" / PATH.removeprefix("/")
    local.parent.mkdir(parents=True)
    local.write_bytes(CONTENT)
    assert provision_artefacts(cache, (thing(),))[0].read_bytes() == CONTENT
    assert repository.asked == []


def test_a_damaged_file_in_the_local_maven_repository_is_passed_over(repository: FakeRepository, cache: Path) -> None:
    local = Path.home() / ".m2" / "repository" / PATH.removeprefix("/")
    local.parent.mkdir(parents=True)
    local.write_bytes(CONTENT[:-1] + b"!")
    assert provision_artefacts(cache, (thing(),))[0].read_bytes() == CONTENT


def test_another_file_than_the_pinned_one_never_enters_the_cache(repository: FakeRepository, cache: Path) -> None:
    repository.content = CONTENT[::-1]
    wrong = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(ProvisionError, match=rf"org\.example:thing:jar:1\.0: expected sha256 .*, got {wrong}"):
        provision_artefacts(cache, (thing(),))
    assert files_in(cache) == []


def test_a_download_that_breaks_off_is_begun_again(repository: FakeRepository, cache: Path) -> None:
    repository.cut_short = 2
    assert provision_artefacts(cache, (thing(),))[0].read_bytes() == CONTENT
    assert repository.asked.count(PATH) == 3


def test_without_a_network_the_error_names_artefact_and_remedy(repository: FakeRepository, cache: Path) -> None:
    repository.server.shutdown()
    repository.server.server_close()
    with pytest.raises(ProvisionError, match=r"org\.example:thing:jar:1\.0 could not be fetched .*mirror in ~/\.m2"):
        provision_artefacts(cache, (thing(),))
    assert files_in(cache) == []


def test_two_processes_fetch_once(repository: FakeRepository, cache: Path) -> None:
    repository.go_on.clear()
    first, second = provision_in_a_process(cache), provision_in_a_process(cache)
    assert repository.in_the_midst.wait(60)
    repository.go_on.set()
    assert [first.wait(60), second.wait(60)] == [0, 0]
    assert repository.asked.count(PATH) == 1
    assert artefact_path(cache, thing()).read_bytes() == CONTENT


def test_a_killed_download_leaves_nothing_that_looks_right(repository: FakeRepository, cache: Path) -> None:
    repository.go_on.clear()
    child = provision_in_a_process(cache)
    assert repository.in_the_midst.wait(60)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not artefact_path(cache, thing()).exists()
    repository.go_on.set()
    assert provision_artefacts(cache, (thing(),))[0].read_bytes() == CONTENT
    assert files_in(cache) == [artefact_path(cache, thing())]


def test_ctrl_c_breaks_a_download_off_at_once(repository: FakeRepository, cache: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        provision_artefacts(cache, (thing(),), interrupt)
    assert files_in(cache) == []


def test_a_full_disk_says_how_much_is_needed(
    repository: FakeRepository, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Path.home() / ".m2" / "repository" / PATH.removeprefix("/")
    local.parent.mkdir(parents=True)
    local.write_bytes(CONTENT)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ProvisionError, match=r"the disk of the cache .* is full: .* are needed, .* are free"):
        provision_artefacts(cache, (thing(),))


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ProvisionError, match="SEARCHLOOP_CACHE"):
        provision_artefacts(tmp_path / "file" / "cache", (thing(),))


def test_the_cache_is_named_by_setting_then_variable_then_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("SEARCHLOOP_CACHE", raising=False)
    assert artefacts.cache_directory() == Path("/xdg/searchloop")
    monkeypatch.setenv("SEARCHLOOP_CACHE", "/variable")
    assert artefacts.cache_directory() == Path("/variable")
    assert artefacts.cache_directory("/setting") == Path("/setting")


def test_every_artefact_is_pinned_and_none_twice() -> None:
    lock = read_lock()
    pins = [*lock.kafka, *lock.elasticsearch]
    assert len({(pin.group, pin.name) for pin in pins}) == len(pins) == 47
    assert all(len(bytes.fromhex(pin.sha256)) == 32 and pin.bytes > 0 for pin in pins)
    assert {pin.version for pin in lock.kafka if pin.group == "org.apache.kafka"} == {"4.3.1"}
    assert [pin.coordinate for pin in lock.elasticsearch] == [
        "org.elasticsearch.distribution.integ-test-zip:elasticsearch:zip:9.5.3"
    ]


def test_no_host_stands_in_the_lock_or_in_the_code() -> None:
    folder = Path(artefacts.__file__).parent
    for path in (*folder.glob("*.py"), *folder.glob("*.json")):
        assert not re.search(r"https?://(?!127\.0\.0\.1|\{|host:port)", path.read_text()), path
