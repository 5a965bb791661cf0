"""Checkpoints on a store that machines share: stored before a version is announced, fetched before it is loaded."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from learner.checkpoints import CURRENT, MANIFEST, MANIFEST_SHA256, CheckpointError, read_manifest
from streams import whole_file
from streams.shared_store import SharedStore
from streams.stored_objects import StoreAwayError, StoreError
from streams.whole_file import file_sha256, write_file

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
        self._to_retire: list[str] = []

    def put(self, folder: Path) -> None:
        """Store a checkpoint; one that is there already stays as it is.

        Raises StoreAwayError if the store does not answer, and CheckpointError if it refuses.
        """
        manifest = read_manifest(folder, verify=False)
        try:
            self._store.put(f"{self._place}/{folder.name}", folder, files=[*manifest.files, MANIFEST, MANIFEST_SHA256])
        except StoreError as error:
            raise CheckpointError(f"checkpoint {folder.name} could not be shared: {error}") from error

    def fetch(self, name: str, *, manifest_sha256: str = "") -> Path:
        """Return the folder of a version on this machine; it is copied from the store if it is not there.

        manifest_sha256: the manifest's hash as the log announced it; "" if it is not known. Who may write to the store
        can exchange a version together with its list, but not what the log says.
        Raises StoreAwayError if the store does not answer, and CheckpointError if it lacks the version or holds a
        damaged one, or another one than was announced.
        """
        folder = self._root / name
        try:
            if not folder.exists():
                self._copy(name, folder)
        except FileExistsError:
            pass  # Another worker of this machine was faster.
        except StoreError as error:
            raise CheckpointError(f"policy {name} could not be fetched: {error}") from error
        self._check_announced(folder, manifest_sha256)
        return folder

    def keep(self, name: str, *, manifest_sha256: str = "") -> None:
        """Fetch a version that stays on this machine, as if it had been made here. Raises as `fetch` does."""
        (self.fetch(name, manifest_sha256=manifest_sha256) / FETCHED).unlink(missing_ok=True)

    def take_over(self, name: str, *, manifest_sha256: str = "") -> None:
        """Make a stored version this machine's CURRENT, to go on from it. Raises as `fetch` does."""
        self.keep(name, manifest_sha256=manifest_sha256)  # It is the beginning of what this machine makes now.
        write_file(self._root / CURRENT, f"{name}\n".encode())

    def retire(self, name: str) -> None:
        """Delete a version from the store; if the store does not answer, with the next one that is retired."""
        self._to_retire.append(name)
        for each in list(self._to_retire):
            try:
                self._store.remove(f"{self._place}/{each}")
            except (StoreAwayError, StoreError) as error:
                log.warning("checkpoint %s stays on the store for now: %s", each, error)
                return
            self._to_retire.remove(each)

    def names(self) -> list[str]:
        """Return the names of the run's checkpoints on the store. Raises StoreAwayError, StoreError."""
        return self._store.names(self._place)

    def is_own(self, name: str) -> bool:
        """Return whether this machine has a checkpoint that is more than a copy of the store's."""
        folder = self._root / name
        return folder.exists() and not (folder / FETCHED).exists()

    def _copy(self, name: str, folder: Path) -> None:
        self._store.get(f"{self._place}/{name}", folder, mark=FETCHED)
        self._forget_old(folder)

    def _check_announced(self, folder: Path, manifest_sha256: str) -> None:
        """Raise CheckpointError if a checkpoint is not the announced one; a copy of the store's is deleted then."""
        if not manifest_sha256:
            return
        try:
            found = file_sha256(folder / MANIFEST)
        except OSError as error:
            raise CheckpointError(f"policy {folder.name}: {error}") from error
        if found != manifest_sha256:
            if (folder / FETCHED).exists():
                _forget(folder)
            raise CheckpointError(
                f"policy {folder.name}: expected the manifest {manifest_sha256[:12]}… that was announced, found "
                f"{found[:12]}…; the version was exchanged on the store, or here. Put the one of the machine that made "
                "it back"
            )

    def _forget_old(self, newest: Path) -> None:
        """Delete fetched copies except the newest few; checkpoints that were made here have no mark.

        What a process left behind that was killed while it copied or deleted one goes, too.
        """
        whole_file.remove_unfinished(self._root)
        fetched = sorted(
            (path.parent for path in self._root.glob(f"*/{FETCHED}")), key=lambda folder: folder.stat().st_mtime_ns
        )
        for folder in fetched[:-FETCHED_KEPT]:
            if folder != newest and not folder.is_symlink():
                _forget(folder)


def _forget(folder: Path) -> None:
    """Delete a copy of the store's; another worker of this machine may be doing the same."""
    with suppress(OSError):
        whole_file.remove_folder(folder)
