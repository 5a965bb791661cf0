"""A report's sums over the whole ledger, kept beside it so that the next report reads only what is new.

The file counts only for the same code and the same ledger, and as long as the rows that it sums are there. It is
verified by its own hash. In every other case the sums are made anew, and a notice says why. Whoever can change the
ledger can change this file, too: the proof of a ledger is `searchloop verify`.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import duckdb
import msgspec

from storage.log import Log
from storage.reports.accounts import AccountSums, account_sums
from storage.reports.growth import Growth, TableExtent, extents_of
from storage.reports.updates import UpdateSums, make_surviving, update_sums
from storage.reports.versions import VersionSums, version_sums
from streams.whole_file import write_file

FILE = "report.sums"
MODULES = ("sums.py", "growth.py", "versions.py", "updates.py", "accounts.py")  # They decide how rows are summed.
HASH_BYTES = hashlib.sha256().digest_size
ANEW = "the report reads the whole ledger, and keeps its sums again"

Tell = Callable[[str], None]


class ReportSums(msgspec.Struct, frozen=True, array_like=True):
    """What a report sums. code, ledger: hashes of the code that summed, and of the ledger's history of migrations."""

    code: str
    ledger: str
    extents: tuple[TableExtent, ...]
    versions: tuple[VersionSums, ...]
    updates: tuple[UpdateSums, ...]
    accounts: tuple[AccountSums, ...]


def read_sums(log: Log, folder: Path, tell: Tell) -> ReportSums:
    """Return the sums of a log, and keep them in the run's folder, where that can be written.

    tell: is told why kept sums do not count. The log of a live run, which is made of the archive, keeps and uses none.
    """
    before = None if log.live else _kept(log, folder / FILE, tell)
    growth = Growth(log, before.extents if before else ())
    make_surviving(log)
    versions = version_sums(growth, before.versions if before else ())
    updates = update_sums(growth, before.updates if before else ())
    survived = [place for each in before.updates for place in each.places] if before else []
    accounts = account_sums(growth, before.accounts if before else (), survived)
    now = ReportSums(_code(), _ledger(log), extents_of(log), versions, updates, accounts)
    if not log.live and now != before:
        with contextlib.suppress(OSError):
            _keep(folder / FILE, now)
    return now


def _keep(path: Path, sums: ReportSums) -> None:
    content = zlib.compress(msgspec.msgpack.encode(sums), 1)
    write_file(path, hashlib.sha256(content).digest() + content)


def _kept(log: Log, path: Path, tell: Tell) -> ReportSums | None:
    """Return the kept sums if they count."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        tell(f"{path}: the kept sums cannot be read ({error.strerror}); {ANEW}")
        return None
    content = whole[HASH_BYTES:]
    if hashlib.sha256(content).digest() != whole[:HASH_BYTES]:
        tell(f"{path}: the kept sums are damaged (their hash differs); {ANEW}")
        return None
    try:
        sums = msgspec.msgpack.decode(zlib.decompress(content), type=ReportSums)
    except (msgspec.DecodeError, UnicodeDecodeError, zlib.error):
        sums = None
    why = ""
    if sums is None or sums.code != _code():
        why = "another version of searchloop or of DuckDB kept the sums"
    elif sums.ledger != _ledger(log):
        why = "the sums are of another ledger, or of this one before it was rebuilt"
    elif extents_of(log, sums.extents) != sums.extents:
        why = "rows that were summed have changed in number or place; searchloop verify looks for the cause"
    if why:
        tell(f"{path}: {why}; {ANEW}")
        return None
    return sums


def _code() -> str:
    """Return a hash of everything that decides how rows are summed, but for the ledger's views."""
    folder = resources.files("storage.reports")
    parts = [duckdb.__version__.encode(), *(folder.joinpath(name).read_bytes() for name in MODULES)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _ledger(log: Log) -> str:
    """Return a hash of the ledger's migrations, with their texts and times: a rebuilt ledger has other times."""
    return hashlib.sha256(repr(log.rows("SELECT * FROM schema_migrations ORDER BY number")).encode()).hexdigest()
