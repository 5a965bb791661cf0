"""What other people, bad networks and full disks do to a shared store: nothing is lost, planted or waited for."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import obstore
import pytest

import streams.stored_objects
from learner.checkpoints import CheckpointError, Manifest, save_checkpoint
from learner.shared_checkpoints import SharedCheckpoints
from storage.shared_archive import SharedArchive
from streams.events import PolicyRef
from streams.shared_store import FILES, SharedStore, StoreSettings, open_store
from streams.stored_objects import StoreAwayError, StoredFile, StoreError
from streams.whole_file import file_sha256
from tests.commands import ROOT
from tests.object_store import BUCKET, s3_server
from tests.small_disk import on_small_disk

FETCH = """
import sys
from pathlib import Path
from streams.errors import SearchloopError
from streams.shared_store import StoreSettings, open_store

try:
    open_store(StoreSettings(url=sys.argv[1])).get("runs/a/one", Path(sys.argv[2]))
except SearchloopError as error:
    print(f"{type(error).__name__}: {error}")
"""
SEGMENT = f"{0:020d}-{9:020d}"


@pytest.fixture
def store(tmp_path: Path) -> SharedStore:
    """Give an empty folder as a store."""
    return at(tmp_path / "store")


def at(folder: Path) -> SharedStore:
    opened = open_store(StoreSettings(url=f"file://{folder}"))
    assert opened is not None
    return opened


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def checkpoint(root: Path, step: int, text: str = "w") -> Path:
    """Write a checkpoint whose weights are a text."""
    policy = PolicyRef(lineage="1-ab12cd", step=step, sha256="")

    def write_files(folder: Path) -> Manifest:
        write(folder, weights=f"{text} {step}", tokenizer="same")
        return Manifest(policy=policy, parent=None)

    return save_checkpoint(root, policy, write_files)


def test_a_file_that_is_longer_than_its_list_says_is_not_read_to_its_end(store: SharedStore, tmp_path: Path) -> None:
    bundle = store.put("runs/a/one", write(tmp_path / "given", weights="right"))
    stored = bundle.files["weights"]
    obstore.put(store.objects, f"runs/a/{FILES}/{stored.sha256}", b"right" + b"x" * (64 << 20))
    read = 0
    plain = Path.open

    def counted(self: Path, *arguments: object, **options: object) -> object:
        file = plain(self, *arguments, **options)  # type: ignore[call-overload]
        if "w" in (arguments[0] if arguments else ""):
            write_plainly = file.write

            class Counting:
                def __enter__(self) -> Counting:
                    return self

                def __exit__(self, *_: object) -> None:
                    file.close()

                def write(self, content: bytes) -> int:
                    nonlocal read
                    read += len(content)
                    return int(write_plainly(content))

            return Counting()
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", counted)
        with pytest.raises(StoreError, match=r"runs/a/one/weights: expected a file of 5 bytes, found a longer one"):
            store.get("runs/a/one", tmp_path / "got")
    assert read <= 5
    assert not (tmp_path / "got").exists()


def test_a_full_disk_here_is_not_taken_for_a_store_that_does_not_answer(tmp_path: Path) -> None:
    at(tmp_path / "store").put("runs/a/one", write(tmp_path / "given", weights="w" * (3 << 20)))
    here = tmp_path / "here"
    here.mkdir()
    ended = subprocess.run(
        on_small_disk(here, 1, [sys.executable, "-c", FETCH, f"file://{tmp_path}/store", str(here / "got")]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("StoreError: ") and "cannot be written" in ended.stdout


def test_a_list_whose_file_is_also_a_folder_is_refused(store: SharedStore, tmp_path: Path) -> None:
    entry = '{"sha256": "' + "a" * 64 + '", "bytes": 1}'
    obstore.put(
        store.objects,
        "runs/a/one.json",
        f'{{"format": "bundle/1", "files": {{"x": {entry}, "x/y": {entry}}}}}'.encode(),
    )
    with pytest.raises(StoreError, match=r"runs/a/one\.json: expected files, got 'x', which is also a folder"):
        store.get("runs/a/one", tmp_path / "got")


def test_other_peoples_objects_stop_no_removal_and_a_damaged_list_of_ours_deletes_nothing(
    store: SharedStore, tmp_path: Path
) -> None:
    store.put("runs/a/one", write(tmp_path / "1", weights="one"))
    two = store.put("runs/a/two", write(tmp_path / "2", weights="two"))
    obstore.put(store.objects, "runs/a/notes.json", b'{"mine": true}')
    obstore.put(store.objects, "runs/a/more.json", b"\x00\xff no JSON")
    store.remove("runs/a/one")
    assert store.names("runs/a") == ["more", "notes", "two"]
    assert [each["path"] for batch in obstore.list(store.objects, prefix=f"runs/a/{FILES}") for each in batch] == [
        f"runs/a/{FILES}/{two.files['weights'].sha256}"
    ]
    store.put("runs/a/three", write(tmp_path / "3", weights="three"))
    obstore.put(store.objects, "runs/a/torn.json", b'{"format":"bundle/1","files":{"w')
    with pytest.raises(StoreError, match=r"torn\.json is damaged"):
        store.remove("runs/a/three")
    store.get("runs/a/three", tmp_path / "got")  # It is still whole.


def test_a_file_that_a_removal_deletes_while_a_bundle_with_it_is_stored_is_written_again(tmp_path: Path) -> None:
    writing, removing = at(tmp_path / "store"), at(tmp_path / "store")
    writing.put("runs/a/one", write(tmp_path / "1", shared="same"))
    create = writing._create

    def removed_before(key: str, content: bytes) -> bool:
        removing.remove("runs/a/one")
        return create(key, content)

    writing._create = removed_before  # type: ignore[method-assign]
    writing.put("runs/a/two", write(tmp_path / "2", shared="same", own="own"))
    writing.get("runs/a/two", tmp_path / "got")
    assert (tmp_path / "got" / "shared").read_text() == "same"


def test_a_bundle_that_is_stored_while_another_one_is_removed_keeps_the_files_that_they_share(tmp_path: Path) -> None:
    writing, removing = at(tmp_path / "store"), at(tmp_path / "store")
    removing.put("runs/a/one", write(tmp_path / "1", shared="same"))
    names = removing.names
    looked: list[str] = []

    def stored_after_the_look(place: str) -> list[str]:
        found = names(place)
        looked.append(place)
        if len(looked) == 1:
            writing.put("runs/a/two", write(tmp_path / "2", shared="same"))
        return found

    removing.names = stored_after_the_look  # type: ignore[method-assign]
    removing.remove("runs/a/one")
    writing.get("runs/a/two", tmp_path / "got")
    assert (tmp_path / "got" / "shared").read_text() == "same"


def test_the_newest_number_of_a_place_is_one_that_we_wrote(store: SharedStore, tmp_path: Path) -> None:
    from infra.runs.sharing import _newest, _put

    folder = write(tmp_path / "start", settings="1")
    _put(store, "runs/a/start", folder, ["settings"])
    for name in ("9", "99999999", "²", "١٢٣٤٥٦", "0000001", "backup"):
        obstore.put(store.objects, f"runs/a/start/{name}.json", b"{}")
    assert _newest(store, "runs/a/start") == "runs/a/start/000001"
    write(folder, settings="2")
    _put(store, "runs/a/start", folder, ["settings"])
    assert _newest(store, "runs/a/start") == "runs/a/start/000002"


def test_an_archive_is_read_past_objects_that_are_no_segments(store: SharedStore, tmp_path: Path) -> None:
    place = tmp_path / "archive" / "a.rewards" / "0"
    write(place, **{f"{SEGMENT}.parquet": "content"})
    archive = SharedArchive(store, "a")
    assert archive.push(tmp_path / "archive")
    for name in ("notes", "a.rewards/0/notes", f"a.rewards/x/{SEGMENT}", f"a.rewards/0/{SEGMENT}/{SEGMENT}"):
        obstore.put(store.objects, f"runs/a/archive/{name}.json", b"not ours")
    assert len(archive.addresses()) == 1
    assert archive.pull(tmp_path / "pulled", lambda *_: None) == 1
    assert [path.name for path in (tmp_path / "pulled").rglob("*.parquet")] == [f"{SEGMENT}.parquet"]


def test_one_segment_that_another_sink_stored_keeps_no_later_one_back(store: SharedStore, tmp_path: Path) -> None:
    later = f"{10:020d}-{19:020d}"
    write(tmp_path / "theirs" / "a.rewards" / "0", **{f"{SEGMENT}.parquet": "their bytes"})
    write(
        tmp_path / "ours" / "a.rewards" / "0", **{f"{SEGMENT}.parquet": "our bytes", f"{later}.parquet": "later bytes"}
    )
    assert SharedArchive(store, "a").push(tmp_path / "theirs")
    ours = SharedArchive(store, "a")
    ours._pushed = set()  # It looked before the other one had stored it.
    assert ours.push(tmp_path / "ours")
    assert store.names("runs/a/archive/a.rewards/0") == [SEGMENT, later]


def test_a_checkpoint_that_was_exchanged_together_with_its_list_is_found_out(
    store: SharedStore, tmp_path: Path
) -> None:
    """Whoever may write to the store can make both agree; the announcement, in the log, names the manifest's hash."""
    made = checkpoint(tmp_path / "made", 1)
    announced = file_sha256(made / "manifest.json")
    forged = checkpoint(tmp_path / "forged", 1, text="forged")
    SharedCheckpoints(store, "a", tmp_path / "forged").put(forged)
    fetching = SharedCheckpoints(store, "a", tmp_path / "fetched")
    with pytest.raises(CheckpointError, match=r"1-ab12cd-000001: expected the manifest .* that was announced"):
        fetching.fetch(made.name, manifest_sha256=announced)
    assert not (tmp_path / "fetched" / made.name).exists()
    store.remove(f"runs/a/checkpoints/{made.name}")
    SharedCheckpoints(store, "a", tmp_path / "made").put(made)
    assert (fetching.fetch(made.name, manifest_sha256=announced) / "weights").read_text() == "w 1"


