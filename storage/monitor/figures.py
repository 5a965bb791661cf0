"""The figures that alert rules watch: their names, units and sources, and how a run's windows give them.

A figure is a row of points, oldest first. Some have one point for each policy version, others one for each update, hour
or look. Rules see only figures, so a rule neither knows nor cares whether a figure comes from the windows or by SQL
from the ledger (`storage.monitor.ledger_figures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from storage.monitor.stalls import RunState
from streams.stalls import stall_text

Unit = Literal["share", "number", "seconds", "versions", "counts"]


class Point(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One value of a figure.

    at_ms: the time from which it is known. weight: its share in a mean, such as a number of groups. lineage, step: the
    policy version that it is about; step -1 if it is about none. counts: the values of a figure that is a distribution.
    note: words for `{note}` in a rule's text.
    """

    value: float
    at_ms: int = 0
    weight: float = 1.0
    lineage: str = ""
    step: int = -1
    counts: dict[str, int] = {}
    note: str = ""


Figures = Mapping[str, Sequence[Point]]


class FigureKind(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a figure. about: its meaning, as the page about alerts says it.

    rows: the query for the rows behind points; {versions}, {from_ms} and {until_ms} stand for the points' own.
    """

    unit: Unit
    about: str
    rows: str


_OUTCOMES = "SELECT * FROM first_outcomes WHERE {versions}"
_TAKEN = (
    "SELECT g.*, r.query, r.lineage AS written_by_lineage, r.step AS written_by_step FROM group_lineage g "
    "JOIN first_rewards r USING (run, group_id) WHERE {written}"
)
_UPDATES = "SELECT * FROM counted_updates WHERE {versions}"
_CLICKS = "SELECT * FROM final_outcomes WHERE at_ms BETWEEN {from_ms} AND {until_ms} AND len(actions) > 0"

KINDS: dict[str, FigureKind] = {
    "flat_share": FigureKind(
        unit="share",
        about="Share of a version's groups whose rewards are all equal.",
        rows="SELECT * FROM group_rewards WHERE {versions} AND flat",
    ),
    "reward_mean": FigureKind(
        unit="number",
        about="Mean reward of a version's groups.",
        rows="SELECT * FROM group_rewards WHERE {versions} ORDER BY reward_mean DESC",
    ),
    "reward_std": FigureKind(
        unit="number",
        about="Mean spread of the rewards within a version's groups.",
        rows="SELECT * FROM group_rewards WHERE {versions} ORDER BY reward_std",
    ),
    "reward_peak": FigureKind(
        unit="number",
        about="Largest absolute reward of a version's candidates.",
        rows=f"{_OUTCOMES} ORDER BY abs(reward) DESC",
    ),
    "valid_share": FigureKind(
        unit="share",
        about="Share of a version's candidates that keep the format.",
        rows=f"{_OUTCOMES} AND status = 'scored' AND NOT valid",
    ),
    "unchanged_share": FigureKind(
        unit="share",
        about="Share of a version's candidates that leave the search unchanged.",
        rows="SELECT o.*, r.raw_hits FROM first_outcomes o "
        "JOIN first_rewards r USING (topic, partition, record_offset) "
        "WHERE {versions_of_o} AND o.valid AND o.status = 'scored' AND (o.summary = '' OR (o.summary IS NULL AND "
        "(len(o.expansions) = 0 OR [h.document_id for h in o.hits] = [h.document_id for h in r.raw_hits])))",
    ),
    "failed_share": FigureKind(
        unit="share",
        about="Share of a version's candidates that could not be scored.",
        rows=f"{_OUTCOMES} AND status = 'failed'",
    ),
    "repeat_share": FigureKind(
        unit="share",
        about="Share of the words of a version's answers that occur earlier in their own answer.",
        rows=f"{_OUTCOMES} AND status = 'scored' AND valid",
    ),
    "text_size": FigureKind(
        unit="number",
        about="Mean number of words in a version's valid answers.",
        rows=f"{_OUTCOMES} AND status = 'scored' AND valid ORDER BY len(text) DESC",
    ),
    "size_slope": FigureKind(
        unit="number",
        about="Reward that one more word goes with, within a version's groups (least squares).",
        rows=f"{_OUTCOMES} AND status = 'scored' AND valid ORDER BY group_id, len(text) DESC",
    ),
    "staleness_room": FigureKind(
        unit="versions",
        about="Staleness limit of the run minus the 95th percentile of a version's staleness. None below a limit of 2.",
        rows=_TAKEN,
    ),
    "expired_share": FigureKind(
        unit="share",
        about="Share of a version's groups that were too old to learn from.",
        rows=f"{_TAKEN} AND g.fate = 'expired'",
    ),
    "refused_share": FigureKind(
        unit="share",
        about="Share of an update's groups that were rejected or disputed, and of rewards that became dead letters.",
        rows="SELECT * FROM update_groups WHERE {versions} AND fate IN ('rejected', 'disputed')",
    ),
    "entropy": FigureKind(unit="number", about="Entropy of an update's tokens, in nats.", rows=_UPDATES),
    "lag_seconds": FigureKind(
        unit="seconds",
        about="Time from the writing of an update's oldest reward to the update.",
        rows=_UPDATES,
    ),
    "search_seconds": FigureKind(
        unit="seconds",
        about="99th percentile, over a minute, of the environment's time for one record: from the record's arrival or "
        "the record before it, whichever is later.",
        rows="SELECT * FROM first_rewards WHERE record_time_ms BETWEEN {from_ms} AND {until_ms}",
    ),
    "quiet_seconds": FigureKind(
        unit="seconds",
        about="Time since the newest generation, reward or update, inside of the log.",
        rows="SELECT 'update' AS event, topic, partition, record_offset, record_time_ms FROM updates "
        "WHERE record_time_ms BETWEEN {from_ms} AND {until_ms}",
    ),
    "stall_seconds": FigureKind(
        unit="seconds",
        about="Time without progress of a stalled run; 0 for any other. Known only while somebody looks.",
        rows="SELECT * FROM counted_updates ORDER BY record_offset DESC LIMIT 1",
    ),
    "dead_letter_share": FigureKind(
        unit="share",
        about="Dead letters beside groups and dead letters, of the whole run so far.",
        rows="SELECT * FROM dead_letter ORDER BY record_offset DESC",
    ),
    "residual": FigureKind(
        unit="number",
        about="Records, or candidates, that the ledger cannot account for.",
        rows="SELECT * FROM candidate_outcomes WHERE uses > 1",
    ),
    "dev_value": FigureKind(
        unit="number",
        about="A version's measure on the dev queries, such as nDCG@10.",
        rows="SELECT * FROM first_dev_scores WHERE {versions}",
    ),
    "click_ranks": FigureKind(
        unit="counts",
        about="Impressions of an hour with a click, by the rank of the first one (1 … 9, 10+).",
        rows=_CLICKS,
    ),
    "click_rate": FigureKind(
        unit="counts",
        about="Impressions of an hour with a click, and without one.",
        rows="SELECT * FROM final_outcomes WHERE at_ms BETWEEN {from_ms} AND {until_ms}",
    ),
    "client_share": FigureKind(
        unit="share",
        about="Largest share of one client in the clicks of the last 24 hours. Weight: the clicks.",
        rows="SELECT client, count(*) AS clicks FROM final_outcomes, unnest(actions) "
        "WHERE at_ms BETWEEN {until_ms} - 86400000 AND {until_ms} GROUP BY client ORDER BY clicks DESC",
    ),
}


class Line(Protocol):
    """The values of one policy version that its figures come from."""

    @property
    def lineage(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def reward_mean(self) -> float | None: ...
    @property
    def reward_std(self) -> float | None: ...
    @property
    def flat_share(self) -> float | None: ...
    @property
    def valid_share(self) -> float | None: ...
    @property
    def unchanged_share(self) -> float | None: ...
    @property
    def failed_share(self) -> float | None: ...
    @property
    def repeat_share(self) -> float | None: ...
    @property
    def taken(self) -> int: ...
    @property
    def expired(self) -> int: ...
    @property
    def staleness_p95(self) -> int | None: ...


_SHARES = (
    "flat_share",
    "reward_mean",
    "reward_std",
    "valid_share",
    "unchanged_share",
    "failed_share",
    "repeat_share",
)


def window_figures(
    lines: Sequence[Line], *, dead_letters: int, staleness_max: int, state: RunState | None = None, now_ms: int = 0
) -> dict[str, list[Point]]:
    """Return the figures that a run's windows give: its versions, oldest first, its dead letters and its state.

    The room to the staleness limit exists from a limit of 2 on: below that, a single step behind would use it up.
    """
    found: dict[str, list[Point]] = {}

    def add(name: str, line: Line, value: float | None, weight: float) -> None:
        if value is not None:
            point = Point(value=value, at_ms=now_ms, weight=weight, lineage=line.lineage, step=line.step)
            found.setdefault(name, []).append(point)

    for line in lines:
        for name in _SHARES:
            add(name, line, getattr(line, name), line.groups)
        if line.taken:
            add("expired_share", line, line.expired / line.taken, line.taken)
        if staleness_max >= 2 and line.staleness_p95 is not None:
            add("staleness_room", line, staleness_max - line.staleness_p95, line.groups)
    if records := sum(line.groups for line in lines) + dead_letters:
        note = f"{dead_letters} dead letters beside {records - dead_letters} groups"
        found["dead_letter_share"] = [Point(value=dead_letters / records, at_ms=now_ms, note=note)]
    if state is not None and state.state != "unknown":
        stalled = state.state == "stalled"
        said = stall_text(state.seconds, state.waiting_for) if stalled else state.says
        found["stall_seconds"] = [Point(value=state.seconds if stalled else 0.0, at_ms=now_ms, note=said)]
    return found


def rows_query(name: str, points: Sequence[Point]) -> str:
    """Return the query, for the run's ledger, of the exact rows behind these points of a figure."""
    from_ms, until_ms = min((p.at_ms for p in points), default=0), max((p.at_ms for p in points), default=0)
    named = sorted({(p.lineage, p.step) for p in points if p.step >= 0})
    versions = ", ".join(f"({_quoted(lineage)}, {step})" for lineage, step in named)
    only = f"IN ({versions})" if named else "IS NOT NULL"
    return KINDS[name].rows.format(
        versions=f"(lineage, step) {only}",
        versions_of_o=f"(o.lineage, o.step) {only}",
        written=f"(r.lineage, r.step) {only}",
        from_ms=from_ms,
        until_ms=until_ms,
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
