"""Driving a server with simulated people: they search, look, and send their clicks, at a chosen rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from infra.app.progress import Report
from search_env.catalogue.corpora import Query
from search_env.clicks.users import SimulatedUsers
from storage.evaluation.measures import mean, measure_run
from streams.errors import SearchloopError
from streams.ids import is_candidate_choice

MIXED = "interleaved"
CANDIDATES = "candidates"
REPORT_SECONDS = 1.0
TIMEOUT_SECONDS = 10.0
FAILED_MAX = 50  # In a row: then the server is gone.


class SimulationError(SearchloopError, RuntimeError):
    """The server does not answer, or refuses what simulated people send."""


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """Who searches. rate: searches a second. bots: share of the searches by clients that click everything at once."""

    impressions: int
    rate: float
    clients: int
    bots: float
    size: int
    seed: int


class PolicyCounts(msgspec.Struct, kw_only=True):
    """Counts of the searches that one policy answered. quality: the mean of the hidden nDCG@10."""

    impressions: int = 0
    clicked: int = 0
    clicks: int = 0
    quality: float = 0.0


class Simulated(msgspec.Struct, kw_only=True):
    """The counts of a simulation. by_policy: people's searches; "" is raw results.

    "interleaved" is a list of two, and "candidates" those of groups that wait for people.
    """

    searches: int = 0
    failed: int = 0
    bots: int = 0
    by_policy: dict[str, PolicyCounts] = {}


async def drive(
    base: str,
    asked: Sequence[Query],
    grades: Mapping[str, Mapping[str, int]],
    users: SimulatedUsers,
    crowd: Crowd,
    *,
    token: str = "",
    report: Report,
) -> Simulated:
    """Let simulated people search, and return what became of it.

    base: the server's address. asked: queries, drawn by Zipf's law in their order. grades: the hidden relevance.
    Raises SimulationError if the server is gone.
    """
    random_ = random.Random(crowd.seed)
    weights = [1 / (place + 1) for place in range(len(asked))]
    queries = random_.choices(asked, weights=weights, k=crowd.impressions)
    found = Simulated()
    tasks: set[asyncio.Task[None]] = set()
    run = _Run(base, grades, users, crowd, found)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        began = time.perf_counter()
        for number, query in enumerate(queries):
            await asyncio.sleep(max(began + number / crowd.rate - time.perf_counter(), 0))
            if run.failed_in_a_row >= FAILED_MAX:
                raise SimulationError(
                    f"{base}: {FAILED_MAX} searches in a row failed ({run.trouble}). Look with: searchloop status"
                )
            is_bot = random_.random() < crowd.bots
            kind, kinds = ("bot", max(crowd.clients // 20, 1)) if is_bot else ("client", crowd.clients)
            client = f"{kind}-{random_.randrange(kinds)}"
            task = asyncio.create_task(run.search(session, query, client, is_bot))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if number % max(int(crowd.rate * REPORT_SECONDS), 1) == 0:
                report("simulated searches", number, crowd.impressions)
        if tasks:
            await asyncio.wait(tasks)
    report("simulated searches", crowd.impressions, crowd.impressions)
    run.measure()
    return found


class _Run:
    def __init__(
        self,
        base: str,
        grades: Mapping[str, Mapping[str, int]],
        users: SimulatedUsers,
        crowd: Crowd,
        found: Simulated,
    ) -> None:
        self._base = base
        self._grades = grades
        self._users = users
        self._crowd = crowd
        self._found = found
        self._seen: dict[str, list[tuple[str, list[str]]]] = {}
        self.failed_in_a_row = 0
        self.trouble = ""

    async def search(self, session: aiohttp.ClientSession, query: Query, client: str, is_bot: bool) -> None:
        """Search once, look, and send the clicks."""
        asked = {"query": query.text, "client_id": client, "size": self._crowd.size, "application": "simulated"}
        self._found.searches += 1
        answer = await self._post(session, "/search", asked)
        if answer is None:
            return
        shown = [hit["id"] for hit in answer["hits"]]
        clicked = shown if is_bot else self._users.clicks(query.id, shown)
        if is_bot:
            self._found.bots += 1
        else:
            self._note(answer, query, shown, clicked)
        events = [
            {
                "action_name": "click",
                "query_id": answer["query_id"],
                "client_id": client,
                "event_attributes": {"object": {"object_id": name}},
            }
            for name in clicked
        ]
        if events:
            await self._post(session, "/events", events)

    def _note(self, answer: Mapping[str, Any], query: Query, shown: list[str], clicked: list[str]) -> None:
        policy = MIXED if answer["interleaved"] else answer["policy"]
        policy = CANDIDATES if is_candidate_choice(policy) else policy
        counts = self._found.by_policy.setdefault(policy, PolicyCounts())
        counts.impressions += 1
        counts.clicked += bool(clicked)
        counts.clicks += len(clicked)
        self._seen.setdefault(policy, []).append((query.id, shown))

    def measure(self) -> None:
        """Measure the hidden quality of what each policy showed."""
        for policy, seen in self._seen.items():
            named = [(f"{place}", query_id, shown) for place, (query_id, shown) in enumerate(seen)]
            run = {key: {name: float(-rank) for rank, name in enumerate(shown)} for key, _, shown in named}
            grades = {key: dict(self._grades.get(query_id, {})) for key, query_id, _ in named}
            values = measure_run(run, grades, ("nDCG@10",))["nDCG@10"]
            self._found.by_policy[policy].quality = mean(values)

    async def _post(self, session: aiohttp.ClientSession, path: str, body: Any) -> Any:
        try:
            async with session.post(self._base + path, json=body) as answer:
                if answer.status == 200:
                    self.failed_in_a_row = 0
                    return await answer.json()
                self.trouble = f"status {answer.status}: {(await answer.text())[:200]}"
        except (aiohttp.ClientError, TimeoutError) as error:
            self.trouble = f"{type(error).__name__}: {error}"
        self.failed_in_a_row += 1
        self._found.failed += 1
        return None
