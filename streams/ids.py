"""Names that are functions of the log, so that the same record always gives the same name."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence

from streams.events import Position

NAMESPACE = uuid.UUID("6f1c9a5e-3a0b-5d0e-9c43-7e2b8f0f5a11")


def group_id(run: str, request: Position) -> str:
    """Return the id of the group that answers the request at this position.

    uuid5 of run and topic/partition/offset: a generator that is killed after producing and started again writes the
    same id, and the first such record in the log wins.
    """
    return str(uuid.uuid5(NAMESPACE, f"{run}/{request.topic}/{request.partition}/{request.offset}"))


def candidate_id(group: str, index: int) -> str:
    """Return the id of one candidate; index counts from 0 within the group."""
    return f"{group}:{index}"


def group_seed(group: str, seed: int) -> int:
    """Return the 63-bit seed that a group's candidates are drawn from: of the run's seed and the group's id alone."""
    return uuid.uuid5(NAMESPACE, f"{seed}/{group}").int >> 65


def prompt_sha256(token_ids: Sequence[int]) -> str:
    """Return the hash by which a prompt is known: that of its token ids as text, joined by spaces."""
    return hashlib.sha256(" ".join(map(str, token_ids)).encode()).hexdigest()
