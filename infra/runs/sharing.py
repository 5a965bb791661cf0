"""A run and its index on the store that machines share, so that a worker elsewhere needs no file of this machine.

What a run began with and what was made from its index are folders that seldom change. Each state of such a folder is
a bundle with a number (`runs/NAME/start/000001`); a state that equals the newest one is not stored again. Checkpoints
(`learner.shared_checkpoints`) and archive segments (`storage.shared_archive`) have places of their own.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from infra.app.app import App
from infra.app.home import SETTINGS_FILE
from infra.app.progress import Report
from infra.app.run_settings import read_run_settings
from learner.checkpoints import CURRENT
from learner.policy import ADAPTER_CONFIG, RUNS, read_adapter
from learner.shared_checkpoints import SharedCheckpoints
from search_env.engine.index import load_manifest
from storage.archive import ARCHIVE, find_segments
from storage.ledger import LEDGER
from storage.log import rebuild_ledger
from storage.shared_archive import SharedArchive
from storage.verification.proven import PLACE
from streams.epochs import counted
from streams.errors import SettingsError
from streams.events import PolicyVersion
from streams.names import is_version_name
from streams.ranges import read_events
from streams.shared_store import SharedStore, described, files_of
from streams.topics import version_name

# Parts of a run's folder that every machine makes for itself, or that have a place of their own on the store.
OWN = ("checkpoints", "logs", ARCHIVE, "summaries", "warmup", "alerts", "routes", "metrics", PLACE)
OWN_FILES = (LEDGER, "workers", "report")
MODEL_FILES = frozenset({".json", ".safetensors", ".model", ".jinja", ".txt"})
OF_THE_HOME = frozenset({"services", "indexes", "people", "experiments"})  # Folders that hold no base of an adapter.
INDEX_FILE = "manifest.json"
NUMBER = re.compile("[0-9]{6}")
# Lists that simulated people may see, and lessons that only a run's preparation reads.
UNSHARED = ("simulated", "teachers")


def share_run(app: App, run: str, report: Report) -> None:
    """Store what a prepared run and its index consist of, for workers on other machines; nothing without a store.

    Raises StoreAwayError if the store does not answer, StoreError if it refuses.
    """
    if app.store is None:
        return
    kept = read_run_settings(app.home.run(run))
    report("sharing the index", 0, 3)
    index = app.home.index(kept.index)
    _put(app.store, f"indexes/{kept.index_version}", index, _files(index, UNSHARED))
    report("sharing the run", 1, 3)
    folder = app.home.run(run)
    shared = SharedCheckpoints(app.store, run, folder.checkpoints)
    for path in sorted(folder.checkpoints.glob("*-000000")):  # The first policy; the learner stores all others.
        shared.put(path)
        if (base := _base_of(app, path)) is not None:
            _put(app.store, f"runs/{run}/base", app.home.root, _base_files(app, base, run))
    _put(app.store, f"runs/{run}/start", folder, _files(folder, OWN))
    report("sharing the run", 3, 3)


def is_shared(app: App, run: str) -> bool:
    """Return whether the store has a run of this name."""
    return app.store is not None and _newest(app.store, f"runs/{run}/start") is not None


def fetch_run(app: App, run: str, report: Report) -> None:
    """Fetch a run that this machine lacks, with its index and the base of its adapters.

    Nothing that is here is replaced. Raises SettingsError if neither this machine nor the store has the run,
    StoreAwayError if the store does not answer.
    """
    folder = app.home.run(run)
    if app.store is None or folder.settings_file.is_file():
        return
    report("fetching the run", 0, 3)
    if (start := _newest(app.store, f"runs/{run}/start")) is None:
        raise SettingsError(
            f"--run: expected a run under {app.home.runs} or on the store {app.store.url}, got {run!r}. Start it with "
            "searchloop train on one machine, with the same store.url"
        )
    if folder.exists() and any(folder.iterdir()) and not folder.settings_file.is_file():
        raise SettingsError(
            f"{folder} exists without {SETTINGS_FILE}, so run {run!r} is not fetched into it. Move that folder away"
        )
    # The run's own folder comes last: with it, the run counts as fetched, and nobody looks for the rest again.
    with tempfile.TemporaryDirectory() as scratch:
        app.store.get_file(start, SETTINGS_FILE, Path(scratch) / SETTINGS_FILE)
        kept = read_run_settings(Path(scratch))
    report("fetching the index", 1, 3)
    index = app.home.index(kept.index)
    if (index / INDEX_FILE).is_file() and (here := load_manifest(index).name) != kept.index_version:
        raise SettingsError(
            f"{index}: expected the index {kept.index_version} of run {run!r}, found {here}. Move that folder away, "
            "and the other one is fetched from the store"
        )
    if not index.exists():
        if (state := _newest(app.store, f"indexes/{kept.index_version}")) is None:
            raise SettingsError(f"{app.store.url}: expected the index {kept.index_version} of run {run!r}, found none")
        with suppress(FileExistsError):  # Another worker of this machine was faster.
            app.store.get(state, index)
    if (base := _newest(app.store, f"runs/{run}/base")) is not None and (listed := app.store.bundle(base)) is not None:
        _fetch_base(app, app.store, base, sorted(listed.files), run=run)
    with suppress(OSError):
        folder.rmdir()
    with suppress(FileExistsError):  # As above.
        app.store.get(start, folder)
    report("fetching the run", 3, 3)


def fetch_policy(app: App, run: str) -> None:
    """Make the version that was announced last this machine's own, if it has no checkpoint of the run."""
    if app.store is None:
        return
    folder = app.home.run(run)
    if (folder.checkpoints / CURRENT).exists():
        return
    announced = counted(read_events(app.connections.kafka, run, PolicyVersion), run=run)
    published = [event for event in announced if event.status == "published"]
    shared = SharedCheckpoints(app.store, run, folder.checkpoints)
    stored = app.store.names(f"runs/{run}/checkpoints")
    first = [name for name in stored if name.endswith("-000000") and is_version_name(name)]
    for name in first:
        shared.keep(name)  # Whoever has a run also has the policy that it began with.
    if published:
        told = published[-1].manifest_sha256
        shared.take_over(version_name(published[-1].policy), manifest_sha256=told if isinstance(told, str) else "")
        return
    if not first:
        raise SettingsError(f"{app.store.url}: run {run!r} has no policy version there; start it again by another name")
    shared.take_over(first[-1])


