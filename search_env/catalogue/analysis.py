"""The `english` analyzer in Python: it gives the terms that the index holds, without a request to the index.

It follows Lucene's EnglishAnalyzer: standard tokenizer, no possessive 's, lower case, stop words, Porter stemmer (M. F.
Porter, "An algorithm for suffix stripping", Program 14(3), 1980). Features, feedback terms and intents need the
terms of thousands of documents at once, and one search must stay one request. We differ in the tokenizer: a regular
expression approximates UAX #29. It covers letters, digits and the marks inside words, but has no Thai, Han or emoji
rules. `tests/services/test_analysis.py` compares it with the engine's `_analyze`.
"""

from __future__ import annotations

import re
from functools import lru_cache

# UAX #29: letters and digits join; . ' ’ : · hold letters together, . , ; ' hold digits together; _ joins all. Raised
# digits and fractions (category No) are not letters. The signs at the end are emoji in Unicode, and therefore terms in
# Lucene: ® and ™ are in every tenth product title.
_NUMBER_SIGNS = "²³¹¼-¾⁰-₟①-⓿⅐-⅟↉❶-➓㆒-㆕㈠-㉇"
_EMOJI = (
    "©®‼⁉™ℹ↔-↙↩↪⌚⌛⏩-⏺☀-☄☎☑☔☕☺♀♂♈-♓♠♣♥♦♻♾♿⚒-⚗⚙⚛⚜⚠⚡✂✅✈-✏✒✔✖✝✡✨✳✴❄❇❌❎❓-❕❗❣❤➕-➗➡\U0001f300-\U0001faff"
)
_WORD = rf"(?:(?![{_NUMBER_SIGNS}])\w)"
_TOKEN = re.compile(rf"{_WORD}+(?:(?:(?<=[^\W\d_])[.:'’·](?=[^\W\d_])|(?<=\d)[.,;'’](?=\d)){_WORD}+)*|[{_EMOJI}]")
_ONLY_UNDERSCORES = re.compile(r"_+")

STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
))  # fmt: skip


def surface_tokens(text: str) -> list[str]:
    """Return the lower-cased words of a text, without possessive endings, with stop words, unstemmed."""
    tokens = []
    for token in _TOKEN.findall(text):
        if token[0] == "_" and _ONLY_UNDERSCORES.fullmatch(token):
            continue
        if len(token) > 2 and token[-1] in "sS" and token[-2] in "'’＇":
            token = token[:-2]
        tokens.append(token.lower())
    return tokens


def plain_words(text: str) -> str:
    """Return a text's words, separated by blanks; queries with the same words are the same query."""
    return " ".join(surface_tokens(text))


def analyze(text: str) -> list[str]:
    """Return the index terms of a text, in order, as `english` gives them."""
    return [stem(token) for token in surface_tokens(text) if token not in STOP_WORDS]


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Return the Porter stem of a lower-case word, as Lucene's PorterStemmer does (words under 3 letters stay)."""
    if len(word) < 3:
        return word
    return _step5(_step4(_step3(_step2(_step1(word)))))


def _is_consonant(word: str, position: int) -> bool:
    letter = word[position]
    if letter in "aeiou":
        return False
    if letter == "y":
        return position == 0 or not _is_consonant(word, position - 1)
    return True


def _measure(stem_: str) -> int:
    """Return Porter's m, the number of the stem's vowel-consonant sequences."""
    count, previous_vowel = 0, False
    for position in range(len(stem_)):
        consonant = _is_consonant(stem_, position)
        if consonant and previous_vowel:
            count += 1
        previous_vowel = not consonant
    return count


def _has_vowel(stem_: str) -> bool:
    return any(not _is_consonant(stem_, position) for position in range(len(stem_)))


def _double_consonant(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _is_consonant(word, len(word) - 1)


def _ends_cvc(word: str) -> bool:
    if len(word) < 3:
        return False
    last = len(word) - 1
    return (
        _is_consonant(word, last)
        and not _is_consonant(word, last - 1)
        and _is_consonant(word, last - 2)
        and word[last] not in "wxy"
    )


def _step1(word: str) -> str:
    if word.endswith("s"):
        if word.endswith(("sses", "ies")):
            word = word[:-2]
        elif not word.endswith("ss"):
            word = word[:-1]
    if word.endswith("eed"):
        if _measure(word[:-3]) > 0:
            word = word[:-1]
    else:
        for suffix in ("ed", "ing"):
            if word.endswith(suffix):
                if _has_vowel(word[: -len(suffix)]):
                    word = word[: -len(suffix)]
                    if word.endswith(("at", "bl", "iz")):
                        word += "e"
                    elif _double_consonant(word):
                        if word[-1] not in "lsz":
                            word = word[:-1]
                    elif _measure(word) == 1 and _ends_cvc(word):
                        word += "e"
                break
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    return word


# Lucene, like Porter's own later C code, has "bli" and "logi"; the paper has "abli" and no rule for "logi".
_STEP2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"),
    ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"),
    ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"),
    ("iviti", "ive"), ("biliti", "ble"), ("logi", "log"),
)  # fmt: skip
_STEP3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""),
)  # fmt: skip
_STEP4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ou", "ism", "ate", "iti", "ous",
    "ive", "ize",
)  # fmt: skip


def _step2(word: str) -> str:
    return _replace(word, _STEP2)


def _step3(word: str) -> str:
    return _replace(word, _STEP3)


def _replace(word: str, rules: tuple[tuple[str, str], ...]) -> str:
    for suffix, replacement in rules:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return rest + replacement if _measure(rest) > 0 else word
    return word


def _step4(word: str) -> str:
    if word.endswith("ion"):
        rest = word[:-3]
        return rest if rest and rest[-1] in "st" and _measure(rest) > 1 else word
    for suffix in _STEP4:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return rest if _measure(rest) > 1 else word
    return word


def _step5(word: str) -> str:
    if word.endswith("e"):
        rest = word[:-1]
        measure = _measure(rest)
        if measure > 1 or (measure == 1 and not _ends_cvc(rest)):
            word = rest
    if word.endswith("ll") and _measure(word[:-1]) > 1:
        word = word[:-1]
    return word
