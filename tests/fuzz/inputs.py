"""Damaged inputs, made from sound ones: the same sequence for the same seed."""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from streams.codec import RECORD_BYTES_MAX

ODD: list[Any] = [
    None, True, 0, -1, 2**63, 2**64, 10**400, 1e308, -0.0, "", "\x00", "\ud800", "\U0010ffff", "../../etc/passwd",
    [], [[]], {}, {"event": 1}, "request/1", "reward/9", [None] * 50, "x" * 5000, {"": {"": {}}},
    float("nan"), float("-inf"),
]  # fmt: skip
MONSTERS: list[bytes | None] = [
    None, b"", b"\x00", b"{", b"[]", b"null", b"NaN", b"\xff\xfe", b"{}" * 2, b'{"event":NaN}',
    b'{"event":"request/1"}', b"\x1f\x8b", gzip.compress(b"{}\n" * 5)[:-9], b"\x1f\x8b" + b"\x00" * 40,
    b"[" * 200_000, b'{"event":' * 50_000, b'"' + b"a" * (RECORD_BYTES_MAX + 1) + b'"', b'{"a":1e999}',
    b'{"x":"' + b"b" * 10_000_000 + b'"}', b"\n" * 1000, b"a b c d e f\n" * 3, b"," * 10_000,
]  # fmt: skip
NUMBERS = [b"NaN", b"-Infinity", b"1e999", b"0x1", b".", b"-1", b"9" * 400, b"1_0"]
COLUMNS = [b"", b"-1", b"9" * 5000, b"NaN", b"\xff", b"\x00", b'"', b"x" * 3000, b"\xed\xa0\x80", b"1e9"]
TEXTS = [b'":"\\ud800', b'":"\\u0000', b'":"\xc3', b'":"\x1b[31m', b'": "\\ud800\\u0000']


def inputs(seeds: Sequence[bytes], count: int, *, seed: int) -> Iterator[bytes | None]:
    """Yield so many inputs: first the known monsters, then damage done to sound ones. None is no input at all."""
    chance = random.Random(seed)
    for number in range(count):
        yield MONSTERS[number] if number < len(MONSTERS) else _damaged(chance.choice(seeds), chance)


def _damaged(sound: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(6)
    if kind == 0:  # Single bytes.
        damaged = bytearray(sound)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        return bytes(damaged)
    if kind == 1:  # Cut off, or something in between.
        place = chance.randrange(len(sound))
        return sound[:place] + chance.randbytes(chance.randrange(20)) + sound[place + chance.randrange(200) :]
    if kind == 2:  # Not JSON's numbers and text.
        at = chance.choice([b"0.", b"1", b"0", b"2"])
        return sound.replace(at, chance.choice(NUMBERS), 1).replace(b'":"', chance.choice(TEXTS), 1)
    lines = sound.split(b"\n")
    place = chance.choice([number for number, line in enumerate(lines) if line] or [0])
    if kind == 3:  # Deep.
        depth = chance.randrange(5_000)
        lines[place] = lines[place][:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"
    elif kind == 4:  # Lines that stand twice, are missing, or hold too much.
        lines[place : place + 1] = chance.choice([[], [lines[place]] * 2, [lines[place] + b" " + lines[place]]])
    else:
        lines[place] = _other_values(lines[place], chance)
    return b"\n".join(lines)


def _other_values(line: bytes, chance: random.Random) -> bytes:
    """Put values of another kind into a line: of JSON, or of columns."""
    try:
        event = json.loads(line)
        if not isinstance(event, dict):
            raise ValueError
    except (ValueError, RecursionError):
        gap = b"," if b"," in line else b"\t" if b"\t" in line else b" "
        columns = line.split(gap)
        columns[chance.randrange(len(columns))] = chance.choice(COLUMNS)
        return gap.join(columns)
    for _ in range(chance.randint(1, 3)):
        _replace_one(event, chance)
    return json.dumps(event).encode()


def _replace_one(value: Any, chance: random.Random) -> None:
    """Go down at random, and put something odd where the way ends."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = chance.choice(keys)
        child = value[key]
        if isinstance(child, dict | list) and child and chance.random() < 0.8:
            value = child
            continue
        if isinstance(value, dict) and chance.random() < 0.2:
            del value[key]
        else:
            value[key] = copy.deepcopy(chance.choice(ODD))
        return
