"""Load on a server in an open loop: a request is sent at its time, whether or not earlier ones have been answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp

CONNECTIONS = 200
TIMEOUT_SECONDS = 10.0

Request = tuple[str, str, Any]  # Method, path with its query, and the JSON body or None.


class Measured:
    """What became of the requests.

    seconds: from the sending to the whole answer. own: the same less what `server-timing` says that searches took.
    statuses: HTTP statuses, and names of failures. policies: answers by the policy that wrote their words.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.own: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.policies: Counter[str] = Counter()

    @property
    def failed(self) -> int:
        """Requests that were answered with another status than 200, or not at all."""
        return sum(count for status, count in self.statuses.items() if status != "200")


def percentile_ms(seconds: list[float], share: float) -> float:
    """Return a percentile in milliseconds; 0 of nothing."""
    return 1000 * sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)] if seconds else 0.0


async def load(base: str, ask: Callable[[int], Request], *, rate: float, seconds: float) -> Measured:
    """Send request after request to a server, each at its time, and return when all have ended.

    ask: makes the n-th request. rate: requests a second.
    """
    measured = Measured()
    tasks: set[asyncio.Task[None]] = set()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS), timeout=timeout) as session:
        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
            task = asyncio.create_task(_send(session, base, ask(number), measured))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)
    return measured


async def _send(session: aiohttp.ClientSession, base: str, request: Request, measured: Measured) -> None:
    method, path, body = request
    began = time.perf_counter()
    try:
        async with session.request(method, base + path, json=body) as answer:
            given = await answer.json()
            took = time.perf_counter() - began
            measured.statuses[str(answer.status)] += 1
            searched = float(answer.headers.get("server-timing", "search;dur=0").rpartition("=")[2]) / 1000
            measured.seconds.append(took)
            measured.own.append(took - searched)
            measured.policies[given.get("policy", "")] += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        measured.statuses[type(error).__name__] += 1
