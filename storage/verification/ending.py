"""The end: work that is still owed is no breach while somebody is working, and a finding once nobody is."""

from __future__ import annotations

from collections.abc import Sequence

from storage.log import Log
from storage.verification.account import Finding, PartitionRow, StageRow, place


def ending_findings(
    log: Log,
    partitions: Sequence[PartitionRow],
    stages: Sequence[StageRow],
    *,
    run: str,
    working: bool,
    step: int,
    updates: int | None,
    untold: str | None = None,
) -> list[Finding]:
    """Return the work that nobody will complete unless the run continues.

    working: a worker of the run is alive, or a sink holds the ledger. step: updates of the newest policy. updates: the
    number of updates that the run was to make; None if unknown, as in runs without a learner. untold: the newest
    checkpoint's version if no record contains the update that made it.

    A run that reached its updates owes nothing: requests lie ready beyond them, and a few may be in progress.
    """
    if working:
        return []
    findings = [
        Finding(
            rule="everything is stored",
            where=place(row.topic, row.partition, row.next_offset),
            what=f"Kafka holds {row.behind:,} records that the ledger has not stored, and no sink is at work; let it "
            f"catch up: searchloop run sink --run {run}, or continue the run",
            severity="unfinished",
        )
        for row in partitions
        if row.behind
    ]
    if untold is not None:
        findings.append(
            Finding(
                rule="versions are announced",
                where="CURRENT",
                what=f"names {untold}, which no record in the log describes: its learner was killed before it "
                "announced it, or somebody forged it. Continuing the run announces it",
                severity="unfinished",
            )
        )
    if not _was_begun(log):
        return findings  # Imported traffic: requests lie ready for a later replay.
    learns = _learns(log)
    if learns and updates is not None and step >= updates:
        return findings
    waiting = {stage.unit: stage.waiting for stage in stages if stage.waiting and (learns or stage.unit != "groups")}
    if not waiting and not (learns and updates is not None):
        return findings
    owed = ", ".join(f"{count:,} {unit}" for unit, count in waiting.items())
    so_far = f"{step:,} of {updates:,} updates made" if learns and updates is not None else ""
    what = "; ".join(part for part in (so_far, owed and f"waiting: {owed}") if part)
    return [
        *findings,
        Finding(
            rule="the run has ended",
            where=f"run {run}",
            what=f"{what}; no worker is alive: the run was stopped early or it stalled. To continue it, "
            "repeat the command that started it, with the same --run",
            severity="unfinished",
        ),
    ]


def _was_begun(log: Log) -> bool:
    """Return whether anybody was ever at work: a version was announced, or a request was answered."""
    (row,) = log.rows("SELECT (SELECT count(*) FROM policy_versions) + (SELECT count(*) FROM generations) AS n")
    return bool(row["n"])


def _learns(log: Log) -> bool:
    """Return whether a learner was at work: it grants requests, and it makes updates."""
    (row,) = log.rows(
        "SELECT (SELECT count(*) FROM updates) + "
        "(SELECT count(*) FROM policy_versions WHERE requests_admitted IS NOT NULL) AS n"
    )
    return bool(row["n"])