def fetch_ledger(app: App, run: str, report: Report) -> None:
    """Fetch the archive of a run whose ledger is not on this machine, and make the ledger from it."""
    folder = app.home.run(run)
    if app.store is None or (folder / LEDGER).exists():
        return
    archive = SharedArchive(app.store, run)
    archive.pull(folder / ARCHIVE, report)
    if find_segments(folder / ARCHIVE):  # They may lie here from a fetch that was killed before this.
        rebuild_ledger(folder)


def _fetch_base(app: App, store: SharedStore, base: str, files: Sequence[str], *, run: str) -> None:
    """Fetch the files of an adapter's base that this home lacks.

    Raises SettingsError if one is not a model's, because a list on a store may name any file of the home.
    """
    strange = [each for each in files if not _may_be_of_a_base(PurePosixPath(each), run)]
    if strange:
        raise SettingsError(
            f"{store.url}: {base}: expected files of a model, such as policies/NAME/model.safetensors, got "
            f"{strange[0][:200]!r}. Remove that list, and start the run again on the machine that made it"
        )
    for file in files:
        if not (app.home.root / file).exists():
            store.get_file(base, file, app.home.root / file)


def _may_be_of_a_base(file: PurePosixPath, run: str) -> bool:
    """Return whether a path within a home may be that of a model's file that this run's adapters need."""
    above = file.parts[:-1]
    ours = bool(above) and above[0] not in OF_THE_HOME and (above[0] != RUNS or above[1:2] == (run,))
    return ours and file.suffix in MODEL_FILES and not any(part.startswith(".") for part in file.parts)


def _base_of(app: App, checkpoint: Path) -> Path | None:
    """Return the folder of an adapter's base, relative to the home; None for a policy of its own.

    Raises SettingsError for a base outside the home: another machine could not know where to look for it.
    """
    if not (checkpoint / ADAPTER_CONFIG).is_file():
        return None
    base = read_adapter(checkpoint).base.resolve()
    home = app.home.root.resolve()
    if not base.is_relative_to(home):
        raise SettingsError(
            f"store.url: expected an adapter whose base lies in the home {home}, so that it can be shared, got {base}. "
            "Start a new run whose policy.base is a folder there"
        )
    return base.relative_to(home)


def _base_files(app: App, base: Path, run: str) -> list[str]:
    """Return the files of a base that other machines fetch, relative to the home: those of a model, and no others.

    Raises SettingsError if there is none, as in a model hub's cache, which consists of links.
    """
    files = [base / each for each in files_of(app.home.root / base)]
    found = [each.as_posix() for each in files if _may_be_of_a_base(PurePosixPath(each), run)]
    if not found:
        raise SettingsError(
            f"store.url: expected an adapter whose base is a folder with a model's files in the home, outside other "
            f"runs, so that it can be shared, got {base}. Copy the model to policies/NAME there, and start a new run "
            "whose policy.base is that folder"
        )
    return found


def _put(store: SharedStore, place: str, folder: Path, files: Sequence[str]) -> None:
    """Store the state of a folder's files under the next number, unless it is that of the newest one."""
    newest = _newest(store, place)
    if newest is not None and store.bundle(newest) == described(folder, files):
        return
    number = int(newest.rpartition("/")[2]) + 1 if newest else 1
    store.put(f"{place}/{number:06d}", folder, files)


def _files(folder: Path, without: Sequence[str]) -> list[str]:
    """Return the paths of a folder's files that machines share: without these folders, ledger, lists of workers."""
    found = [(each, each.split("/")) for each in files_of(folder)]
    return [
        each
        for each, parts in found
        if parts[0] not in without and not (len(parts) == 1 and each.startswith(OWN_FILES))
    ]


def _newest(store: SharedStore, place: str) -> str | None:
    """Return the name of a folder's newest state; None if none is stored."""
    numbers = [name for name in store.names(place) if NUMBER.fullmatch(name)]
    return f"{place}/{max(numbers)}" if numbers else None
