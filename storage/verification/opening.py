"""The log, opened for the proof however damaged it is: what cannot be read is a finding, never an exception."""

from __future__ import annotations

from pathlib import Path

import duckdb

from storage.archive import ARCHIVE
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.log import Log, log_from_archive, open_log
from storage.verification.account import Finding, one_line
from storage.verification.structure import strange_objects

RULE = "everything can be read"
FORM = "nothing shadows the ledger"


def open_for_proof(folder: Path) -> tuple[Log | None, list[Finding]]:
    """Return the run's log, from its archive if its ledger cannot be read; None if neither can. And what is wrong.

    A missing ledger is said too: the archive alone does not tell how far the sink had come. A ledger with a view or a
    macro that is not ours counts as one that cannot be read: it would answer what its writer likes.
    """
    path, archive = folder / LEDGER, folder / ARCHIVE
    findings: list[Finding] = []
    try:
        if path.exists():
            log = open_log(folder)
            if log.live or not (strange := _strange(log)):
                return log, findings
            what = f"{strange}; take it out, or rebuild the ledger: searchloop rebuild --run {folder.name}"
            findings.append(Finding(rule=FORM, where=str(path), what=what))
        else:
            what = f"there is no ledger, only the archive; rebuild it: searchloop rebuild --run {folder.name}"
            findings.append(Finding(rule=RULE, where=str(path), what=what))
    except (StorageError, duckdb.Error, OSError) as error:
        findings.append(Finding(rule=RULE, where=str(path), what=one_line(error)))

    def damaged(segment: Path, error: StorageError) -> None:
        findings.append(Finding(rule="archive", where=str(segment.relative_to(archive)), what=one_line(error)))

    try:
        return log_from_archive(folder, damaged=damaged), findings
    except (StorageError, duckdb.Error, OSError) as error:
        findings.append(Finding(rule=RULE, where=str(archive), what=one_line(error)))
        return None, findings


def _strange(log: Log) -> str:
    """Return what the ledger has otherwise than searchloop makes it, "" if nothing; close a log that has something."""
    try:
        strange = "; ".join(strange_objects(log.connection))
    except BaseException:
        log.close()
        raise
    if strange:
        log.close()
    return strange
