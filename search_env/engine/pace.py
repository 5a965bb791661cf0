"""How many requests to the engine are under way: one more while it answers in time, half as many when it does not.

Additive increase, multiplicative decrease, as TCP does (Chiu and Jain, 1989): several workers on one engine then find a
fair share without knowing of each other. Too much is a refusal (429, 503), or a 99th percentile of the last answers'
times above a limit.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
REMEMBERED = 100  # Answers whose times count; the slowest of them is their 99th percentile.
BEGIN = 2


class Pace:
    """The number of requests that may be under way, between 1 and a largest one. Thread-safe."""

    def __init__(self, most: int, *, slow_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """most: the largest number. slow_seconds: the 99th percentile of answers' times that is too slow."""
        self._most = most
        self._slow_seconds = slow_seconds
        self._clock = clock
        self._limit = float(min(BEGIN, most))
        self._under_way = 0
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._slowed_at = -math.inf
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """Return how many requests may be under way now."""
        return int(self._limit)

    def run(self, send: Callable[[], T], refused: Callable[[T], bool]) -> T:
        """Wait for a turn, call `send`, and return its result.

        refused: whether the result says that the engine has too much to do; an error of `send` always does.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._under_way < self.limit)
            self._under_way += 1
        began, too_much = self._clock(), True
        try:
            answer = send()
            too_much = refused(answer)
            return answer
        finally:
            with self._changed:
                self._under_way -= 1
                self._learn(began, self._clock(), too_much)
                self._changed.notify_all()

    def _learn(self, began: float, ended: float, too_much: bool) -> None:
        if began < self._slowed_at:
            return  # A request of before the last decrease says nothing new.
        self._seconds.append(ended - began)
        slowest = sorted(self._seconds)[math.ceil(0.99 * len(self._seconds)) - 1]
        if not too_much and slowest <= self._slow_seconds:
            self._limit = min(self._limit + 1 / self._limit, float(self._most))
        else:
            self._limit = max(self._limit / 2, 1.0)
            self._slowed_at = ended
            self._seconds.clear()