def test_a_version_that_could_not_be_deleted_is_deleted_with_the_next_one(store: SharedStore, tmp_path: Path) -> None:
    shared = SharedCheckpoints(store, "a", tmp_path / "made")
    for step in range(3):
        shared.put(checkpoint(tmp_path / "made", step))
    remove = store.remove

    def away(name: str) -> None:
        raise StoreAwayError("away")

    store.remove = away  # type: ignore[method-assign]
    shared.retire("1-ab12cd-000000")
    store.remove = remove  # type: ignore[method-assign]
    shared.retire("1-ab12cd-000001")
    assert store.names("runs/a/checkpoints") == ["1-ab12cd-000002"]


def test_no_secret_of_the_environment_or_of_an_address_stands_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush+hush/hush")
    monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", "sv=1&sig=quiet")
    told = streams.stored_objects.first_line(
        RuntimeError(
            "GET https://me:word@host:9000/b/x?sv=1&sig=quiet failed, key hush+hush/hush, and https://h/y?token=abc too"
        )
    )
    assert not [secret for secret in ("hush", "quiet", "word", "abc") if secret in told]
    assert "https://…@host:9000/b/x?…" in told


class BreakingServer(BaseHTTPRequestHandler):
    """Has one object, and breaks off in the middle when a part of it is asked for the first time."""

    content = bytes(range(256)) * 4096  # 1 MiB
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._head(200, 0, len(self.content))

    def do_GET(self) -> None:
        wanted = self.headers["Range"] or f"bytes=0-{len(self.content) - 1}"
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin, end = int(first), int(last) + 1
        broken = wanted not in self.asked
        self.asked.append(wanted)
        self._head(206, begin, end)
        self.wfile.write(self.content[begin : begin + (end - begin) // (2 if broken else 1)])
        self.close_connection = True

    def _head(self, status: int, begin: int, end: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(self.content)}")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def test_a_large_file_is_read_in_parts_and_goes_on_where_the_store_broke_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BreakingServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(streams.stored_objects, "PART_BYTES", 200_000)
        store = open_store(StoreSettings(url="s3://bucket/x"))
        assert store is not None
        stored = StoredFile(
            sha256=hashlib.sha256(BreakingServer.content).hexdigest(), bytes=len(BreakingServer.content)
        )
        store._read("files/x", tmp_path / "got", stored, of="one/x")
        assert (tmp_path / "got").read_bytes() == BreakingServer.content
        begun = [int(each.removeprefix("bytes=").partition("-")[0]) for each in BreakingServer.asked]
        assert {0, 200_000, 1_000_000} <= set(begun) and begun.count(0) < len(begun) / 2
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder with a certificate for 127.0.0.1 that signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", folder / "key.pem", "-out", folder / "ca.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    yield folder


def test_a_store_behind_tls_is_reached_with_its_authority_and_refused_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: Path, unique_name: str
) -> None:
    with s3_server() as environment:
        inner = int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with tls_before(inner, authority) as port:
            for name, value in (environment | {"AWS_ENDPOINT_URL": f"https://127.0.0.1:{port}"}).items():
                monkeypatch.setenv(name, value)
            monkeypatch.delenv("AWS_ALLOW_HTTP")
            store = open_store(StoreSettings(url=f"s3://{BUCKET}/{unique_name}"))
            assert store is not None
            with pytest.raises(StoreError, match=r"certificate.*store\.ca_certs") as refused:
                store.names("runs")
            assert not isinstance(refused.value, StoreAwayError)
            trusting = open_store(StoreSettings(url=f"s3://{BUCKET}/{unique_name}", ca_certs=str(authority / "ca.pem")))
            assert trusting is not None
            trusting.put("runs/a/one", write(tmp_path / "given", weights="w"))
            assert trusting.names("runs/a") == ["one"]


@contextmanager
def tls_before(inner: int, authority: Path) -> Iterator[int]:
    """Give the port of a relay that speaks TLS outside and plainly to the server on the port `inner`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "ca.pem", authority / "key.pem")
    listening = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            with suppress(OSError):
                outer = context.wrap_socket(plain, server_side=True)
                behind = socket.create_connection(("127.0.0.1", inner))
                threading.Thread(target=pump, args=(outer, behind), daemon=True).start()
                threading.Thread(target=pump, args=(behind, outer), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.close()
