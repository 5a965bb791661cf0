"""A run fetched from a shared store: whole, even after a failure half way, and without a file that is not its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.runs.sharing import fetch_run
from streams.errors import SettingsError
from streams.shared_store import SharedStore, StoreSettings, open_store
from streams.stored_objects import StoreAwayError

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
