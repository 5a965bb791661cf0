"""The log, opened for the proof however damaged it is: unreadable parts are findings, never exceptions."""

from __future__ import annotations

from pathlib import Path

import duckdb

from storage.archive import ARCHIVE
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.log import Log, log_from_archive, open_log
from storage.verification.account import Finding, one_line
from storage.verification.structure import Strange, strange_objects

RULE = "everything can be read"
FORM = "nothing shadows the ledger"


def open_for_proof(folder: Path) -> tuple[Log | None, list[Finding], list[str]]:
    """Return the run's log, the findings, and the foreign objects in the ledger that the proof does not look at.

    The log comes from the archive if the ledger cannot be read; it is None if neither can be read. A missing ledger is
    a finding too, because the archive alone does not show how far the sink had come. A ledger with a view or macro in
    place of ours counts as unreadable, because its writer could choose its answers.
    """
    path, archive = folder / LEDGER, folder / ARCHIVE
    findings: list[Finding] = []
    try:
        if path.exists():
            log = open_log(folder)
            strange = Strange(wrong=[], foreign=[]) if log.live else _strange(log)
            if not strange.wrong:
                return log, findings, strange.foreign
            what = (
                f"{'; '.join(strange.wrong)}; remove it, or rebuild the ledger: searchloop rebuild --run {folder.name}"
            )
            findings.append(Finding(rule=FORM, where=str(path), what=what))
        else:
            what = f"there is no ledger, only the archive; rebuild it: searchloop rebuild --run {folder.name}"
            findings.append(Finding(rule=RULE, where=str(path), what=what))
    except (StorageError, duckdb.Error, OSError) as error:
        findings.append(Finding(rule=RULE, where=str(path), what=one_line(error)))

    def damaged(segment: Path, error: StorageError) -> None:
        findings.append(Finding(rule="archive", where=str(segment.relative_to(archive)), what=one_line(error)))

    try:
        return log_from_archive(folder, damaged=damaged), findings, []
    except (StorageError, duckdb.Error, OSError) as error:
        findings.append(Finding(rule=RULE, where=str(archive), what=one_line(error)))
        return None, findings, []


def _strange(log: Log) -> Strange:
    """Return the ledger's differences from searchloop's own schema; close a log that cannot be asked."""
    try:
        strange = strange_objects(log.connection)
    except BaseException:
        log.close()
        raise
    if strange.wrong:
        log.close()
    return strange
