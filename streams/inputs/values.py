"""Ids, ranks, grades, scores and times from outside: each is in its range, or None."""

from __future__ import annotations

import hashlib
import math
import re
from datetime import UTC, datetime

ID_BYTES_MAX = 512  # Elasticsearch's own limit for `_id`.
RANK_MAX = 10**6
GRADE_MAX = 1_000  # trec_eval keeps a table with one entry per grade.
SECONDS_MAX = 10**11  # Times in seconds stay below this for 3,000 years; times in milliseconds have already passed it.
TIME_MS_MIN = 631_152_000_000  # 1990: no search was logged earlier, and a date written as one number is smaller.
TIME_MS_MAX = 4_102_444_800_000  # 2100.

_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(?:\.[0-9]{1,20})?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")
_SCORE = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_ESCAPED = frozenset("%:~")


def read_id(value: object) -> str | None:
    """Return an id as text; None for an absent or blank value, a truth value, a fraction, or hidden characters.

    A whole number is an id, as UBI allows. An id is never changed, because other files use the same one.
    """
    if isinstance(value, str):
        if not value.isprintable() or not value or value.isspace():
            return None
        # A character has at most four bytes, so most ids need not be encoded to be measured.
        return value if len(value) * 4 <= ID_BYTES_MAX or len(value.encode()) <= ID_BYTES_MAX else None
    if isinstance(value, int) and not isinstance(value, bool) and -(10**18) < value < 10**18:
        return str(value)
    return None


def join_ids(*parts: str) -> str:
    """Return one id joined from several by ":"; two different lists of parts never give the same id.

    Ambiguous or hidden characters are escaped as %XX of their UTF-8 bytes, so ordinary parts stay unchanged. If the id
    exceeds 512 bytes, its end is replaced by "~" and a hash of the whole.
    """
    joined = ":".join("".join(map(_escaped, part)) for part in parts)
    data = joined.encode()
    if len(data) <= ID_BYTES_MAX:
        return joined
    digest = hashlib.sha256(data).hexdigest()[:40]
    return data[: ID_BYTES_MAX - len(digest) - 1].decode(errors="ignore") + "~" + digest


def _escaped(character: str) -> str:
    if character.isprintable() and character not in _ESCAPED:
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def read_rank(value: object) -> int | None:
    """Return a rank or position from 0 to `RANK_MAX`, from a number or its digits; None for any other value.

    A JSON number without a fractional part, such as 1.0, is whole. Fractions and negative numbers give None.
    """
    if isinstance(value, str):
        value = int(value) if _INTEGER.fullmatch(value) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= RANK_MAX:
        return None
    return value


def read_grade(text: str) -> int | None:
    """Return a grade from -1,000 to 1,000 (TREC grades spam below 0); None for a fraction or any other text."""
    grade = int(text) if _INTEGER.fullmatch(text) else None
    return grade if grade is not None and -GRADE_MAX <= grade <= GRADE_MAX else None


def read_score(text: str) -> float | None:
    """Return a finite score; None for NaN, infinity, or text that is not a decimal number."""
    score = float(text) if _SCORE.fullmatch(text) else math.inf
    return score if math.isfinite(score) else None


def read_time_ms(value: object) -> int | None:
    """Return milliseconds since the epoch; None if the value is not a time between 1990 and 2100.

    Accepts a number of seconds or milliseconds, the same as digits in a text, and ISO 8601. A time without a zone is
    UTC, whatever this machine's own zone is.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return _in_range(_number_ms(value))
    if not isinstance(value, str) or len(value) > 64:
        return None
    text = value.strip()
    if _NUMBER.fullmatch(text):
        found = _in_range(_number_ms(float(text) if "." in text else int(text)))
        # Eight digits may be a date. Python reads longer numbers as a date and an hour, whatever they are.
        if found is not None or len(text) != 8:
            return found
    try:
        moment = datetime.fromisoformat(text)
        return _in_range((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def _number_ms(value: float) -> float:
    return value if abs(value) > SECONDS_MAX else value * 1000


def _in_range(ms: float) -> int | None:
    return round(ms) if TIME_MS_MIN <= ms < TIME_MS_MAX else None
