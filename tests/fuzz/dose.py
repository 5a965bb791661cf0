"""So many inputs into a decoder, and what became of them."""

from __future__ import annotations

from collections import Counter

from tests.fuzz.decoders import DECODERS, opened
from tests.fuzz.inputs import inputs


def run(name: str, count: int, *, seed: int) -> Counter[str]:
    """Put so many inputs through a decoder, and return what became of them.

    Raises AssertionError with the input that did something else.
    """
    fates: Counter[str] = Counter()
    with opened(name) as read:
        for number, value in enumerate(inputs(DECODERS[name].sound, count, seed=seed)):
            try:
                fates[read(value)] += 1
            except Exception as error:
                shown = value if value is None or len(value) < 400 else value[:400] + b"..."
                raise AssertionError(f"{name}, seed {seed}, input {number}: {error!r} for {shown!r}") from error
    return fates
