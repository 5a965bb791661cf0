"""The parser of a policy's text about a product: it gives a summary within its budget, or the reason for a refusal.

There are two kinds of text. A selector's `<v3><v7>` names values of the product by number. A value that would exceed
the budget is skipped and the next one tried, so values are always whole. Any other text is taken as one line and cut
after the last word that fits. The budget is counted in the tokens of the model that will read the summary, and is the
same for every arm of an experiment: only `fit_values` and `fit_text` fit a text into it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import msgspec

from search_env.environments import Rejected
from streams.descriptions import describe
from streams.events import Product
from streams.inputs.text import clean_text
from streams.pointers import read_pointers

Count = Callable[[str], int]
"""A function that counts a text's tokens for the reading model; `search_env.models.wordpieces` has MiniLM's."""

SEPARATOR = ", "
_WORD = re.compile(r"\w+")


class SummarySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The budget of one summary."""

    tokens_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=512),
        describe("Largest number of a summary's tokens, as the reading model counts them, without the title."),
    ] = 16
    bytes_max: Annotated[
        int,
        msgspec.Meta(ge=32, le=65_536),
        describe("Largest size of a summary's text, in bytes. A longer text is invalid before it is read."),
    ] = 4_096


class ParsedSummary(NamedTuple):
    """A summary for the index: its text (may be empty), its tokens, and the numbers of its values (free text: none).

    repeats: share of its words that occur earlier in it; 0 for fewer than two words. It shows keyword stuffing.
    """

    text: str
    tokens: int
    values: tuple[int, ...]
    repeats: float


def read_summary(text: str, product: Product, settings: SummarySettings, count: Count) -> ParsedSummary | Rejected:
    """Return the summary in a text, or the reason why there is none; never raises.

    An empty text is a valid, empty summary: the title then stands alone. A pointer to a value that the product lacks is
    invalid, because no prompt showed it.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > settings.bytes_max:
        return Rejected(f"expected at most {settings.bytes_max} bytes, got {size}")
    numbers = read_pointers(text)
    if not numbers:
        return fit_text(clean_text(text, characters_max=settings.bytes_max), settings, count)
    if strangers := [number for number in numbers if not 1 <= number <= len(product.values)]:
        return Rejected(f"expected pointers to one of {len(product.values)} values, got <v{strangers[0]}>")
    return fit_values(product, numbers, settings, count)


def fit_values(product: Product, numbers: Sequence[int], settings: SummarySettings, count: Count) -> ParsedSummary:
    """Return the summary of these values (numbers from 1), best first: each value that still fits, without repeats."""
    named: dict[str, int] = {}
    for number in numbers:
        named.setdefault(product.values[number - 1][1], number)
    said = list(named)
    if count(SEPARATOR.join(said)) > settings.tokens_max:  # A single count if all of them fit.
        said = []
        for value in named:
            if count(SEPARATOR.join([*said, value])) <= settings.tokens_max:
                said.append(value)
    return _summary(SEPARATOR.join(said), tuple(named[value] for value in said), count)


def fit_text(text: str, settings: SummarySettings, count: Count) -> ParsedSummary:
    """Return the longest beginning of the text, in whole words, that fits the budget, as a summary."""
    words = text.split()
    low, high = 0, min(len(words), settings.tokens_max)  # A word has at least one token.
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(words[:middle])) <= settings.tokens_max:
            low = middle
        else:
            high = middle - 1
    return _summary(" ".join(words[:low]), (), count)


def _summary(text: str, values: tuple[int, ...], count: Count) -> ParsedSummary:
    words = [word.lower() for word in _WORD.findall(text)]
    repeats = 1 - len(set(words)) / len(words) if len(words) > 1 else 0.0
    return ParsedSummary(text=text, tokens=count(text) if text else 0, values=values, repeats=repeats)
