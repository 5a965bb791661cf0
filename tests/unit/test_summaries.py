"""What is read of a text about a product keeps to the budget, whatever the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_env.environments import Rejected
from search_env.models.wordpieces import wordpiece_count
from search_env.summaries.reading import ParsedSummary, SummarySettings, fit_text, fit_values, read_summary
from streams.events import Product

LAMP = Product(
    document_id="d",
    title="Desk lamp",
    values=(("colour", "red"), ("material", "powder coated steel"), ("power", "9 w"), ("shade colour", "red")),
)


def words(text: str) -> int:
    return len(text.replace(",", " , ").split())


def read(text: str, tokens_max: int = 16) -> ParsedSummary:
    found = read_summary(text, LAMP, SummarySettings(tokens_max=tokens_max), words)
    assert isinstance(found, ParsedSummary)
    return found


def test_pointers_become_whole_values_in_their_order() -> None:
    assert read("<v3><v1>") == ParsedSummary(text="9 w, red", tokens=4, values=(3, 1), repeats=0.0)


def test_a_value_that_does_not_fit_is_left_out_and_the_next_is_tried() -> None:
    assert read("<v1><v2><v3>", tokens_max=4).text == "red, 9 w"


def test_the_same_words_are_not_said_twice() -> None:
    assert read("<v1><v4><v1>").values == (1,)


def test_nothing_is_a_valid_summary_of_nothing() -> None:
    assert read("") == ParsedSummary(text="", tokens=0, values=(), repeats=0.0)


@pytest.mark.parametrize("text", ["<v0>", "<v5>", "<v1><v99>"])
def test_a_pointer_to_no_value_is_rejected(text: str) -> None:
    assert isinstance(read_summary(text, LAMP, SummarySettings(), words), Rejected)


def test_repeated_words_are_counted() -> None:
    assert read("black, black black").repeats == pytest.approx(2 / 3)


@given(st.text(max_size=200), st.integers(1, 20))
def test_no_text_exceeds_the_budget(text: str, tokens_max: int) -> None:
    settings = SummarySettings(tokens_max=tokens_max)
    found = read_summary(text, LAMP, settings, wordpiece_count)
    if isinstance(found, ParsedSummary):
        assert wordpiece_count(found.text) == found.tokens <= tokens_max
        assert found.text.isprintable()


def test_a_text_that_is_too_long_is_rejected_before_it_is_read() -> None:
    assert isinstance(read_summary("a" * 5000, LAMP, SummarySettings(), words), Rejected)


@given(st.lists(st.integers(1, 4), max_size=8), st.integers(1, 12))
def test_selected_values_are_whole_and_within_the_budget(numbers: list[int], tokens_max: int) -> None:
    found = fit_values(LAMP, numbers, SummarySettings(tokens_max=tokens_max), words)
    assert found.text == ", ".join(LAMP.values[number - 1][1] for number in found.values)
    assert words(found.text) <= tokens_max


def test_free_text_is_cut_after_the_last_whole_word_that_fits() -> None:
    assert fit_text("one two three", SummarySettings(tokens_max=2), words).text == "one two"
