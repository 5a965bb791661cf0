"""Bundles on a folder and on a real S3 protocol: whole or not at all, checked at every read, never overwritten."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import AzureStore

from streams.errors import SettingsError
from streams.shared_store import FILES, SharedStore, StoreSettings, open_store
from streams.stored_objects import StoreAwayError, StoreError
from tests.object_store import BUCKET, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Give the environment of a local S3 server."""
    with s3_server() as environment:
        yield environment


@pytest.fixture(params=["folder", "s3"])
def store(
    request: pytest.FixtureRequest,
    s3: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    unique_name: str,
) -> SharedStore:
    """Give an empty store: a folder, then a bucket."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    url = f"file://{tmp_path}/the store" if request.param == "folder" else f"s3://{BUCKET}/{unique_name}"
    opened = open_store(StoreSettings(url=url))
    assert opened is not None
    return opened


def write(folder: Path, **files: str) -> Path:
    """Write these texts as the files of a folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_bundle_comes_back_byte_for_byte(store: SharedStore, tmp_path: Path) -> None:
    given = write(tmp_path / "given", weights="w" * 6_000_000, manifest="{}")
    write(given / "below", more="text")
    (given / ".hidden").write_text("stays")
    (given / "half.0a0b0c0d.writing").write_text("stays")
    store.put("runs/a/checkpoints/one", given)
    store.get("runs/a/checkpoints/one", tmp_path / "got")
    got = {path.relative_to(tmp_path / "got").as_posix(): path.read_bytes() for path in (tmp_path / "got").rglob("*")
           if path.is_file()}  # fmt: skip
    assert got == {"weights": b"w" * 6_000_000, "manifest": b"{}", "below/more": b"text"}
    assert store.names("runs/a/checkpoints") == ["one"]
    assert list(store.below("runs")) == ["runs/a/checkpoints/one"]


def test_a_bundle_is_stored_once_and_never_changes(store: SharedStore, tmp_path: Path) -> None:
    store.put("runs/a/one", write(tmp_path / "given", weights="first"))
    store.put("runs/a/one", tmp_path / "given")
    write(tmp_path / "given", weights="second")
    with pytest.raises(StoreError, match=r"runs/a/one is stored already with other content \(weights differs\)"):
        store.put("runs/a/one", tmp_path / "given")
    store.get("runs/a/one", tmp_path / "got")
    assert (tmp_path / "got" / "weights").read_text() == "first"


def test_bundles_of_a_run_with_an_odd_name_are_found(store: SharedStore, tmp_path: Path) -> None:
    given = write(tmp_path / "given", segment="s")
    store.put(f"runs/{FILES}/archive/{FILES}.rewards/0/one", given)
    assert list(store.below(f"runs/{FILES}/archive")) == [f"runs/{FILES}/archive/{FILES}.rewards/0/one"]


def test_without_its_list_a_bundle_is_not_there(store: SharedStore, tmp_path: Path) -> None:
    given = write(tmp_path / "given", weights="w")

    class KilledError(RuntimeError):
        pass

    def killed(key: str, content: bytes) -> bool:
        raise KilledError

    store._create = killed  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        store.put("runs/a/one", given)
    assert store.names("runs/a") == []
    with pytest.raises(StoreError, match="no such bundle"):
        store.get("runs/a/one", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_a_changed_or_missing_file_is_found_at_the_read(store: SharedStore, tmp_path: Path) -> None:
    import obstore

    bundle = store.put("runs/a/one", write(tmp_path / "given", weights="right"))
    key = f"runs/a/{FILES}/{bundle.files['weights'].sha256}"
    obstore.put(store.objects, key, b"wrong")
    with pytest.raises(StoreError, match=r"runs/a/one/weights: expected a file with sha256 .* found [0-9a-f]{12}"):
        store.get("runs/a/one", tmp_path / "got")
    obstore.delete(store.objects, key)
    with pytest.raises(StoreError, match="found none"):
        store.get("runs/a/one", tmp_path / "got")
    assert not (tmp_path / "got").exists()
    store.put("runs/a/one", tmp_path / "given")  # Storing it again mends it.
    store.get("runs/a/one", tmp_path / "got")


@pytest.mark.parametrize(
    "content",
    [
        b"no list",
        b'{"format": "bundle/1", "files": {"../../etc/cron.d/x": {"sha256": "' + b"a" * 64 + b'", "bytes": 1}}}',
        b'{"format": "bundle/1", "files": {"/etc/x": {"sha256": "' + b"a" * 64 + b'", "bytes": 1}}}',
        b'{"format": "bundle/1", "files": {"x": {"sha256": "../../x", "bytes": 1}}}',
        b'{"format": "bundle/1", "files": {"x\\u0000": {"sha256": "' + b"a" * 64 + b'", "bytes": 1}}}',
    ],
)
def test_a_hostile_list_is_refused(store: SharedStore, tmp_path: Path, content: bytes) -> None:
    import obstore

    obstore.put(store.objects, "runs/a/one.json", content)
    with pytest.raises(StoreError, match=r"runs/a/one\.json"):
        store.get("runs/a/one", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_removing_a_bundle_leaves_the_files_of_the_others(store: SharedStore, tmp_path: Path) -> None:
    store.put("runs/a/one", write(tmp_path / "1", weights="one", tokenizer="same"))
    store.put("runs/a/two", write(tmp_path / "2", weights="two", tokenizer="same"))
    import obstore

    obstore.put(store.objects, "runs/a/of-the-user.txt", b"mine")
    store.remove("runs/a/one")
    store.remove("runs/a/one")
    store.get("runs/a/two", tmp_path / "got")
    assert (tmp_path / "got" / "tokenizer").read_text() == "same"
    left = [each["path"] for batch in obstore.list(store.objects, prefix="runs/a") for each in batch]
    assert len([path for path in left if f"/{FILES}/" in path]) == 2
    assert "runs/a/of-the-user.txt" in left


def test_two_writers_of_one_bundle_agree(s3: dict[str, str], tmp_path: Path, unique_name: str) -> None:
    write(tmp_path / "given", weights="w" * 100_000)
    code = (
        "import sys; from pathlib import Path; from streams.shared_store import StoreSettings, open_store;"
        f"open_store(StoreSettings(url='s3://{BUCKET}/{unique_name}')).put('runs/a/one', Path(sys.argv[1]))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "given")], env=os.environ | s3) for _ in range(3)
    ]
    assert [each.wait(60) for each in writers] == [0, 0, 0]


def test_a_store_that_is_away_or_refuses_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = open_store(StoreSettings(url=f"s3://{BUCKET}/x"))
        assert store is not None
        store.put("runs/a/one", write(tmp_path / "given", weights="w"))
    with pytest.raises(StoreAwayError, match="does not answer"):
        store.get("runs/a/one", tmp_path / "got")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "s3://user:secret@bucket/x", "s3://bucket/x?key=secret", "file://host/x", "file:///", "/srv"],
)
def test_an_address_that_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"store\.url") as refused:
        open_store(StoreSettings(url=url))
    assert "secret" not in str(refused.value)


def test_the_form_of_an_azure_address_that_the_error_gives_is_the_one_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    with pytest.raises(SettingsError) as refused:
        open_store(StoreSettings(url="ftp://host/x"))
    (address,) = re.findall(r"az://\S+", str(refused.value))
    opened = open_store(StoreSettings(url=address))
    assert opened is not None
    objects = opened.objects
    assert isinstance(objects, AzureStore)
    assert (objects.config["container_name"], objects.prefix) == ("container", "prefix")


def test_no_store_without_an_address() -> None:
    assert open_store(StoreSettings()) is None
