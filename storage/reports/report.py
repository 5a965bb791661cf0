"""A run's report, from its log alone: one value that can be printed, drawn or read by a script.

The same log always gives the same report. Numbers are rounded, because DuckDB adds them up in no fixed order and the
last bits may differ. Everything that has an order is sorted.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from storage.errors import StorageError
from storage.evaluation.tables import Evaluation
from storage.log import Log, open_log
from storage.monitor.alerts import Alert, alerts_of
from storage.monitor.edges import reach_of
from storage.monitor.ledger_figures import ledger_figures
from storage.monitor.limits import TimeShares, read_time_shares
from storage.monitor.rules import built_in_rules
from storage.reports.accounts import AccountRow, account_rows
from storage.reports.examples import ComparedAnswer, Example, read_comparisons, read_examples
from storage.reports.sums import Tell, read_sums
from storage.reports.updates import UpdateRow, lag_numbers, update_rows
from storage.reports.versions import DIGITS, Numbers, VersionRow

LETTERS = 20
MEMORY_MIB = 512  # With 1,024 a report of a million groups is no faster.
EVALUATIONS = "evaluation*.json"


class DevRow(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of a policy version on the dev queries, which train nothing. queries: how many there are."""

    lineage: str
    step: int
    measure: str
    value: float
    queries: int


class StoredPartition(msgspec.Struct, frozen=True, kw_only=True):
    """One partition as far as it is stored. gaps: offsets in between that hold no record."""

    topic: str
    partition: int
    next_offset: int
    records: int
    gaps: int
    undecodable: int


class LetterRow(msgspec.Struct, frozen=True, kw_only=True):
    """One record that a worker gave up on."""

    stage: str
    topic: str
    partition: int
    offset: int
    attempts: int
    error: str


class NamedEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The evaluation of one set of queries, as `measure --json` lists them."""

    name: str
    evaluation: Evaluation


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run's report. live: a sink is still working, and the report covers the archive as it was when read.

    residual: candidates that have no outcome at all, not even "waiting"; anything but 0 is a fault. alerts: rules that
    the run broke when its log ended. time: where the time between updates went. index: the newest index version.
    """

    run: str
    live: bool
    first_ms: int | None
    last_ms: int | None
    partitions: tuple[StoredPartition, ...]
    accounting: tuple[AccountRow, ...]
    versions: tuple[VersionRow, ...]
    updates: tuple[UpdateRow, ...]
    lag: Numbers
    dead_letters: Numbers
    letters: tuple[LetterRow, ...]
    examples: tuple[Example, ...]
    evaluations: dict[str, Evaluation]
    index: str = ""
    dev: tuple[DevRow, ...] = ()
    comparisons: tuple[ComparedAnswer, ...] = ()
    residual: int = 0
    alerts: tuple[Alert, ...] = ()
    time: TimeShares | None = None


def read_report(folder: Path, *, staleness_max: int = 0, tell: Tell = lambda _: None) -> Report:
    """Return the report of the run in this folder. Its sums are kept there; see `storage.reports.sums`.

    Evaluations are files `evaluation*.json` in the folder, as `searchloop evaluate --json` or `measure --json` prints
    them.
    staleness_max: the run's limit in versions, for the alert about it; 0 if it is not known.
    tell: is told why kept sums do not count.
    Raises StorageError if there is no log, or if the log or an evaluation cannot be read.
    """
    with open_log(folder, memory_mib=MEMORY_MIB) as log:
        times = log.rows("SELECT min(made_at_ms) AS first, max(made_at_ms) AS last FROM rewards WHERE made_at_ms > 0")[
            0
        ]
        sums = read_sums(log, folder, tell)
        accounting = account_rows(sums.accounts)
        dead_letters = {
            row["stage"]: row["n"]
            for row in log.rows("SELECT stage, count(*) AS n FROM dead_letter GROUP BY stage ORDER BY stage")
        }
        rules = built_in_rules()
        return Report(
            run=folder.name,
            live=log.live,
            first_ms=times["first"],
            last_ms=times["last"],
            partitions=_partitions(log),
            accounting=accounting,
            versions=tuple(each.row for each in sums.versions),
            updates=update_rows(log, sums.updates),
            lag=lag_numbers(log, sums.updates),
            dead_letters=dead_letters,
            letters=_letters(log),
            examples=read_examples(log, digits=DIGITS),
            evaluations=read_evaluations(folder),
            index=_index(log),
            dev=_dev(log),
            comparisons=read_comparisons(log, digits=DIGITS),
            residual=sum(row.candidates - row.scored - row.failed - row.expired - row.waiting for row in accounting),
            alerts=alerts_of(ledger_figures(log, staleness_max=staleness_max, reach=reach_of(rules)), rules),
            time=read_time_shares(log.rows),
        )


def read_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Return the evaluations in a run's folder by file name without suffix; a file of sets gives one for each set.

    Raises StorageError if a file is not one.
    """
    found: dict[str, Evaluation] = {}
    for path in sorted(folder.glob(EVALUATIONS)):
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=Evaluation | tuple[NamedEvaluation, ...])
            if isinstance(kept, Evaluation):
                found[path.stem] = kept
            else:
                found |= {f"{path.stem}: {each.name}": each.evaluation for each in kept}
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            raise StorageError(
                f"{path}: expected the output of `searchloop evaluate --json`, got something else ({error}); "
                "make it again, or move it away"
            ) from error
    return found


def to_json(report: Report) -> str:
    """Return the report as indented JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(report, order="sorted")).decode()


def _partitions(log: Log) -> tuple[StoredPartition, ...]:
    rows = log.rows(
        "SELECT topic, partition, next_offset, records, next_offset - first_offset - records AS gaps, undecodable "
        "FROM sink_offsets ORDER BY topic, partition"
    )
    return tuple(StoredPartition(**row) for row in rows)


def _index(log: Log) -> str:
    rows = log.rows("SELECT index FROM rewards ORDER BY record_time_ms DESC, record_offset DESC LIMIT 1")
    return str(rows[0]["index"] or "") if rows else ""


def _dev(log: Log) -> tuple[DevRow, ...]:
    """Return the dev scores of the newest set of dev queries; scores of other queries cannot be compared with them."""
    rows = log.rows(
        """
        WITH counted AS (
            SELECT *, coalesce(list_sum(list_transform(sets, lambda each: each.queries)), 0)::BIGINT AS queries,
                list_transform(sets, lambda each: (each.name, each.queries)) AS asked
            FROM first_dev_scores
        )
        SELECT lineage, step, measure, value, queries FROM counted
        WHERE (asked, measure) = (SELECT (asked, measure) FROM counted ORDER BY record_offset DESC LIMIT 1)
        ORDER BY step, lineage
        """
    )
    return tuple(DevRow(**row | {"value": round(row["value"], DIGITS)}) for row in rows)


def _letters(log: Log) -> tuple[LetterRow, ...]:
    rows = log.rows(
        'SELECT stage, source_topic AS topic, source_partition AS partition, source_offset AS "offset", attempts, '
        f"error FROM dead_letter ORDER BY source_topic, source_partition, source_offset, stage LIMIT {LETTERS}"
    )
    return tuple(LetterRow(**row) for row in rows)
