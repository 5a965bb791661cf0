"""The language of alert rules: TOML tables of a few known kinds, each layer checked, with errors that name the place.

    [rules.format]
    severity = "warning"
    hint = "What to do."

    [rules.format.when.low]
    kind = "limit"
    value = "valid_share"
    below = 0.95
    says = "{value} of the answers keep the format (limit {limit})"

A rule fires if one of its conditions holds. A user's file lies over the built-in one, table by table: it may change a
limit, switch a rule off, or add a rule. The language is closed: a condition is one of the structs below, and a text may
hold only the placeholders of `PLACEHOLDERS`. Nothing is evaluated.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from storage.monitor.figures import KINDS
from streams.errors import SettingsError

BUILT_IN = "the built-in rules"
PLACEHOLDERS = ("value", "first", "limit", "rest", "note", "newest")
FILE_BYTES_MAX = 1024 * 1024
_FORMS = re.compile(r"(\.[0-6][%fg])?")
_NAME = re.compile(r"[\w][\w .:-]{0,62}")

Many = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Direction = Literal["above", "below"]


class Watched(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all conditions have.

    value: the figure. newest: number of its newest points that are looked at. says: the sentence about a broken
    condition. clear_by: how far a value must come back beyond the limit before the rule recovers.
    """

    value: str
    says: str
    newest: Many = 5
    clear_by: NotNegative = 0.0


class LimitCondition(Watched, frozen=True, kw_only=True, tag="limit"):
    """An aggregate of the newest points is above, or below, a limit.

    needs: points, and weight_min: sum of their weights, below which there is no data.
    """

    above: float | None = None
    below: float | None = None
    aggregate: Literal["mean", "least", "most", "last"] = "mean"
    needs: Many = 1
    weight_min: NotNegative = 0.0


class ChangeCondition(Watched, frozen=True, kw_only=True, tag="change"):
    """The mean of the newest points differs from the mean of the first ones.

    by: "difference", or "ratio" of newest to first. first: number of first points. Newest points need points of their
    own: at least one that is not among the first.
    """

    by: Literal["difference", "ratio"]
    above: float | None = None
    below: float | None = None
    first: Many = 5


class RisingCondition(Watched, frozen=True, kw_only=True, tag="rising"):
    """The mean of the newest points is above a limit, and their later half is above their earlier half.

    rise: least growth from the earlier to the later half, as a share of the earlier.
    """

    above: float
    rise: NotNegative = 0.1


class ApartCondition(Watched, frozen=True, kw_only=True, tag="apart"):
    """A figure rose from its first points, while another that should rise with it did not.

    scale: the figure whose first points give the unit of `above`. beside: the other figure; its newest `beside_newest`
    points are compared with its first one, and `gain` is the gain up to which it counts as flat.
    """

    scale: str
    above: float
    beside: str
    gain: float = 0.0
    beside_newest: Many = 2
    first: Many = 5


class ExplainedCondition(Watched, frozen=True, kw_only=True, tag="explained"):
    """A figure rose, and another figure explains more than a share of the gain.

    by: the other figure. slope: the figure that says how much one unit of it is worth. above: the share. rise: least
    gain, in units of the first points of `scale`, from which the question is asked.
    """

    by: str
    slope: str
    scale: str
    above: float
    rise: NotNegative = 0.5
    first: Many = 5


class DriftCondition(Watched, frozen=True, kw_only=True, tag="drift"):
    """A distribution differs from the one of the first points, by its population stability index (PSI).

    What chance alone gives is subtracted from the index.
    first: number of first points. counts_min: entries that each side needs.
    """

    above: float
    first: Many = 24
    counts_min: Many = 500


Condition = LimitCondition | ChangeCondition | RisingCondition | ApartCondition | ExplainedCondition | DriftCondition
CONDITIONS: dict[str, type[Condition]] = {
    "limit": LimitCondition,
    "change": ChangeCondition,
    "rising": RisingCondition,
    "apart": ApartCondition,
    "explained": ExplainedCondition,
    "drift": DriftCondition,
}
_FIGURE_FIELDS = ("value", "beside", "scale", "by", "slope")


class AlertRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule. hint: what to do. when: its conditions by name; one that holds is enough.

    fire_seconds, clear_seconds: how long a condition must hold before the rule fires, and be clear before it recovers.
    """

    name: str
    hint: str
    when: dict[str, Condition]
    severity: Literal["warning", "critical"] = "warning"
    off: bool = False
    fire_seconds: Annotated[float, msgspec.Meta(ge=0, le=604_800)] = 0.0
    clear_seconds: Annotated[float, msgspec.Meta(ge=0, le=604_800)] = 0.0


def direction_of(condition: LimitCondition | ChangeCondition) -> tuple[Direction, float]:
    """Return on which side of which limit a condition is broken."""
    if condition.above is not None:
        return "above", condition.above
    assert condition.below is not None  # `_check` has refused the others.
    return "below", condition.below


def needed_figures(rules: Iterable[AlertRule]) -> frozenset[str]:
    """Return the names of the figures that rules look at."""
    conditions = (condition for rule in rules for condition in rule.when.values())
    named = {getattr(condition, field, None) for condition in conditions for field in _FIGURE_FIELDS}
    return frozenset(name for name in KINDS if name in named)


@cache
def built_in_rules() -> tuple[AlertRule, ...]:
    """Return the rules that come with searchloop."""
    return rules_from([(BUILT_IN, built_in_tables())])


def read_rules(path: Path | None = None) -> tuple[AlertRule, ...]:
    """Return the built-in rules with a user's file over them; without a file, the built-in rules.

    Raises SettingsError that names the file, the rule, the field, and what was expected and found.
    """
    if path is None:
        return built_in_rules()
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise SettingsError(f"{path}: expected at most {FILE_BYTES_MAX:,} bytes of alert rules, got a larger file")
        if not path.is_file():
            raise SettingsError(f"{path}: expected a TOML file of alert rules, got no regular file")
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path}: expected a TOML file of alert rules ({error.strerror}); check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: expected TOML, got: {error}") from error
    return rules_from([(BUILT_IN, built_in_tables()), (str(path), given)])


def rules_from(layers: list[tuple[str, Mapping[str, Any]]]) -> tuple[AlertRule, ...]:
    """Return the rules of (source, tables) layers, the last one on top, without the rules that are off.

    Raises SettingsError as `read_rules` does; the source is the layer that mentions the rule last.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        if extra := sorted(set(layer) - {"rules"}):
            raise SettingsError(f"{source}: {extra[0]}: unknown table; expected tables like [rules.NAME]")
        rules = layer.get("rules", {})
        for name, rule in _table(rules, source, "rules").items():
            where = f'rule "{name}"'
            if not _NAME.fullmatch(name):
                raise SettingsError(f"{source}: {where}: expected a name of letters, digits and blanks, at most 63")
            merged[name] = _over(merged.get(name, {}), _table(rule, source, where), source, where)
            sources[name] = source
    made = [_rule(name, rule, sources[name]) for name, rule in merged.items()]
    return tuple(rule for rule in made if not rule.off)


def built_in_tables() -> dict[str, Any]:
    """Return the tables of the built-in rules, as a layer for `rules_from`."""
    return tomllib.loads(resources.files("storage.monitor").joinpath("rules.toml").read_text(encoding="utf-8"))


def _over(below: Mapping[str, Any], above: dict[str, Any], source: str, where: str) -> dict[str, Any]:
    """Return a rule's table with another over it. A condition of another kind replaces the one below."""
    conditions = dict(below.get("when", {}))
    for name, condition in _table(above.get("when", {}), source, f"{where}, when").items():
        given = _table(condition, source, f"{where}, when.{name}")
        known = conditions.get(name, {})
        keep = known if given.get("kind", known.get("kind")) == known.get("kind") else {}
        # A limit on one side replaces the limit on the other.
        sides = {"above", "below"} if {"above", "below"} & set(given) else set()
        conditions[name] = {key: value for key, value in keep.items() if key not in sides} | given
    return {**below, **above, "when": conditions}


