"""The selector rule: an answer consists of pointers to values of the prompt, without repeats, and an end token.

The functions are pure functions of token ids, as in `learner.constraints`, so the sampler and the learner cannot
disagree. A pointer is one token that follows its value in the prompt. A policy whose vocabulary has pointers can
write nothing else. Its answers are therefore whole values of the prompt: none is invented, cut or repeated. Free text
under the same reward soon went to repeats and broken values: half of the words were repeats after 75 updates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a selector's answers.

    pointer_ids: in the order of their numbers, from 1. end_id: ends the answer; an answer may consist of it alone.
    """

    pointer_ids: tuple[int, ...]
    end_id: int

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Every token that an answer may contain, ascending."""
        return tuple(sorted((*self.pointer_ids, self.end_id)))


def shown_pointers(prompt_ids: Sequence[int], selector: Selector) -> frozenset[int]:
    """Return the pointers in the prompt, which are those that an answer may contain."""
    return frozenset(prompt_ids).intersection(selector.pointer_ids)


def banned_pointers(prompt_ids: Sequence[int], prefix_ids: Sequence[int], selector: Selector) -> set[int]:
    """Return the pointers that may not follow the completion's prefix: those not shown and those already written."""
    return set(selector.pointer_ids) - shown_pointers(prompt_ids, selector) | set(prefix_ids).intersection(
        selector.pointer_ids
    )


def banned_pointer_positions(
    prompt_ids: Sequence[int], token_ids: Sequence[int], selector: Selector
) -> list[tuple[int, int]]:
    """Return every (position, banned pointer) of a whole completion, sorted by position, then by token id.

    The list contains (i, t) exactly if t is in banned_pointers(prompt_ids, token_ids[:i], selector).
    """
    banned = banned_pointers(prompt_ids, (), selector)
    pointers = frozenset(selector.pointer_ids)
    found: list[tuple[int, int]] = []
    for position, token in enumerate(token_ids):
        found.extend((position, each) for each in sorted(banned))
        if token in pointers:
            banned.add(token)
    return found


def forbidden(prompt_ids: Sequence[int], token_ids: Collection[int], selector: Selector) -> str:
    """Return why a selector cannot have written this completion, or "" if it can."""
    allowed = shown_pointers(prompt_ids, selector)
    seen: set[int] = set()
    for position, token in enumerate(token_ids):
        if token == selector.end_id:
            return (
                "" if position == len(token_ids) - 1 else f"token {token} at {position} ends it before its last token"
            )
        if token not in allowed:
            return f"token {token} at {position} is no pointer that the prompt shows"
        if token in seen:
            return f"token {token} at {position} points to a value for the second time"
        seen.add(token)
    return ""
