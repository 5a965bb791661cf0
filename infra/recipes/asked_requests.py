"""Requests that are built when it is their turn, so that no process holds all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

from streams.events import Request

T = TypeVar("T")


class AskedRequests(Sequence[Request], Generic[T]):
    """Requests that are ready, and after them those that are built when they are asked for."""

    def __init__(self, ready: Sequence[Request], later: Sequence[T], build: Callable[[T], Request]) -> None:
        self._ready = ready
        self._later = later
        self._build = build

    def __len__(self) -> int:
        return len(self._ready) + len(self._later)

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> list[Request]: ...
    def __getitem__(self, place: int | slice) -> Request | list[Request]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"expected a request below {len(self)}, got {place}")
        if number < len(self._ready):
            return self._ready[number]
        return self._build(self._later[number - len(self._ready)])
