"""A small part of `make fuzz`: whatever the bytes, a decoder decodes them or refuses them with its own error."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.fuzz.decoders import DECODERS
from tests.fuzz.dose import run
from tests.fuzz.inputs import MONSTERS

# Decoders that open a file of their own for each input take longer.
QUICK = {"codec", "resending", "record batches", "policy output"}


@pytest.mark.parametrize("name", DECODERS)
def test_no_input_crashes_a_decoder(name: str) -> None:
    count = 4000 if name in QUICK else 1000
    fates = run(name, count, seed=2)
    assert sum(fates.values()) == count
    assert len(fates) > 1, "all inputs came to the same: they are too good, or too bad, to say anything"


def test_the_known_monsters_are_among_every_dose() -> None:
    assert {None, b""} <= set(MONSTERS)
    assert max(len(value or b"") for value in MONSTERS) > 10_000_000


def test_every_function_that_opens_a_decoder_has_its_dose() -> None:
    source = Path(__file__).parents[1] / "fuzz" / "decoders.py"
    functions = {
        node.name
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and ast.unparse(node.returns or node) == "Decode"
        and len(node.args.args) == 1
    }
    assert functions == {decoder.opened.__name__ for decoder in DECODERS.values()}
