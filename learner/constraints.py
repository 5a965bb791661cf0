"""The no-repeat rule: no expansion may begin with the token that began an earlier expansion.

The functions are pure functions of token ids. The sampler uses them to mask the next token, and the learner masks the
same tokens before its softmax. So the learner's distribution is the distribution that was sampled from. An opener is a
token that opens an expansion, `["` or `","`; the token after it begins the expansion.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise


def banned_next(prefix_ids: Sequence[int], opener_ids: Collection[int]) -> set[int]:
    """Return the tokens that may not follow the completion's prefix.

    prefix_ids: the completion so far, without the prompt. opener_ids: tokens that open an expansion; empty: no rule.
    Returns the first tokens of all earlier expansions if the prefix ends in an opener, else the empty set. An opener
    after an opener begins no expansion and is never banned, so the policy may write an empty expansion and go on.
    """
    if not prefix_ids or prefix_ids[-1] not in opener_ids:
        return set()
    return _first_tokens(prefix_ids, opener_ids)


def banned_positions(token_ids: Sequence[int], opener_ids: Collection[int]) -> list[tuple[int, int]]:
    """Return every (position, banned token id) of a whole completion, sorted by position, then by token id.

    Position i is the position of token_ids[i], the predicted token. The list contains (i, t) exactly if t is in
    banned_next(token_ids[:i], opener_ids).
    """
    banned: list[tuple[int, int]] = []
    begun: set[int] = set()
    for position in range(1, len(token_ids)):
        if token_ids[position - 1] not in opener_ids:
            continue
        banned.extend((position, token) for token in sorted(begun))
        if token_ids[position] not in opener_ids:
            begun.add(token_ids[position])
    return banned


def _first_tokens(token_ids: Sequence[int], opener_ids: Collection[int]) -> set[int]:
    return {first for opener, first in pairwise(token_ids) if opener in opener_ids and first not in opener_ids}