def _table(value: Any, source: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{source}: {where}: expected a table, got {value!r}")
    return value


def _rule(name: str, table: dict[str, Any], source: str) -> AlertRule:
    where = f'rule "{name}"'
    if "name" in table:
        raise SettingsError(f"{source}: {where}, name: unknown field; the name stands in [rules.NAME]")
    conditions = {each: _condition(given, source, where, each) for each, given in table["when"].items()}
    rule: AlertRule = _convert({**table, "name": name, "when": {}}, AlertRule, source, where, "")
    if not conditions and not rule.off:
        raise SettingsError(f"{source}: {where}, when: expected at least one condition, got none")
    return msgspec.structs.replace(rule, when=conditions)


def _condition(given: dict[str, Any], source: str, where: str, name: str) -> Condition:
    field = f"when.{name}."
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in CONDITIONS:
        raise SettingsError(f"{source}: {where}, {field}kind: expected one of {', '.join(CONDITIONS)}, got {kind!r}")
    made: Condition = _convert(given, CONDITIONS[kind], source, where, field)
    _check(made, source, where, field)
    return made


def _convert(table: dict[str, Any], kind: type[Any], source: str, where: str, field: str) -> Any:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        found = re.search(r" - at `\$\.?([^`]*)`", str(error))
        path = found.group(1) if found else ""
        reason = str(error)[: found.start()] if found else str(error)
        if missing := re.search(r"missing required field `([^`]*)`", reason):
            path, reason = missing.group(1), "expected a value, got none"
        elif unknown := re.search(r"unknown field `([^`]*)`", reason):
            fields = [each for each in kind.__struct_fields__ if each != "name"]
            path, reason = unknown.group(1), f"unknown field; expected one of {', '.join(fields)}"
        else:
            reason = f"{reason[0].lower()}{reason[1:]}, got {table.get(path)!r}"
        raise SettingsError(f"{source}: {where}, {field}{path}: {reason}") from None


def _check(condition: Condition, source: str, where: str, field: str) -> None:
    """Refuse what the types allow: unknown figures, no limit or two, and unknown placeholders."""
    if isinstance(condition, LimitCondition | ChangeCondition) and (condition.above is None) == (
        condition.below is None
    ):
        got = "neither" if condition.above is None else "both"
        raise SettingsError(f"{source}: {where}, {field}above: expected one of above and below, got {got}")
    for name in _FIGURE_FIELDS:
        figure = getattr(condition, name, None)
        if isinstance(condition, ChangeCondition) and name == "by":
            continue
        if figure is not None and figure not in KINDS:
            raise SettingsError(f"{source}: {where}, {field}{name}: expected one of {', '.join(KINDS)}, got {figure!r}")
    wanted = "counts" if isinstance(condition, DriftCondition) else "a number"
    if isinstance(condition, DriftCondition) != (KINDS[condition.value].unit == "counts"):
        raise SettingsError(f"{source}: {where}, {field}value: expected a figure of {wanted}, got {condition.value!r}")
    numbers = ("above", "below", "gain", "rise", "clear_by")
    for name in numbers:
        if (number := getattr(condition, name, None)) is not None and not abs(number) < 1e300:
            raise SettingsError(f"{source}: {where}, {field}{name}: expected a finite number, got {number!r}")
    try:
        parts = list(string.Formatter().parse(condition.says))
    except ValueError as error:
        raise SettingsError(
            f"{source}: {where}, {field}says: expected a text with placeholders, got: {error}"
        ) from None
    for _, placeholder, form, conversion in parts:
        if placeholder is None:
            continue
        if placeholder not in PLACEHOLDERS or conversion or not _FORMS.fullmatch(form or ""):
            known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
            raise SettingsError(
                f"{source}: {where}, {field}says: expected only {known}, each perhaps with a form like {{value:.0%}}, "
                f"got {{{placeholder}}}"
            )
