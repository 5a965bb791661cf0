"""Checkpoints on a store that machines share: stored before a version is announced, fetched before it is loaded."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from learner.checkpoints import CURRENT, MANIFEST, MANIFEST_SHA256, CheckpointError, read_manifest
from streams.shared_store import SharedStore, StoreAwayError, StoreError
from streams.whole_file import write_file

FETCHED = ".fetched"  # The mark of a checkpoint that only copies the store's; the newest few stay.
FETCHED_KEPT = 3
log = logging.getLogger(__name__)


class SharedCheckpoints:
    """A run's checkpoints on the store, and the folder with this machine's own."""

    def __init__(self, store: SharedStore, run: str, root: Path) -> None:
        """root: the folder `checkpoints` of the run on this machine."""
        self._store = store
        self._place = f"runs/{run}/checkpoints"
        self._root = root

    def put(self, folder: Path) -> None:
        """Store a checkpoint; one that is there already stays as it is.

        Raises StoreAwayError if the store does not answer, and CheckpointError if it refuses.
        """
        manifest = read_manifest(folder, verify=False)
        try:
            self._store.put(f"{self._place}/{folder.name}", folder, files=[*manifest.files, MANIFEST, MANIFEST_SHA256])
        except StoreError as error:
            raise CheckpointError(f"checkpoint {folder.name} could not be shared: {error}") from error

    def fetch(self, name: str) -> Path:
        """Return the folder of a version on this machine; it is copied from the store if it is not there.

        Raises StoreAwayError if the store does not answer, and CheckpointError if it lacks the version or holds a
        damaged one.
        """
        folder = self._root / name
        if folder.exists():
            return folder
        try:
            self._store.get(f"{self._place}/{name}", folder)
        except FileExistsError:
            return folder  # Another worker of this machine was faster.
        except StoreError as error:
            raise CheckpointError(f"policy {name} could not be fetched: {error}") from error
        (folder / FETCHED).touch()
        self._forget_old(folder)
        return folder

    def keep(self, name: str) -> None:
        """Fetch a version that stays on this machine, as if it had been made here. Raises as `fetch` does."""
        (self.fetch(name) / FETCHED).unlink(missing_ok=True)

    def take_over(self, name: str) -> None:
        """Make a stored version this machine's CURRENT, to go on from it. Raises as `fetch` does."""
        self.keep(name)  # It is the beginning of what this machine makes now.
        write_file(self._root / CURRENT, f"{name}\n".encode())

    def retire(self, name: str) -> None:
        """Delete a version from the store, if the store answers; else it stays there."""
        try:
            self._store.remove(f"{self._place}/{name}")
        except (StoreAwayError, StoreError) as error:
            log.warning("checkpoint %s stays on the store: %s", name, error)

    def _forget_old(self, newest: Path) -> None:
        """Delete fetched copies except the newest few; checkpoints that were made here have no mark."""
        fetched = sorted(
            (path.parent for path in self._root.glob(f"*/{FETCHED}")), key=lambda folder: folder.stat().st_mtime_ns
        )
        for folder in fetched[:-FETCHED_KEPT]:
            if folder != newest and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
