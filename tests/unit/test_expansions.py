"""The parser of generated expansions: the format and nothing else, and no text that can break it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_env.environments import Rejected
from search_env.leser.expansions import ExpansionSettings, ParsedExpansions, parse_expansions


@pytest.mark.parametrize(
    ("text", "expansions"),
    [
        ('<answer>["toner","cartridge"]</answer>', ("toner", "cartridge")),
        (' <think>they want ink</think>\n<answer> ["ink" , "dye ink"] </answer>\n', ("ink", "dye ink")),
        ("<answer>[]</answer>", ()),
        ('<answer>["Ink","ink","INK "]</answer>', ("Ink",)),
        ('<answer>["to\\u200bner\\u202e","a\\tb"]</answer>', ("toner", "a b")),
        ('<answer>["<b>bold</b>"]</answer>', ("<b>bold</b>",)),
    ],
)
def test_the_format_is_read(text: str, expansions: tuple[str, ...]) -> None:
    parsed = parse_expansions(text)
    assert isinstance(parsed, ParsedExpansions)
    assert parsed.expansions == expansions


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected <answer>"),
        ('["toner"]', "expected <answer>"),
        ('<answer>["toner"]', "expected <answer>"),
        ('<answer>["toner"]</answer> and more', "nothing else"),
        ('Sure! <answer>["toner"]</answer>', "nothing else"),
        ('<think>a<answer>["toner"]</answer>', "nothing else"),
        ('<answer>["a"]</answer><answer>["b"]</answer>', "at most once"),
        ('<think>a <answer></think><answer>["b"]</answer>', "at most once"),
        ('<answer>{"a": 1}</answer>', "JSON list of strings"),
        ('<answer>["a", 3]</answer>', "JSON list of strings"),
        ('<answer>["a", ["b"]]</answer>', "JSON list of strings"),
        ('<answer>["a",]</answer>', "JSON list of strings"),
        ("<answer>['a']</answer>", "JSON list of strings"),
        ('<answer>["\\ud800"]</answer>', "JSON list of strings"),
        ('<answer>["\ud800"]</answer>', "JSON list of strings"),
        ("<answer>" + "[" * 2000 + "</answer>", "JSON list of strings"),
        ('<answer>["a", ""]</answer>', "expansion 2: expected 1 to 6 words, got 0"),
        ('<answer>["!?"]</answer>', "expected 1 to 6 words, got 0"),
        ('<answer>["a b c d e f g"]</answer>', "expected 1 to 6 words, got 7"),
        (f'<answer>["{"x" * 81}"]</answer>', "expected at most 80 characters, got 81"),
        (f'<answer>["{"x" * 2000}"]</answer>', "expected at most 80 characters, got 2000"),
        (f"<answer>{json.dumps([f'w{n}' for n in range(17)])}</answer>", "expected at most 16 expansions, got 17"),
        ("<think>" + "é" * 3000 + "</think><answer>[]</answer>", "expected at most 4096 bytes, got 6"),
    ],
)
def test_everything_else_is_rejected_with_its_reason(text: str, reason: str) -> None:
    parsed = parse_expansions(text)
    assert isinstance(parsed, Rejected)
    assert reason in parsed.reason
    assert "\n" not in parsed.reason


PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "[",
    "]",
    '"',
    ",",
    "\\",
    "toner",
    "\u202e",
    "\ud800",
    "\x00",
    " ",
]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=30).map("".join))
def test_no_text_breaks_the_parser_or_its_promises(text: str) -> None:
    settings = ExpansionSettings(bytes_max=200, expansions_max=3, terms_max=2, characters_max=20)
    parsed = parse_expansions(text, settings)
    if isinstance(parsed, Rejected):
        assert parsed.reason
        return
    assert len(parsed.expansions) <= 3
    for expansion in parsed.expansions:
        assert 1 <= len(expansion) <= 20
        assert expansion.isprintable()
        expansion.encode()


WORDS = st.lists(st.from_regex(r"[a-z0-9]{1,12}( [a-z0-9]{1,12})?", fullmatch=True), max_size=10, unique=True)


@given(WORDS)
def test_what_was_written_in_the_format_comes_back(expansions: list[str]) -> None:
    parsed = parse_expansions(f"<answer>{json.dumps(expansions)}</answer>")
    assert parsed == ParsedExpansions(tuple(expansions))


def test_a_selectors_pointers_are_the_words_that_its_prompt_showed() -> None:
    parsed = parse_expansions("<v3><v1>", choices=("toner", "ink", "cyan"))
    assert parsed == ParsedExpansions(("cyan", "toner"))
    assert parse_expansions("", choices=("toner",)) == ParsedExpansions(())  # It may say that none helps,
    assert parse_expansions("", choices=()) == ParsedExpansions(())  # and has to where it was shown none.


@pytest.mark.parametrize(
    "text", ["<v4>", "<v0>", "<v1> toner", "toner", '<answer>["toner"]</answer>', "<v1><end>", "<v٣>"]
)
def test_a_selector_can_say_nothing_else(text: str) -> None:
    assert isinstance(parse_expansions(text, choices=("toner", "ink", "cyan")), Rejected)


def test_a_policy_that_writes_text_cannot_point() -> None:
    assert isinstance(parse_expansions("<v1>"), Rejected)


def test_what_a_selector_says_keeps_to_the_caps() -> None:
    parsed = parse_expansions("<v1><v2>", ExpansionSettings(expansions_max=1), choices=("toner", "ink"))
    assert isinstance(parsed, Rejected)
    assert "at most 1 expansions, got 2" in parsed.reason
