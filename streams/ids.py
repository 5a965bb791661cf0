"""Ids that are functions of the log, so that the same record always gives the same id."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Sequence

from streams.events import Position

_CHOICE = re.compile(r".+\.\d+")
NAMESPACE = uuid.UUID("6f1c9a5e-3a0b-5d0e-9c43-7e2b8f0f5a11")


def group_id(run: str, request: Position) -> str:
    """Return the id of the group that answers the request at this position.

    The id is the uuid5 of run and topic/partition/offset. A generator that is killed after producing and started again
    therefore writes the same id, and the first such record in the log counts.
    """
    return str(uuid.uuid5(NAMESPACE, f"{run}/{request.topic}/{request.partition}/{request.offset}"))


def candidate_id(group: str, index: int) -> str:
    """Return the id of one candidate; index counts from 0 within the group."""
    return f"{group}:{index}"


def candidate_choice(group: str, index: int) -> str:
    """Return the name under which people are shown the results of a candidate; policy versions have no such names."""
    return f"{group}.{index}"


def is_candidate_choice(policy: str) -> bool:
    """Return whether the policy of an impression names a candidate of a group, and no policy version."""
    return _CHOICE.fullmatch(policy) is not None


def group_seed(group: str, seed: int) -> int:
    """Return the 63-bit seed for a group's candidates; it depends only on the run's seed and the group's id."""
    return uuid.uuid5(NAMESPACE, f"{seed}/{group}").int >> 65


def prompt_sha256(token_ids: Sequence[int]) -> str:
    """Return the hash that identifies a prompt: the hash of its token ids as text, joined by spaces."""
    return hashlib.sha256(" ".join(map(str, token_ids)).encode()).hexdigest()
