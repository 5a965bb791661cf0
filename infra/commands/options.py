"""Options of verbs: several as one struct, and clear errors for options that do not apply together."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, NoReturn

import click
import msgspec
from click.core import ParameterSource

from infra.app.renamed import arm_name


class NumberRange(click.FloatRange):
    """A range of numbers that NaN, which is neither too small nor too large, is no part of."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; a UsageError says what the range is."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{found} is not in the range {self._describe_range()}.", param, ctx)
        return found


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def as_one(name: str, kind: type[msgspec.Struct], *options: Decorator) -> Decorator:
    """Return a decorator that adds the options to a verb; the verb gets their values as one struct called `name`.

    options: `click.option` calls, whose parameters are named like the struct's fields.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_struct(*arguments: Any, **others: Any) -> Any:
            values = {field: others.pop(field) for field in kind.__struct_fields__}
            return command(*arguments, **{name: kind(**values)}, **others)

        decorated: Callable[..., Any] = with_struct
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def fields(kind: type[msgspec.Struct], *, without: Collection[str] = ()) -> list[str]:
    """Return the parameters of the options that make this struct, to name them in `need` and `exclude`."""
    return [field for field in kind.__struct_fields__ if field not in without]


def need(context: click.Context, parameters: Collection[str], needed: str, *, got: str = "none") -> None:
    """Refuse the first of these options that the user gave, because `needed` is missing.

    got: what the command line says instead of `needed`. Raises UsageError.
    """
    for option in _given(context, parameters):
        _refuse(context, f"{option}: expected {needed} with it, got {got}. Add {needed}, or leave {option} out")


def exclude(context: click.Context, parameters: Collection[str], other: str) -> None:
    """Refuse the first of these options that the user gave, because they do not apply to `other`.

    Raises UsageError.
    """
    for option in _given(context, parameters):
        _refuse(context, f"{option}: expected a command without {other}, got both. Leave one of the two out")


def _given(context: click.Context, parameters: Collection[str]) -> list[str]:
    """Return those options that stand on the command line, as the user writes them."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in parameters
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]


def _refuse(context: click.Context, text: str) -> NoReturn:
    raise click.UsageError(text, context)


class ArmChoice(click.Choice[str]):
    """A choice among names of arms that also takes their old names."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the new name of an arm."""
        return super().convert(arm_name(value), param, ctx)
