"""Alert rules as data: what a file may say, what its errors name, and how a user's file lies over the built-in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.monitor.alerts import alerts_of
from storage.monitor.figures import KINDS, Point
from storage.monitor.rules import BUILT_IN, AlertRule, LimitCondition, built_in_rules, read_rules
from streams.errors import SettingsError

OWN = """
[rules.{name}]
hint = "Look."

[rules.{name}.when.one]
kind = "limit"
value = "valid_share"
below = 0.5
says = "only {{value:.0%}}"
"""
RELIABILITY = {
    "reward hacking", "dead groups", "no-op collapse", "entropy", "format", "staleness", "drops", "lag", "search",
    "failed outcomes", "dead letters", "accounting", "feedback drift", "click fraud", "poisoned rewards", "stall",
}  # fmt: skip


def weighing(weight: float, *values: float) -> list[Point]:
    return [Point(value=value, step=step, weight=weight) for step, value in enumerate(values)]


def rules_of(path: Path, text: str) -> dict[str, AlertRule]:
    path.write_text(text)
    return {rule.name: rule for rule in read_rules(path)}


def row(*values: float) -> list[Point]:
    return [Point(value=value, step=step) for step, value in enumerate(values)]


def test_every_fault_that_reliability_names_has_a_built_in_rule_with_a_hint() -> None:
    rules = {rule.name: rule for rule in built_in_rules()}
    assert set(rules) >= RELIABILITY
    assert all(rule.hint and rule.when for rule in rules.values())


def test_a_users_file_changes_a_limit_switches_off_and_adds(tmp_path: Path) -> None:
    text = OWN.format(name="mine") + "[rules.format.when.low]\nbelow = 0.9\n[rules.entropy]\noff = true\n"
    rules = rules_of(tmp_path / "mine.toml", text)
    low = rules["format"].when["low"]
    assert isinstance(low, LimitCondition)
    assert (low.below, low.value, rules["format"].severity) == (0.9, "valid_share", "critical")
    assert "fell" in rules["format"].when
    assert "entropy" not in rules
    found = alerts_of({"valid_share": row(0.4)}, [rules["mine"]])
    assert [(alert.name, alert.what) for alert in found] == [("mine", "only 40%")]
    assert "entropy" in {rule.name for rule in built_in_rules()}


def test_a_limit_on_the_other_side_replaces_the_one_below(tmp_path: Path) -> None:
    rules = rules_of(tmp_path / "mine.toml", "[rules.format.when.low]\nabove = 0.99\n")
    low = rules["format"].when["low"]
    assert isinstance(low, LimitCondition)
    assert (low.above, low.below) == (0.99, None)


def test_a_condition_of_another_kind_replaces_the_whole_condition(tmp_path: Path) -> None:
    text = (
        '[rules.entropy.when.fell]\nkind = "limit"\nvalue = "entropy"\nbelow = 0.2\nsays = "{value}"\n'
        "[rules.entropy]\nclear_seconds = 60\n"
    )
    rule = rules_of(tmp_path / "mine.toml", text)["entropy"]
    assert isinstance(rule.when["fell"], LimitCondition)
    assert rule.clear_seconds == 60


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[rules.x", "expected TOML, got:"),
        ("rules = 3", "rules: expected a table, got 3"),
        ("[other]\n", "other: unknown table; expected tables like [rules.NAME]"),
        ("[rules]\nx = 1", 'rule "x": expected a table, got 1'),
        ("[rules.'<script>']", 'rule "<script>": expected a name of letters'),
        ("[rules.x]\nhint = 'a'", 'rule "x", when: expected at least one condition, got none'),
        ("[rules.x.when.a]", 'rule "x", when.a.kind: expected one of limit, change, rising'),
        (
            OWN.format(name="x").replace('"limit"', '"eval"'),
            "when.one.kind: expected one of limit, change, rising, apart, explained, drift, got 'eval'",
        ),
        (OWN.format(name="x") + "above = 1.0", "when.one.above: expected one of above and below, got both"),
        (
            OWN.format(name="x").replace("below = 0.5", ""),
            "when.one.above: expected one of above and below, got neithe",
        ),
        (OWN.format(name="x").replace("0.5", "'low'"), "when.one.below: expected `float | null`, got `str`, got 'low'"),
        (OWN.format(name="x").replace("0.5", "nan"), "when.one.below: expected a finite number, got nan"),
        (OWN.format(name="x").replace("valid_share", "money"), f"when.one.value: expected one of {', '.join(KINDS)}"),
        (OWN.format(name="x").replace("valid_share", "click_ranks"), "when.one.value: expected a figure of a number"),
        (OWN.format(name="x") + "limit = 3", "when.one.limit: unknown field; expected one of value, says, newest"),
        (OWN.format(name="x") + "newest = 0", "when.one.newest: expected `int` >= 1, got 0"),
        (OWN.format(name="x").replace("says", "#"), "when.one.says: expected a value, got none"),
        (OWN.format(name="x").replace("{value:.0%}", "{value.__class__}"), "got {value.__class__}"),
        (OWN.format(name="x").replace("{value:.0%}", "{value!r}"), "when.one.says: expected only {value}, {first}"),
        (OWN.format(name="x").replace("{value:.0%}", "{value:{limit}}"), "when.one.says: expected only {value}"),
        (OWN.format(name="x").replace("{value:.0%}", "{value"), "when.one.says: expected a text with placeholders"),
        (OWN.format(name="x").replace('hint = "Look."', ""), 'rule "x", hint: expected a value, got none'),
        (OWN.format(name="x").replace('"Look."', '"a"\nseverity = "odd"'), "severity: invalid enum value 'odd'"),
        (
            OWN.format(name="x").replace('"Look."', '"a"\nname = "y"'),
            "name: unknown field; the name stands in [rules.N",
        ),
        ("[rules.format]\nclear_seconds = -1", 'rule "format", clear_seconds: expected `float` >= 0.0, got -1'),
    ],
)
def test_a_wrong_rule_is_refused_with_file_rule_and_field(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        read_rules(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert says in str(refused.value)
    assert BUILT_IN not in str(refused.value)


def test_a_missing_a_binary_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: expected a TOML file of alert rules"):
        read_rules(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="got no regular file"):
        read_rules(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="expected TOML, got"):
        read_rules(tmp_path / "binary")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2 * 1024 * 1024)
    with pytest.raises(SettingsError, match="at most 1,048,576 bytes"):
        read_rules(tmp_path / "huge")


def names(**figures: list[Point]) -> list[str]:
    return [alert.name for alert in alerts_of(figures, built_in_rules())]


@pytest.mark.parametrize(
    ("name", "fine", "broken"),
    [
        ("entropy", {"entropy": row(*[2.0] * 5, *[0.8] * 5)}, {"entropy": row(*[2.0] * 5, *[0.79] * 5)}),
        ("lag", {"lag_seconds": row(*range(30, 70, 2))}, {"lag_seconds": row(*range(10, 210, 10))}),
        ("lag", {"lag_seconds": row(*range(60, 80))}, {"lag_seconds": row(*range(60, 460, 20))}),
        ("search", {"search_seconds": row(9, 9, 2, 9, 9)}, {"search_seconds": row(1, 3, 3, 3, 2.1)}),
        (
            "poisoned rewards",
            {"refused_share": weighing(16, *[0] * 19, 0.2)},
            {"refused_share": weighing(16, *[0] * 19, 0.21)},
        ),
        (
            "poisoned rewards",
            {"reward_peak": row(*[1.0] * 5, 10.0)},
            {"reward_peak": row(*[1.0] * 5, 10.1)},
        ),
        ("accounting", {"residual": row(0)}, {"residual": row(1)}),
        (
            "reward hacking",
            {"reward_mean": row(*[0.0] * 5, *[1.0] * 5), "reward_std": row(1.0), "dev_value": row(0.3, 0.3, 0.3)},
            {"reward_mean": row(*[0.0] * 5, *[1.01] * 5), "reward_std": row(1.0), "dev_value": row(0.3, 0.3, 0.3)},
        ),
        (
            "reward hacking",
            {"reward_mean": row(*[0.0] * 5, *[5.0] * 5), "reward_std": row(1.0), "dev_value": row(0.3, 0.31, 0.3)},
            {"reward_mean": row(*[0.0] * 5, *[5.0] * 5), "reward_std": row(1.0), "dev_value": row(0.3, 0.31, 0.28)},
        ),
        (
            "reward hacking",
            {
                "reward_mean": row(*[0.0] * 10, *[1.0] * 10), "reward_std": row(1.0), "size_slope": row(0.05),
                "text_size": row(*[10.0] * 10, *[20.0] * 10),
            },
            {
                "reward_mean": row(*[0.0] * 10, *[1.0] * 10), "reward_std": row(1.0), "size_slope": row(0.051),
                "text_size": row(*[10.0] * 10, *[20.0] * 10),
            },
        ),
    ],
)  # fmt: skip
def test_a_rule_warns_beyond_its_limit_and_not_before(
    name: str, fine: dict[str, list[Point]], broken: dict[str, list[Point]]
) -> None:
    assert names(**fine) == []
    assert names(**broken) == [name]


def test_a_lag_that_is_long_and_rises_no_more_does_not_fire() -> None:
    assert names(lag_seconds=row(*[100.0] * 20)) == []


def clicks(hours: int, counts: dict[str, int]) -> list[Point]:
    return [Point(value=0.5, counts=counts)] * hours


def test_feedback_drifts_when_clicks_move_to_other_ranks_and_not_with_their_number() -> None:
    before = clicks(24, {"1": 25, "2": 15})
    assert names(click_ranks=before + clicks(24, {"1": 2, "2": 1})) == []
    assert names(click_ranks=before + clicks(24, {"1": 250, "2": 150})) == []
    assert names(click_ranks=before + clicks(24, {"1": 15, "2": 25})) == ["feedback drift"]
    before = clicks(24, {"none": 60, "any": 40})
    assert names(click_rate=before + clicks(24, {"none": 600, "any": 400})) == []
    assert names(click_rate=before + clicks(24, {"none": 90, "any": 10})) == ["feedback drift"]


def test_one_client_counts_only_beside_enough_clicks() -> None:
    few, many = (Point(value=0.2, weight=weight) for weight in (399, 400))
    assert names(client_share=[few]) == []
    assert names(client_share=[many]) == ["click fraud"]
