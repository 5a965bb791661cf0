"""Events survive the trip bit for bit, and nothing that is not an event gets through."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.codec import RECORD_BYTES_MAX, decode, decode_window, encode_event
from streams.errors import EventError, SettingsError
from streams.events import Completion, Context, Generation, PolicyRef, Position, Request, Sampling
from streams.ids import candidate_id, group_id, group_seed
from streams.topics import DERIVED, TOPICS, topic_name

GOLDEN = Path(__file__).parents[1] / "golden" / "events"


def tag_of(event: type[msgspec.Struct]) -> str:
    """Return an event's name as its golden file bears it."""
    return str(event.__struct_config__.tag).replace("/", "-")


DERIVED_TAGS = {tag_of(event) for topic in DERIVED for event in topic.events}


def generation(logprob: float = -0.1, text: str = "x") -> Generation:
    return Generation(
        group_id="g",
        request=Request(request_id="r", run="run", query_id="q", query="red shoe", index="shop-1", context=Context()),
        source=Position(topic="run.requests", partition=0, offset=3),
        policy=PolicyRef(lineage="1-abc", step=4, sha256="0" * 64),
        tokenizer_sha256="1" * 64,
        prompt_sha256="2" * 64,
        sampling=Sampling(candidates=1, temperature=0.9, tokens_max=4),
        prompt_token_ids=(1, 2),
        completions=(Completion(text=text, token_ids=(5,), logprobs=(logprob,), finish="stop"),),
    )


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(st.characters(exclude_categories=["Cs"])))
def test_floats_and_text_survive_bit_for_bit(logprob: float, text: str) -> None:
    event = generation(logprob, text)
    again = decode(encode_event(event))
    assert again == event
    assert encode_event(again) == encode_event(event)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_never_reaches_the_log(number: float) -> None:
    with pytest.raises(EventError, match=r"completions\[0\].logprobs\[0\].*finite"):
        encode_event(generation(number))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\x00",
        b"{",
        b"[]",
        b"null",
        b"NaN",
        b"\xff\xfe",
        b'{"event":"request/1"}',
        b'{"event":"request/99","request_id":"a"}',
        b'{"event":"request/1","request_id":1,"run":"r","query_id":"q","query":"x","index":"i"}',
        b'{"event":"request/1","request_id":"\\ud800","run":"r","query_id":"q","query":"x","index":7}',
        b"[" * 200_000,
        b'{"event":' * 50_000,
        b'"' + b"a" * (RECORD_BYTES_MAX + 1) + b'"',
    ],
    ids=lambda value: repr(value[:30]) if value else repr(value),
)
def test_what_is_no_event_is_an_event_error(value: bytes | None) -> None:
    with pytest.raises(EventError):
        decode(value)


def test_random_damage_to_an_event_gives_an_event_or_an_event_error() -> None:
    random.seed(1)
    good = encode_event(generation())
    for _ in range(5000):
        damaged = bytearray(good)
        for _ in range(random.randint(1, 5)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        try:
            decode(bytes(damaged))
        except EventError as error:
            assert str(error)


def test_unknown_fields_are_ignored_and_missing_new_ones_get_their_defaults() -> None:
    fields = json.loads(encode_event(generation()))
    fields["a_field_of_tomorrow"] = {"deep": [1]}
    del fields["made_at_ms"]
    assert decode(json.dumps(fields).encode()) == generation()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_the_bytes_of_every_past_version_can_still_be_read(path: Path) -> None:
    value = path.read_bytes()
    derived = path.stem.startswith(tuple(tag.rpartition("-")[0] for tag in DERIVED_TAGS))
    assert encode_event(decode_window(value) if derived else decode(value)) == value


def test_there_is_a_golden_record_for_every_event() -> None:
    tags = {tag_of(topic.event) for topic in TOPICS}
    assert {path.stem for path in GOLDEN.glob("*.json")} >= tags | DERIVED_TAGS


def test_ids_depend_on_the_place_in_the_log_and_on_nothing_else() -> None:
    here = Position(topic="a.requests", partition=0, offset=7)
    assert group_id("a", here) == group_id("a", Position(topic="a.requests", partition=0, offset=7))
    others = {
        group_id("b", here),
        group_id("a", Position(topic="a.requests", partition=1, offset=7)),
        group_id("a", Position(topic="a.requests", partition=0, offset=8)),
    }
    assert len(others | {group_id("a", here)}) == 4
    assert candidate_id("g", 2) == "g:2"
    assert 0 <= group_seed("g", 1) < 2**63
    assert group_seed("g", 1) != group_seed("g", 2)


@pytest.mark.parametrize("name", ["", "Über", "a b", "-a", "a/b", "a" * 64, "a.b"])
def test_a_run_whose_name_could_not_be_a_topic_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="run: expected"):
        topic_name(name, "requests")


def test_an_error_is_one_line_whatever_it_repeats() -> None:
    assert str(SettingsError("unknown key `\ntents\x1b[2J`; a\u2028b")) == "unknown key ` tents [2J`; a b"
    with pytest.raises(EventError) as caught:
        decode(b'{"event": "request/\\n1"}')
    assert "\n" not in str(caught.value)
