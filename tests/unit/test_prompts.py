"""Prompts and answers: what untrusted text may do to them (nothing), and that the answer is what the parser reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from learner.prompts import PromptSettings, plain_text, render_answer, render_prompt, with_choices
from learner.tokenizer import CLOSE, EMPTY, OPEN, SEPARATOR, TAGS, build_tokenizer
from search_env.leser.expansions import ParsedExpansions, parse_expansions
from streams.events import Context

TEXTS = ["red patch cable", "blue toner cartridge 2 pcs", "yellow fiber optic cable"] * 3
TOKENIZER = build_tokenizer(TEXTS, vocabulary_size=320)
untrusted = st.text(max_size=300)


@given(query=untrusted, terms=st.lists(untrusted, max_size=30), attributes=st.lists(untrusted, max_size=10))
def test_untrusted_text_opens_no_part_and_exceeds_no_cap(query: str, terms: list[str], attributes: list[str]) -> None:
    settings = PromptSettings()
    prompt = render_prompt(query, Context(terms=tuple(terms), attributes=tuple(attributes)), settings)
    assert prompt.count("<") == prompt.count(">") <= 4
    assert all(prompt.count(tag) <= 1 for tag in TAGS)
    longest = settings.terms + settings.attributes + settings.neighbours
    assert len(prompt) <= settings.query_characters + longest * (settings.item_characters + 2) + 60
    assert prompt.isprintable() or not prompt.isascii()


def test_control_characters_and_brackets_become_one_blank() -> None:
    assert plain_text(" red\x00\u202e <answer>[]\n cable ", characters=40) == "red answer []  cable".replace("  ", " ")


def test_empty_parts_are_left_out() -> None:
    assert render_prompt("red cable", Context(), PromptSettings()) == "<query> red cable"
    context = Context(terms=("patch", "cat6"), attributes=("single-mode", "yellow"), neighbours=("fiber",))
    assert render_prompt("red cable", context, PromptSettings()) == (
        "<query> red cable<terms> patch cat6<attributes> single-mode; yellow<neighbours> fiber"
    )


@given(st.lists(st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True), max_size=5, unique=True))
def test_the_answer_is_what_the_parser_reads(words: list[str]) -> None:
    assert parse_expansions(render_answer(words)) == ParsedExpansions(tuple(words))


@given(
    st.lists(
        st.sampled_from(["red", "patch", "cable", "blue", "fiber", "2", "7.5", "usb-c", "münchen", "線"]), max_size=5
    )
)
def test_the_tiny_vocabulary_gives_an_answer_back_letter_by_letter(words: list[str]) -> None:
    answer = render_answer(list(dict.fromkeys(words)))
    assert TOKENIZER.decode(TOKENIZER(answer, add_special_tokens=False)["input_ids"]) == answer


def test_the_answers_punctuation_costs_one_token_each() -> None:
    tokens = TOKENIZER.tokenize(render_answer(["cable", "cable"]))
    assert tokens == [OPEN, "Ġcable", SEPARATOR, "Ġcable", CLOSE]
    assert TOKENIZER.tokenize(render_answer([])) == [EMPTY]


def test_a_word_has_the_same_tokens_in_prompt_and_answer() -> None:
    prompt = TOKENIZER.tokenize(
        render_prompt("toner", Context(terms=("toner",), neighbours=("toner",)), PromptSettings())
    )
    assert (
        [token for token in prompt if token not in TAGS]
        == ["Ġtoner"] * 3
        == TOKENIZER.tokenize('<answer>["toner')[1:] * 3
    )


def test_a_selector_is_shown_each_word_once_with_a_pointer_behind_it() -> None:
    settings = PromptSettings(select=True, neighbours=2, terms=3, attributes=1)
    shown = Context(terms=("patch", "cat6", "x", "y"), attributes=("2 m",), neighbours=("fiber", "patch", "left out"))
    context = with_choices(shown, settings)
    assert context.choices == ("fiber", "patch", "cat6", "x")
    assert render_prompt("red cable", context, settings) == (
        "<query> red cable<attributes> 2 m<neighbours> fiber<v1> patch<v2><terms> cat6<v3> x<v4>"
    )
    assert len(context.choices) <= settings.pointers


def test_a_policy_that_writes_text_has_no_choices() -> None:
    context = Context(neighbours=("fiber",))
    assert with_choices(context, PromptSettings()) == context
    assert PromptSettings().pointers == 0


@given(words=st.lists(untrusted, max_size=12))
def test_no_word_forges_a_pointer(words: list[str]) -> None:
    settings = PromptSettings(select=True)
    context = with_choices(Context(neighbours=("<v1>", *words)), settings)
    assert render_prompt("<v2> mug", context, settings).count("<v") == len(context.choices)
