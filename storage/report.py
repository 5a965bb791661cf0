"""A run's report, from its log alone: one value that can be printed, drawn or read by a script.

The same log always gives the same report. Numbers are rounded, because DuckDB adds them up in no fixed order and the
last bits may differ. Everything that has an order is sorted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from storage.errors import StorageError
from storage.evaluation.tables import Evaluation
from storage.log import Log, open_log
from storage.monitor.alerts import Alert, alerts_of
from storage.monitor.edges import reach_of
from storage.monitor.ledger_figures import ledger_figures
from storage.monitor.limits import TimeShares, read_time_shares
from storage.monitor.rules import built_in_rules
from storage.report_examples import ComparedAnswer, read_comparisons

DIGITS = 6
EXAMPLES = 12
LETTERS = 20
EVALUATIONS = "evaluation*.json"

Numbers = dict[str, float]


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """The groups that one policy version wrote: one point of the reward curve.

    groups: rewarded groups. reward: mean over groups of the mean over candidates, with its standard error.
    best: mean over groups of the best candidate. valid, flat: shares of candidates and of groups.
    expansions: mean number per candidate. components: the mean of each part of the reward. spread: mean over groups of
    the standard deviation within each.
    """

    lineage: str
    step: int
    groups: int
    scored: int
    failed: int
    reward: float | None
    reward_error: float | None
    best: float | None
    valid: float | None
    flat: float | None
    expansions: float | None
    components: Numbers
    spread: float | None = None


class DevRow(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of a policy version on the dev queries, which train nothing. queries: how many there are."""

    lineage: str
    step: int
    measure: str
    value: float
    queries: int


class UpdateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step of the surviving lineage: the fates and the staleness of its groups, and its metrics."""

    lineage: str
    step: int
    trained: int
    flat: int
    expired: int
    failed: int
    lag_mean: float | None
    lag_max: int | None
    metrics: Numbers


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """Every candidate of one split by its outcome. uses_max: the most gradients that any of them gave (at most 1)."""

    split: str
    candidates: int
    scored: int
    failed: int
    expired: int
    waiting: int
    uses_max: int


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


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One query with the newest version's best candidate. found: documents that the raw query missed."""

    query: str
    expansions: tuple[str, ...]
    text: str
    reward: float
    found: int


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


def read_report(folder: Path, *, staleness_max: int = 0) -> Report:
    """Return the report of the run in this folder.

    Evaluations are files `evaluation*.json` in the folder, as `searchloop evaluate --json` or `measure --json` prints
    them.
    staleness_max: the run's limit in versions, for the alert about it; 0 if it is not known.
    Raises StorageError if there is no log, or if the log or an evaluation cannot be read.
    """
    with open_log(folder) as log:
        times = log.rows("SELECT min(made_at_ms) AS first, max(made_at_ms) AS last FROM rewards WHERE made_at_ms > 0")[
            0
        ]
        accounting = _accounting(log)
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
            versions=_versions(log),
            updates=_updates(log),
            lag=_lag(log),
            dead_letters=dead_letters,
            letters=_letters(log),
            examples=_examples(log),
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


def _accounting(log: Log) -> tuple[AccountRow, ...]:
    rows = log.rows(
        "SELECT split, candidates, scored, failed, expired, waiting, uses_max FROM accounting ORDER BY run, split"
    )
    return tuple(AccountRow(**row) for row in rows)


