"""The charts of a report: six that say how a run went, each with a line on how to read it, and one for each metric."""

from __future__ import annotations

from collections.abc import Sequence

from storage.charts import LINES_MAX, Panel, Series, chart, line_chart
from storage.pages import clean
from storage.reports.report import Report
from storage.reports.updates import UpdateRow
from storage.reports.versions import VersionRow
from storage.smoothing import finite

VERSION = "policy version (update)"
UPDATE = "update"
HALF = 118  # Pixels of each of two panels.
SCALE_MAX = 10.0  # A component this many times larger than the reward is a count, not a part of it.
# Measured beside the reward, not parts of it.
MEASURED = frozenset({"valid", "terms", "tokens", "kept_tokens", "values", "repeats"})
MEASURED_BEGIN = ("raw_", "union_")


def main_charts(report: Report) -> list[str]:
    """Return the six charts; one that has no data says why."""
    return [
        _progress(report),
        _spread(report.versions),
        _parts(report.versions),
        _validity(report.versions),
        _policy(report.updates),
        _staleness(report.updates),
    ]


def metric_charts(report: Report) -> list[str]:
    """Return a chart for each metric of the updates, by name, and for the number of expansions."""
    names = sorted({name for row in report.updates for name in row.metrics})
    lengths = _of_versions(report.versions, "expansions", "mean")
    return [line_chart("expansions per candidate", [lengths], x_label=VERSION)] + [
        line_chart(name, [_of_updates(report.updates, name, name)], x_label=UPDATE) for name in names
    ]


def reward_parts(versions: Sequence[VersionRow]) -> list[str]:
    """Return the components that are parts of the reward, the largest first.

    Left out are the known measurements beside it, and what is never on the reward's scale, such as counts.
    """
    rewards = [abs(row.reward) for row in versions if row.reward is not None]
    limit = SCALE_MAX * max([1.0, *rewards])
    largest: dict[str, float] = {}
    for row in versions:
        for name, value in row.components.items():
            if name not in MEASURED and not name.startswith(MEASURED_BEGIN):
                largest[name] = max(largest.get(name, 0.0), abs(value))
    return sorted((name for name, value in largest.items() if value <= limit), key=lambda name: (-largest[name], name))


def _progress(report: Report) -> str:
    title = "Does search get better?"
    reward = Panel(
        series=(_of_versions(report.versions, "reward", "reward", errors="reward_error"),),
        label="Reward of the training queries (band: ± 1 standard error)",
        height=HALF,
    )
    if not report.dev:
        return _chart(
            title,
            [Panel(series=reward.series, label=reward.label)],
            VERSION,
            "This run measured no dev queries (the setting [dev] every does), so only the reward is shown. It can rise "
            "without better search.",
        )
    measure, queries = report.dev[-1].measure, report.dev[-1].queries
    points = finite([(float(row.step), row.value) for row in report.dev])
    dev = Panel(
        series=(Series(name=measure, points=points),),
        label=f"{measure} of {queries:,} dev queries, which train nothing",
        height=HALF,
    )
    return _chart(
        title,
        [dev, reward],
        VERSION,
        "Both should rise. If only the reward rises, the policy exploits the reward.",
    )


def _spread(versions: Sequence[VersionRow]) -> str:
    mean = _of_versions(versions, "reward", "mean", errors="spread")
    return _chart(
        "Reward, and its spread within groups",
        [Panel(series=(mean, _of_versions(versions, "best", "best of group")), label="Reward")],
        VERSION,
        "The band is ± 1 standard deviation within a group. Where it closes, all candidates are rewarded alike and "
        "teach nothing.",
    )


def _parts(versions: Sequence[VersionRow]) -> str:
    names = reward_parts(versions)
    series = tuple(
        Series(
            name=name,
            points=finite([(float(row.step), row.components[name]) for row in versions if name in row.components]),
        )
        for name in names[:LINES_MAX]
    )
    more = f" {len(names) - LINES_MAX} smaller parts are left out." if len(names) > LINES_MAX else ""
    return _chart(
        "Parts of the reward",
        [Panel(series=series, label="Mean of each part, before its weight")],
        VERSION,
        f"Shows what the policy is rewarded for. A part that alone grows may be the one it exploits.{more}",
    )


def _validity(versions: Sequence[VersionRow]) -> str:
    lines = (_of_versions(versions, "valid", "valid"), _of_versions(versions, "flat", "flat"))
    return _chart(
        "Valid answers, and groups that teach nothing",
        [Panel(series=lines, label="Share of candidates, share of groups", percent=True)],
        VERSION,
        "Valid answers belong near 100%. A flat group, with equal rewards, gives no gradient: the fewer the better.",
    )


def _policy(updates: Sequence[UpdateRow]) -> str:
    reference = any(row.metrics.get("kl_reference") for row in updates)
    name = "kl_reference" if reference else "kl_behaviour"
    what = "the reference policy" if reference else "the policy that wrote the texts"
    return _chart(
        "Entropy, and how far the policy moves",
        [
            Panel(series=(_of_updates(updates, "entropy", "entropy"),), label="Entropy, nats per token", height=HALF),
            Panel(series=(_of_updates(updates, name, "KL"),), label=f"KL from {what}, nats per token", height=HALF),
        ],
        UPDATE,
        "Entropy should fall slowly: at 0 the policy tries nothing new. A jump in KL is a step that was too large.",
    )


def _staleness(updates: Sequence[UpdateRow]) -> str:
    kept = [row for row in updates if row.lag_mean is not None]
    mean = finite([(float(row.step), row.lag_mean) for row in kept])
    largest = finite([(float(row.step), None if row.lag_max is None else float(row.lag_max)) for row in kept])
    return _chart(
        "Staleness of what the updates learned from",
        [Panel(series=(Series(name="mean", points=mean), Series(name="largest", points=largest)), label="Versions")],
        UPDATE,
        "How many versions older the texts were than the policy that learned from them. 0 is on-policy.",
    )


def _chart(title: str, panels: Sequence[Panel], x_label: str, how: str) -> str:
    drawn = chart(title, panels, x_label=x_label, how=how)
    return drawn or (
        f'<figure class="chart"><figcaption><h3>{clean(title)}</h3></figcaption>'
        '<p class="empty quiet">The log has nothing to draw here yet.</p></figure>'
    )


def _of_versions(rows: Sequence[VersionRow], field: str, name: str, *, errors: str = "") -> Series:
    kept = [row for row in rows if getattr(row, field) is not None]
    return Series(
        name=name,
        points=tuple((float(row.step), getattr(row, field)) for row in kept),
        errors=tuple(getattr(row, errors) or 0.0 for row in kept) if errors else (),
    )


def _of_updates(rows: Sequence[UpdateRow], metric: str, name: str) -> Series:
    return Series(name=name, points=finite([(float(row.step), row.metrics.get(metric)) for row in rows]))
