"""A run fetched from a shared store: whole, even after a failure half way, and without a file that is not its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.recipes.recipe import NewRun
from infra.runs import sharing, training_runs
from infra.runs.sharing import _base_files, fetch_ledger, fetch_run
from infra.runs.training_runs import train_run
from search_env.engine.index import IndexVersion
from storage.archive import ARCHIVE
from storage.ledger import LEDGER
from storage.log import open_log
from storage.shared_archive import SharedArchive
from storage.sink import Sink
from streams.errors import SettingsError
from streams.shared_store import SharedStore, StoreSettings, open_store
from streams.stored_objects import StoreAwayError
from tests.stored_events import small_run

RUN = "leser-shop-0"


@pytest.fixture
def store(tmp_path: Path) -> SharedStore:
    """Give a store with a run, its index, and the base of its adapters."""
    opened = open_store(StoreSettings(url=f"file://{tmp_path}/store"))
    assert opened is not None
    started = tmp_path / "made" / "start"
    kept = RunSettings(
        run=RUN, recipe="leser", index="shop", index_version="shop-1", seed=0, updates=1, settings=Settings()
    )
    started.mkdir(parents=True)
    write_run_settings(started, kept)
    opened.put(f"runs/{RUN}/start/000001", started)
    for place, files in {
        "indexes/shop-1/000001": {"queries.jsonl": "{}"},
        f"runs/{RUN}/base/000001": {"policies/small/model.safetensors": "w", "policies/small/config.json": "{}"},
    }.items():
        folder = tmp_path / "made" / place
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        opened.put(place, folder)
    return opened


def app_at(home: Path, store: SharedStore) -> App:
    home.mkdir(exist_ok=True)
    return App(Home(home), settings=msgspec.structs.replace(Settings(), store=StoreSettings(url=store.url)))


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


WHOLE = [
    "indexes/shop/queries.jsonl",
    "policies/small/config.json",
    "policies/small/model.safetensors",
    f"runs/{RUN}/settings.json",
]


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_store_that_fails_half_way_leaves_nothing_that_hides_the_rest(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    app = app_at(tmp_path / "home", store)
    plain = SharedStore._ask
    asked = 0

    def failing(self: SharedStore, act: object) -> object:
        nonlocal asked
        asked += 1
        if asked >= fails_at:
            raise StoreAwayError("the store does not answer")
        return plain(self, act)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SharedStore, "_ask", failing)
        with pytest.raises(StoreAwayError):
            fetch_run(app, RUN, lambda *_: None)
    fetch_run(app, RUN, lambda *_: None)
    assert files_in(app.home.root) == WHOLE


def test_two_workers_of_one_machine_that_begin_at_once_fetch_one_whole_run(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_at(tmp_path / "home", store)
    plain, both = SharedStore.get, threading.Barrier(2, timeout=30)

    def together(self: SharedStore, name: str, target: Path) -> object:
        both.wait()
        return plain(self, name, target)

    monkeypatch.setattr(SharedStore, "get", together)
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(fetch_run, app, RUN, lambda *_: None) for _ in range(2)]:
            each.result()
    assert files_in(app.home.root) == WHOLE


def test_an_index_of_another_version_is_not_taken_for_the_runs(store: SharedStore, tmp_path: Path) -> None:
    app = app_at(tmp_path / "home", store)
    here = app.home.index("shop")
    here.mkdir(parents=True)
    old = IndexVersion(name="shop-0", alias="shop", documents=1, sha256="")
    (here / "manifest.json").write_bytes(msgspec.json.encode(old))
    with pytest.raises(
        SettingsError, match=r"expected the index shop-1 of run .*, found shop-0\. Move that folder away"
    ):
        fetch_run(app, RUN, lambda *_: None)
    assert files_in(app.home.root) == ["indexes/shop/manifest.json"]


def test_a_machine_that_has_worked_for_a_run_fetches_policy_and_ledger_before_it_trains_it(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_at(tmp_path / "home", store)
    fetch_run(app, RUN, lambda *_: None)
    fetched: list[str] = []

    class PreparedError(RuntimeError):
        pass

    class Preparing:
        def prepare(self, *arguments: object) -> None:
            raise PreparedError

    monkeypatch.setattr(training_runs, "fetch_policy", lambda *_: fetched.append("policy"))
    monkeypatch.setattr(training_runs, "fetch_ledger", lambda *_: fetched.append("ledger"))
    monkeypatch.setattr(training_runs, "load_recipe", lambda name: Preparing())
    new = NewRun(run=RUN, index="shop")
    with pytest.raises(PreparedError):
        train_run(app, new, recipe="leser", updates=1, report=lambda *_: None)
    assert fetched == ["policy", "ledger"]


def test_a_ledger_is_made_from_an_archive_that_was_fetched_before_a_kill(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sink(tmp_path / "made" / LEDGER) as sink:
        sink.write(small_run(4))
    assert SharedArchive(store, RUN).push(tmp_path / "made" / ARCHIVE)
    app = app_at(tmp_path / "home", store)
    fetch_run(app, RUN, lambda *_: None)

    class KilledError(RuntimeError):
        pass

    def killed(folder: Path) -> int:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(sharing, "rebuild_ledger", killed)
        with pytest.raises(KilledError):
            fetch_ledger(app, RUN, lambda *_: None)
    fetch_ledger(app, RUN, lambda *_: None)
    assert (app.home.run(RUN) / LEDGER).is_file(), (
        "a sink would begin an empty one, and read only what Kafka still holds"
    )
    with open_log(app.home.run(RUN)) as log:
        assert log.rows("SELECT count(*) AS n FROM requests") == [{"n": 4}]


def test_of_a_base_only_what_a_model_needs_is_shared_so_that_every_machine_takes_it(
    store: SharedStore, tmp_path: Path
) -> None:
    making, app = app_at(tmp_path / "making", store), app_at(tmp_path / "home", store)
    base = making.home.policies / "given"
    base.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "README.md", "LICENSE", "model.bin"):
        (base / name).write_text(name)
    files = _base_files(making, base.relative_to(making.home.root), RUN)
    assert files == ["policies/given/config.json", "policies/given/model.safetensors"]
    store.put(f"runs/{RUN}/base/000002", making.home.root, files)
    fetch_run(app, RUN, lambda *_: None)
    assert (app.home.policies / "given" / "config.json").read_text() == "config.json"
    for name in ("README.md", "model.safetensors"):
        (base / name).unlink(missing_ok=True)
    (base / "config.json").rename(base / "blob")
    (base / "config.json").symlink_to(base / "blob")
    with pytest.raises(SettingsError, match=r"a folder with a model's files in the home.*, got policies/given"):
        _base_files(making, base.relative_to(making.home.root), RUN)


@pytest.mark.parametrize(
    "name",
    [
        "config.toml",
        "runs/other/settings.json",
        "policies/.hidden/x.json",
        "services/state.json",
        "policies/small/run.py",
    ],
)
def test_a_list_plants_no_file_beside_the_base(store: SharedStore, tmp_path: Path, name: str) -> None:
    app = app_at(tmp_path / "home", store)
    forged = tmp_path / "forged"
    (forged / name).parent.mkdir(parents=True)
    (forged / name).write_text("{}")
    store.put(f"runs/{RUN}/base/000002", forged, [name])
    with pytest.raises(SettingsError, match=r"base/000002: expected files of a model") as refused:
        fetch_run(app, RUN, lambda *_: None)
    assert name in str(refused.value)
    assert not (app.home.root / name).exists()
    assert not app.home.run(RUN).exists()
