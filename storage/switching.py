"""From one ledger file to the next: whoever is killed in between leaves the old ledger or the new one, never neither.

A ledger is two files, the DuckDB file and its write-ahead log, and no rename moves two. So the new one is first given a
name of its own, `….rebuilt`: with that one rename it is chosen. What follows can be done again from any point, and is
done by whoever holds the ledger next. DuckDB never sees the new file beside the old one's write-ahead log.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from streams.failpoints import failpoint
from streams.whole_file import put_file, sync


def choose(made: Path, path: Path) -> None:
    """Make a finished ledger the one that stands at `path`, in place of what is there. Raises OSError.

    made: a DuckDB file without a write-ahead log, in the same folder. The old files are kept, named `.damaged`.
    """
    failpoint("rebuild.before-choice")
    put_file(made, _chosen(path))
    failpoint("rebuild.after-choice")
    finish(path)


def is_chosen(path: Path) -> bool:
    """Return whether a new ledger was chosen that is not in its place yet."""
    return _chosen(path).exists()


def finish(path: Path) -> None:
    """Put the chosen ledger, if there is one, into its place; only for who holds the ledger. Raises OSError."""
    if not is_chosen(path):
        return
    log = path.with_name(f"{path.name}.wal")
    _keep(path, log)
    log.unlink(missing_ok=True)
    sync(path.parent)
    failpoint("rebuild.before-replace")
    _chosen(path).replace(path)
    sync(path.parent)
    failpoint("rebuild.after-replace")


def _keep(path: Path, log: Path) -> None:
    """Give the old files a second name; of a ledger that was kept before this one, nothing stays."""
    kept, kept_log = (old.with_name(f"{path.name}.damaged{suffix}") for old, suffix in ((path, ""), (log, ".wal")))
    if path.exists() and kept.exists() and path.samefile(kept):
        return  # Kept by one who was killed after that, and who may have removed the write-ahead log already.
    # The log first: once the file has its second name, both are kept.
    for old, name in ((log, kept_log), (path, kept)):
        if old.exists() or path.exists():
            name.unlink(missing_ok=True)
        if old.exists():
            try:
                os.link(old, name)
            except OSError:  # A file system without links.
                shutil.copyfile(old, name)
                sync(name)


def _chosen(path: Path) -> Path:
    return path.with_name(f"{path.name}.rebuilt")
