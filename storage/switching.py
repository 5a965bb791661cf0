"""The switch from one ledger file to the next: a kill at any point leaves the old ledger or the new one, never neither.

A ledger is two files, the DuckDB file and its write-ahead log, and no rename moves two files. So the new one is first
renamed to `….rebuilt`: this one rename chooses it. The following steps can be repeated from any point; the next holder
of the ledger does so. DuckDB never sees the new file beside the old one's write-ahead log.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from streams.failpoints import failpoint
from streams.whole_file import put_file, sync


def choose(made: Path, path: Path) -> None:
    """Choose a finished ledger to replace the one at `path`. Raises OSError.

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
    """Put the chosen ledger, if any, into its place; only the ledger's holder may call this. Raises OSError."""
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
    """Give the old files a second name; delete the files of a ledger that was kept earlier."""
    kept, kept_log = (old.with_name(f"{path.name}.damaged{suffix}") for old, suffix in ((path, ""), (log, ".wal")))
    if path.exists() and kept.exists() and path.samefile(kept):
        return  # A killed process kept it earlier, and may have removed the write-ahead log already.
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
