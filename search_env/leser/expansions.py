"""The parser of a policy's answer: it gives a list of expansions, or the reason why the text has none.

The format is `<think>…</think><answer>["…", "…"]</answer>`. The think block may be missing, the list may be empty (no
expansion), and no other text is allowed. A selector's `<v3><v1>` points to words that its prompt showed, by
their numbers from 1. Generated text is untrusted: its bytes, list length and terms are capped, and control, zero-width
and bidirectional characters are removed. Parsing never raises, whatever the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from search_env.catalogue.analysis import surface_tokens
from search_env.environments import Rejected
from streams.descriptions import describe
from streams.events import Context
from streams.inputs.text import clean_text
from streams.pointers import read_pointers

_FORMAT = re.compile(r"\s*(?:<think>(?P<thought>.*?)</think>)?\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL)
_TAGS = re.compile(r"</?(?:think|answer)>")
_decoder = msgspec.json.Decoder(list[str])


class ExpansionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The caps on one answer. An answer above a cap is invalid, so that the policy learns to respect it."""

    bytes_max: Annotated[int, msgspec.Meta(ge=32, le=65_536), describe("Largest size of the whole text, in bytes.")] = (
        4_096
    )
    expansions_max: Annotated[
        int, msgspec.Meta(ge=1, le=100), describe("Largest number of expansions in an answer.")
    ] = 16
    terms_max: Annotated[int, msgspec.Meta(ge=1, le=100), describe("Largest number of words in one expansion.")] = 6
    characters_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=1_000),
        describe("Largest length of one expansion. It also limits a word without spaces."),
    ] = 80


class ParsedExpansions(NamedTuple):
    """The expansions in their order, cleaned and without repeats, and the thought before them ("" if none)."""

    expansions: tuple[str, ...]
    thought: str = ""


def parse_expansions(
    text: str,
    settings: ExpansionSettings = ExpansionSettings(),  # noqa: B008
    choices: Sequence[str] | None = None,
) -> ParsedExpansions | Rejected:
    """Return the expansions in a text, or the reason why there are none; never raises.

    choices: the words to which a selector's pointers refer, in order; None for a policy that writes text.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > settings.bytes_max:
        return Rejected(f"expected at most {settings.bytes_max} bytes, got {size}")
    if choices is not None:
        return _select(text, settings, choices)
    found = _FORMAT.fullmatch(text)
    if found is None:
        return Rejected("expected <answer>[…]</answer>, with or without <think>…</think> before it, and nothing else")
    answer = found.group("answer")
    if _TAGS.search(answer) or _TAGS.search(found.group("thought") or ""):
        return Rejected("expected each of <think> and <answer> at most once")
    try:
        items = _decoder.decode(answer)
    except (msgspec.DecodeError, UnicodeError) as error:  # UnicodeError: a lone surrogate cannot become bytes.
        return Rejected(f"expected a JSON list of strings between <answer> and </answer>: {error}"[:200])
    expansions = _within_caps(items, settings)
    if isinstance(expansions, Rejected):
        return expansions
    thought = clean_text(found.group("thought") or "", characters_max=settings.bytes_max)
    return ParsedExpansions(expansions, thought)


def choices_of(context: Context) -> tuple[str, ...] | None:
    """Return a selector's choices in this context; None for a policy that writes text."""
    return None if context.choices is msgspec.UNSET else context.choices


def _select(text: str, settings: ExpansionSettings, choices: Sequence[str]) -> ParsedExpansions | Rejected:
    """Return the words to which a selector points; the caps reject words that its prompt should not have shown."""
    numbers = read_pointers(text)
    if numbers is None:
        return Rejected(
            f"expected pointers to the {len(choices)} words of the prompt, <v1> and so on, and nothing else"
        )
    if strangers := [number for number in numbers if not 1 <= number <= len(choices)]:
        return Rejected(f"expected pointers to one of {len(choices)} words, got <v{strangers[0]}>")
    expansions = _within_caps([choices[number - 1] for number in numbers], settings)
    return expansions if isinstance(expansions, Rejected) else ParsedExpansions(expansions)


def _within_caps(items: Sequence[str], settings: ExpansionSettings) -> tuple[str, ...] | Rejected:
    """Return the expansions, cleaned and without repeats, or the cap that the first bad one exceeds."""
    if len(items) > settings.expansions_max:
        return Rejected(f"expected at most {settings.expansions_max} expansions, got {len(items)}")
    expansions: dict[str, str] = {}
    for number, item in enumerate(items, start=1):
        if len(item) > 4 * settings.characters_max:
            return Rejected(
                f"expansion {number}: expected at most {settings.characters_max} characters, got {len(item)}"
            )
        expansion = clean_text(item, characters_max=4 * settings.characters_max)
        terms = len(surface_tokens(expansion))
        if len(expansion) > settings.characters_max:
            return Rejected(
                f"expansion {number}: expected at most {settings.characters_max} characters, got {len(expansion)}"
            )
        if not 1 <= terms <= settings.terms_max:
            return Rejected(f"expansion {number}: expected 1 to {settings.terms_max} words, got {terms}")
        expansions.setdefault(expansion.casefold(), expansion)
    return tuple(expansions.values())
