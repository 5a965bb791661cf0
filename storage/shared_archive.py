"""The archive's segments on a store that machines share: pushed by the sink, read there by any number of analysts.

DuckDB reads the segments where they lie (`open_shared`), so nobody waits for the sink, which holds the ledger's file. A
segment is a bundle of one file, `runs/NAME/archive/TOPIC/PARTITION/FIRST-LAST`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from storage.archive import SEGMENT_SCHEMA, find_segments
from streams.shared_store import SharedStore
from streams.stored_objects import StoreAwayError, StoreConflictError, StoreError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SCHEME = "shared"
RETRY_SECONDS = 30.0
log = logging.getLogger(__name__)


class SharedArchive:
    """One run's archive on the store."""

    def __init__(self, store: SharedStore, run: str) -> None:
        self.store = store
        self._place = f"runs/{run}/archive"
        self._pushed: set[str] | None = None
        self._segment = re.compile(re.escape(self._place) + r"/[^/]+/[0-9]+/[0-9]{20}-[0-9]{20}")
        self._looked_at = (-1, 0.0)

    def push_new(self, folder: Path, closed: int) -> None:
        """Store new segments, if `closed` (a count of them) has grown, or once more if the store was away."""
        closed_then, then = self._looked_at
        if closed == closed_then and (then == 0.0 or time.monotonic() - then < RETRY_SECONDS):
            return
        self._looked_at = (closed, 0.0 if self.push(folder) else time.monotonic())

    def push(self, folder: Path) -> bool:
        """Store those segments of this machine's archive that the store lacks; return whether it has all of them now.

        If the store is away, they are stored the next time: the segments stay here in any case. Of two segments with
        the same offsets, made by two sinks, the first one stays: the log gave both the same records.
        """
        try:
            if self._pushed is None:
                self._pushed = set(self._names())
            for path in find_segments(folder):
                name = f"{self._place}/{path.parent.relative_to(folder).as_posix()}/{path.stem}"
                if name not in self._pushed:
                    try:
                        self.store.put(name, path.parent, [path.name])
                    except StoreConflictError:
                        log.info("%s is stored already, by another sink", name)
                    self._pushed.add(name)
        except (StoreAwayError, StoreError) as error:
            log.warning("segments of %s wait for the store: %s", folder, error)
            return False
        return True

    def pull(self, folder: Path, report: Callable[[str, int, int], None]) -> int:
        """Copy the store's segments that this machine's archive lacks; return their number.

        Raises StoreAwayError if the store does not answer, StoreError if a segment is damaged.
        """
        have = {path.relative_to(folder).with_suffix("").as_posix() for path in find_segments(folder)}
        names = {name: name.removeprefix(f"{self._place}/") for name in self._names()}
        wanted = {name: path for name, path in names.items() if path not in have}
        for number, (name, path) in enumerate(wanted.items()):
            report("fetching the archive", number, len(wanted))
            target = (folder / path).with_suffix(".parquet")
            self.store.get_file(name, target.name, target)
        return len(wanted)

    def addresses(self) -> list[str]:
        """Return the addresses of all segments, as `open_shared` reads them."""
        found = []
        for name in self._names():
            file = name.rpartition("/")[2] + ".parquet"
            found.append(f"{SCHEME}://{self.store.address(name, file)}")
        return found

    def _names(self) -> list[str]:
        """Return the names of all segments; other objects in their place are somebody else's."""
        return [name for name in self.store.below(self._place) if self._segment.fullmatch(name)]


def open_shared(store: SharedStore, run: str) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection whose view `records` reads a run's segments on the store.

    Its columns are those of `storage.archive.SEGMENT_SCHEMA`; a record that two segments hold is there once. The view
    has the segments of now: open it again for newer ones. Raises StoreAwayError if the store does not answer.
    """
    addresses = SharedArchive(store, run).addresses()
    connection = duckdb.connect()
    if not addresses:
        connection.register("none", SEGMENT_SCHEMA.empty_table())
        connection.execute("CREATE VIEW records AS SELECT * FROM none")
        return connection
    connection.register_filesystem(_files_of(store))
    listed = ", ".join("'" + address.replace("'", "''") + "'" for address in addresses)
    connection.execute(
        f"CREATE VIEW records AS SELECT DISTINCT ON (topic, partition, record_offset) * FROM read_parquet([{listed}])"
    )
    return connection


def _files_of(store: SharedStore) -> AbstractFileSystem:
    """Return the store's files in the form that DuckDB reads."""
    import obstore
    from fsspec import AbstractFileSystem

    def key(path: str) -> str:
        return path.removeprefix(f"{SCHEME}://")

    class StoredFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = SCHEME
        cachable = False

        def info(self, path: str, **how: Any) -> dict[str, Any]:
            found = obstore.head(store.objects, key(path))
            return {"name": path, "size": found["size"], "type": "file", "mtime": found["last_modified"]}

        def exists(self, path: str, **how: Any) -> bool:
            return True

        def glob(self, path: str, **how: Any) -> list[str]:
            return [path]

        def modified(self, path: str) -> Any:
            return self.info(path)["mtime"]

        def _open(self, path: str, mode: str = "rb", **how: Any) -> Any:
            return obstore.open_reader(store.objects, key(path))

    return StoredFiles()
