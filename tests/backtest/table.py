"""The tables of infra/ALERTS.md, from the code and the kept results: `python -m tests.backtest.table` writes them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from infra.experiments.markdown import with_table
from storage.monitor.figures import KINDS
from storage.monitor.rules import (
    AlertRule,
    ApartCondition,
    ChangeCondition,
    Condition,
    DriftCondition,
    ExplainedCondition,
    LimitCondition,
    RisingCondition,
    built_in_rules,
    direction_of,
)
from tests.backtest.faults import LIVE, TRAINING
from tests.backtest.score import Choice, CleanScore, Results

PAGE = Path(__file__).parents[2] / "infra" / "ALERTS.md"
RESULTS = Path(__file__).with_name("results.json")
JUDGED, CHOSEN = "judged on", "chosen on"


def kept_results() -> Results:
    """Return the results that are kept."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=Results)


def with_tables(page: str) -> str:
    """Return the page with all tables made anew."""
    results = kept_results()
    for name, table in (
        ("rules", rules_table(built_in_rules())),
        ("figures", figures_table()),
        ("backtest", backtest_table(results)),
        ("clean", clean_table(results)),
        ("faults", faults_list()),
        ("choices", choices_table(results.choices)),
    ):
        page = with_table(page, name, table + "\n")
    return page


def rules_table(rules: tuple[AlertRule, ...]) -> str:
    """Return a row for each built-in rule."""
    lines = ["| rule | severity | fires if | what to do |", "|---|---|---|---|"]
    for rule in rules:
        said = "; or ".join(condition_text(condition) for condition in rule.when.values())
        lasting = f"; for {rule.fire_seconds:g} s" if rule.fire_seconds else ""
        lines.append(f"| {rule.name} | {rule.severity} | {_cell(said)}{lasting} | {_cell(rule.hint)} |")
    return "\n".join(lines)


def condition_text(condition: Condition) -> str:
    """Return when a condition is broken, in one phrase."""
    newest = "the newest" if condition.newest == 1 else f"the newest {condition.newest}"
    figure = f"`{condition.value}`"
    match condition:
        case LimitCondition():
            side, limit = direction_of(condition)
            aggregate = "" if condition.newest == 1 else f"{condition.aggregate} of "
            return f"{aggregate}{newest} {figure} is {side} {limit:g}"
        case ChangeCondition(by="ratio"):
            side, limit = direction_of(condition)
            return f"mean of {newest} {figure} is {side} {limit:g} times the first {condition.first}"
        case ChangeCondition():
            side, limit = direction_of(condition)
            return f"mean of {newest} {figure} is more than {abs(limit):g} {side} the first {condition.first}"
        case RisingCondition():
            return f"mean of {newest} {figure} is above {condition.above:g}, and rises"
        case ApartCondition():
            return (
                f"{figure} rose by more than {condition.above:g} × `{condition.scale}`, while `{condition.beside}` is "
                "no better than at first"
            )
        case ExplainedCondition():
            return (
                f"{figure} rose by more than {condition.rise:g} × `{condition.scale}`, and `{condition.by}` explains "
                f"more than {condition.above:g} of it"
            )
        case DriftCondition():
            return f"{figure} of {newest} points has a PSI above {condition.above:g} to the first {condition.first}"


def figures_table() -> str:
    """Return a row for each figure."""
    lines = ["| figure | unit | meaning |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {kind.unit} | {_cell(kind.about)} |" for name, kind in KINDS.items())])


def backtest_table(results: Results) -> str:
    """Return a row for each fault, judged on seeds that chose nothing."""
    judged, chosen = results.sets[JUDGED], results.sets[CHOSEN]
    total, hits = (sum(getattr(score, field) for score in judged.faults.values()) for field in ("runs", "hits"))
    lines = [
        f"`{results.command}`, {results.date}. All faults: {hits} of {total} found ({hits / total:.1%}).",
        "",
        "| fault | found | on the other seeds | median time to detection | 95th percentile | versions (median) |",
        "|---|---|---|---|---|---|",
    ]
    for fault, score in judged.faults.items():
        other = chosen.faults[fault]
        steps = "" if fault in LIVE or score.steps is None else f"{score.steps:g}"
        lines.append(
            f"| {fault} | {score.hits} of {score.runs} | {other.hits} of {other.runs} | {_time(score.seconds)} | "
            f"{_time(score.seconds_p95)} | {steps} |"
        )
    return "\n".join(lines)


def clean_table(results: Results) -> str:
    """Return a row for each kind of clean runs and set of seeds."""
    lines = ["| seeds | clean runs | days | false alarms | a day | at most (95 %) |", "|---|---|---|---|---|---|"]
    for name, score in results.sets.items():
        for kind, clean in (("training", score.training), ("live", score.live)):
            lines.append(
                f"| {name} | {clean.runs} {kind} | {clean.days:g} | {_alarms(clean)} | {clean.a_day:g} | "
                f"{clean.bound:g} |"
            )
    return "\n".join(lines)


def choices_table(choices: list[Choice]) -> str:
    """Return a row for each candidate of a limit; the limit in force is bold."""
    rules = {rule.name: rule for rule in built_in_rules()}
    lines = ["| rule | limit | found | false alarms |", "|---|---|---|---|"]
    for each in choices:
        used = getattr(rules[each.rule].when[each.condition], each.field)
        limit = f"{each.field} {each.value:g}"
        shown = f"**{limit}**" if used == each.value else limit
        lines.append(
            f"| {each.rule} ({each.condition}) | {shown} | {each.hits} of {each.runs} | "
            f"{each.false_alarms} in {each.days:.1f} days |"
        )
    return "\n".join(lines)


def faults_list() -> str:
    """Return what each fault does, from its function's docstring."""
    functions = {name: found[0] for name, found in {**TRAINING, **LIVE}.items()}
    return "\n".join(f"- {name}: {(function.__doc__ or '').strip()}" for name, function in functions.items())


def _alarms(clean: CleanScore) -> str:
    named = ", ".join(f"{rule} {count}" for rule, count in clean.alarms.items())
    return f"{sum(clean.alarms.values())} ({named})" if named else "0"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