def _versions(log: Log) -> tuple[VersionRow, ...]:
    parts = log.rows(
        "SELECT lineage, step, part.key AS name, avg(part.value) AS mean FROM "
        "(SELECT lineage, step, unnest(map_entries(components)) AS part FROM first_outcomes WHERE status = 'scored') "
        "GROUP BY ALL ORDER BY ALL"
    )
    components: dict[tuple[str, int], Numbers] = {}
    for row in parts:
        components.setdefault((row["lineage"], row["step"]), {})[row["name"]] = round(row["mean"], DIGITS)
    return tuple(
        VersionRow(
            lineage=row["lineage"],
            step=row["step"],
            groups=row["groups"],
            scored=row["scored"],
            failed=row["failed"],
            reward=_rounded(row["reward_mean"]),
            reward_error=_rounded(row["reward_error"]),
            best=_rounded(row["reward_best"]),
            valid=_rounded(row["valid_share"]),
            flat=_rounded(row["flat_share"]),
            expansions=_rounded(row["expansions_mean"]),
            components=components.get((row["lineage"], row["step"]), {}),
            spread=_rounded(row["spread"]),
        )
        for row in log.rows(
            "SELECT * FROM reward_by_version JOIN (SELECT run, lineage, step, avg(reward_std) AS spread FROM "
            "group_rewards GROUP BY ALL) USING (run, lineage, step) ORDER BY run, step, lineage"
        )
    )


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


def _updates(log: Log) -> tuple[UpdateRow, ...]:
    rows = log.rows(
        """
        WITH lags AS (
            SELECT run, lineage, step, avg(lag_versions) AS lag_mean, max(lag_versions) AS lag_max
            FROM staleness GROUP BY run, lineage, step
        ), fates AS (
            SELECT run, lineage, step, count(*) FILTER (fate = 'trained') AS trained,
                count(*) FILTER (fate = 'flat') AS flat, count(*) FILTER (fate = 'expired') AS expired,
                count(*) FILTER (fate = 'failed') AS failed
            FROM surviving_groups GROUP BY run, lineage, step
        )
        SELECT lineage, step, coalesce(trained, 0) AS trained, coalesce(flat, 0) AS flat,
            coalesce(expired, 0) AS expired, coalesce(failed, 0) AS failed, lag_mean, lag_max, metrics
        FROM surviving_updates LEFT JOIN fates USING (run, lineage, step) LEFT JOIN lags USING (run, lineage, step)
        ORDER BY step, lineage
        """
    )
    return tuple(
        UpdateRow(
            **row
            | {
                "lag_mean": _rounded(row["lag_mean"]),
                "metrics": {name: _rounded(value) or 0.0 for name, value in sorted(row["metrics"].items())},
            }
        )
        for row in rows
    )


def _lag(log: Log) -> Numbers:
    (row,) = log.rows(
        "SELECT count(*) AS groups, median(lag_versions) AS p50, quantile_disc(lag_versions, 0.95) AS p95, "
        "max(lag_versions) AS max FROM staleness"
    )
    return {name: value for name, value in row.items() if value is not None}


def _letters(log: Log) -> tuple[LetterRow, ...]:
    rows = log.rows(
        'SELECT stage, source_topic AS topic, source_partition AS partition, source_offset AS "offset", attempts, '
        f"error FROM dead_letter ORDER BY source_topic, source_partition, source_offset, stage LIMIT {LETTERS}"
    )
    return tuple(LetterRow(**row) for row in rows)


def _examples(log: Log) -> tuple[Example, ...]:
    rows = log.rows(
        f"""
        WITH newest AS (SELECT max(step) AS step FROM first_outcomes),
        best AS (
            SELECT * FROM first_outcomes WHERE status = 'scored' AND step = (SELECT step FROM newest)
            QUALIFY row_number() OVER (PARTITION BY run, query_id ORDER BY reward DESC, group_id, candidate) = 1
        )
        SELECT b.query, b.expansions, coalesce(b.text, '') AS text, b.reward,
            len(list_filter(list_transform(b.hits, lambda hit: hit.document_id),
                lambda id: NOT list_contains(list_transform(r.raw_hits, lambda hit: hit.document_id), id))) AS found
        FROM best b JOIN first_rewards r USING (run, group_id)
        ORDER BY b.query_id LIMIT {EXAMPLES}
        """
    )
    return tuple(
        Example(**row | {"reward": round(row["reward"], DIGITS), "expansions": tuple(row["expansions"])})
        for row in rows
    )


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), DIGITS)
