"""Several vLLM servers that write for one generator: which one gets the next group, and which ones are left out.

A group goes to the server with the shortest queue, by the server's own metrics. A server that dies, or is silent for
`vllm.lease_seconds`, is left out; the groups that it had are asked of the others, and what it may still answer is
dropped with its connection. It comes back when it has the version in use (`learner.adapters`). A single server is never
left out, because waiting for it is all that can be done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from learner.calls import Call
from learner.engine_load import EngineLoad, GroupWindow, read_load
from learner.vllm import (
    BACK_OFF_FIRST_SECONDS,
    BACK_OFF_SECONDS_MAX,
    OverloadedError,
    UnknownModelError,
    VllmClient,
    VllmError,
    VllmSettings,
    addresses,
)
from streams.errors import TransientError

LOOK_SECONDS = 0.25
LOOK_TIMEOUT_SECONDS = 5.0
FAILURES_MAX = 3  # Refusals for lack of room in a row, after which a server is left out.
RETURN_PAUSE_SECONDS_MAX = 30.0
QUICK_SECONDS_MAX = 2.0
log = logging.getLogger(__name__)


class Replica:
    """One server: its client, what it says about its queue, and what this generator has there."""

    def __init__(self, url: str, settings: VllmSettings, *, alone: bool) -> None:
        """alone: there is no other server, so all waiting is for this one."""
        self.client = VllmClient(url, settings)
        quick = msgspec.structs.replace(
            settings,
            retry_seconds_max=min(settings.retry_seconds_max, QUICK_SECONDS_MAX),
            timeout_seconds=min(settings.timeout_seconds, settings.lease_seconds),
        )
        # For adapters: one dead server must not keep the others from a new version.
        self.admin = self.client if alone else VllmClient(url, quick)
        self.timeout_seconds = settings.timeout_seconds
        self.is_new_enough = False
        self.url = self.client.url
        self.window = GroupWindow(groups_max=settings.requests_in_flight, queue_max=settings.queue_max)
        self.calls: set[Call] = set()
        self.load: EngineLoad | None = None
        self.sent = 0  # Candidates requested since the load was read.
        self.heard_at = time.monotonic()
        self.resting_until = 0.0
        self.failures = 0
        self.why_out = ""  # "" while it serves.
        self.return_at = 0.0
        self.return_pause = 1.0
        self.owed: set[str] = set()  # Adapters to unload, which it could not be told while it was away.

    @property
    def serves(self) -> bool:
        """Return whether it may get groups."""
        return not self.why_out

    def has_room(self, now: float) -> bool:
        """Return whether it may get one more group; one may always be there, however long others make the queue."""
        if now < self.resting_until:
            return False
        return not self.calls or (len(self.calls) < self.window.groups and not self.window.is_closed)

    def is_only_busy(self) -> bool:
        """Return whether a request that was not answered in time waits in the server's queue, which may be long.

        A single server has had `vllm.timeout_seconds` for it, and counts as gone.
        """
        if self.admin is self.client:
            return False
        try:
            load = read_load(self.admin.metrics(timeout_seconds=LOOK_TIMEOUT_SECONDS))
        except (TransientError, VllmError):
            return False
        return load is not None and load.waiting > 0

    def queue(self, candidates: int) -> tuple[float, int]:
        """Return what lies before a new group, in candidates; candidates: of each of our groups."""
        if self.load is None:
            return float(len(self.calls) * candidates), 0
        return self.load.waiting + self.load.running + self.sent, len(self.calls)


class Replicas:
    """The servers of one generator. Thread-safe."""

    def __init__(self, settings: VllmSettings, urls: Sequence[str] = ()) -> None:
        """urls: the servers' addresses; none takes those of the settings."""
        self._settings = settings
        urls = urls or addresses(settings.url)
        self.all = [Replica(url, settings, alone=len(urls) == 1) for url in urls]
        if not self.all:
            raise VllmError("vllm.url: expected an address like http://host:8000, got none")
        self.prepare: Callable[[Replica], None] = lambda _: None
        self._turn = 0
        self._changed = threading.Condition()
        self._working = threading.Event()
        self._closed = False
        self._watched = False

    @property
    def serving(self) -> list[Replica]:
        """Return the servers that are not left out."""
        return [replica for replica in self.all if replica.serves]

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a completion request, from one server.

        A server that does not know the adapter was started anew; it gets the adapter first.
        Raises VllmError if a server refuses, and TransientError if none answered within `vllm.retry_seconds_max`,
        counted from the first failure.
        """
        alone = len(self.all) == 1
        deadline: float | None = None
        last: TransientError | None = None
        while True:
            replica, call = self._take(body.get("n", 1), deadline, last)
            try:
                answer = self._complete(replica, body, call, patience_seconds=None if alone else 0.0)
            except TransientError as error:
                self._failed(replica, error)
                deadline = deadline or time.monotonic() + self._settings.retry_seconds_max
                last = error
                if alone or time.monotonic() > deadline:
                    raise
                log.info("%s; its group is asked of another server", error)
            else:
                with self._changed:
                    replica.failures = 0
                    replica.window.answered(len(replica.calls))
                return answer
            finally:
                self._give_back(replica, call)

    def _complete(
        self, replica: Replica, body: dict[str, Any], call: Call, *, patience_seconds: float | None
    ) -> dict[str, Any]:
        try:
            return replica.client.complete(body, patience_seconds=patience_seconds, call=call)
        except UnknownModelError:
            try:
                self.prepare(replica)
            except VllmError as error:
                if len(self.all) == 1:
                    raise
                raise TransientError(f"vLLM at {replica.url} was started anew and is not used: {error}") from error
            try:
                return replica.client.complete(body, patience_seconds=patience_seconds, call=call)
            except UnknownModelError as error:
                if len(self.all) == 1:
                    raise
                raise TransientError(f"{error} It forgot the adapter that it had just loaded") from error

    def leave_out(self, replica: Replica, why: str) -> None:
        """Give a server no further groups until it comes back, and ask its groups of others."""
        with self._changed:
            if not replica.serves:
                return
            replica.why_out = why
            replica.return_pause = 1.0
            replica.return_at = time.monotonic() + replica.return_pause
            replica.load = None
            calls = list(replica.calls)
            self._changed.notify_all()
        log.warning("vLLM at %s is left out: %s", replica.url, why)
        for call in calls:
            call.cut()

    def take_back(self, replica: Replica) -> None:
        """Give a server groups again."""
        with self._changed:
            if replica.serves:
                return
            replica.why_out, replica.failures, replica.resting_until = "", 0, 0.0
            replica.heard_at = time.monotonic()
            self._changed.notify_all()
        log.warning("vLLM at %s serves again", replica.url)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Look at the servers' queues, and after those that are left out, while the block runs."""
        if not self._watched:
            self._watched = True
            for replica in self.all:
                threading.Thread(target=self._watch, args=(replica,), name="vllm-watch", daemon=True).start()
        now = time.monotonic()
        for replica in self.all:
            replica.heard_at = now  # Nobody has asked since the last block.
        self._working.set()
        try:
            yield
        finally:
            self._working.clear()

    def close(self) -> None:
        """End the watching threads."""
        self._closed = True
        self._working.set()

    def _take(self, candidates: int, deadline: float | None, last: TransientError | None) -> tuple[Replica, Call]:
        """Wait for a server with room, and return it with a call that counts as one of its groups."""
        with self._changed:
            while True:
                now = time.monotonic()
                if any(replica.serves for replica in self.all):
                    free = [replica for replica in self.all if replica.serves and replica.has_room(now)]
                    if free:
                        self._turn += 1  # Equal queues are taken in turn.
                        chosen = min(
                            enumerate(free),
                            key=lambda each: (*each[1].queue(candidates), (each[0] + self._turn) % len(free)),
                        )[1]
                        call = Call()
                        chosen.calls.add(call)
                        chosen.sent += candidates
                        return chosen, call
                else:
                    deadline = deadline or now + self._settings.retry_seconds_max
                    if now > deadline:
                        why = "; ".join(f"{replica.url}: {replica.why_out}" for replica in self.all)
                        raise TransientError(f"no vLLM server of {len(self.all)} serves ({why})") from last
                self._changed.wait(LOOK_SECONDS)

    def _give_back(self, replica: Replica, call: Call) -> None:
        with self._changed:
            replica.calls.discard(call)
            self._changed.notify_all()

    def _failed(self, replica: Replica, error: TransientError) -> None:
        """Make room at a server that has none, and leave out one that is gone."""
        if len(self.all) == 1 or not replica.serves:
            return
        if isinstance(error, OverloadedError):
            with self._changed:
                replica.window.refused()
                replica.failures += 1
                pause = min(BACK_OFF_FIRST_SECONDS * 2.0**replica.failures, BACK_OFF_SECONDS_MAX)
                replica.resting_until = time.monotonic() + max(pause, error.retry_after_seconds)
            if replica.failures < FAILURES_MAX:
                return
        self.leave_out(replica, str(error))

    def _watch(self, replica: Replica) -> None:
        """Keep one server's load up to date while there is work, and bring it back after it was left out."""
        while not self._closed:
            self._working.wait()
            if replica.serves:
                self._look(replica)
            elif time.monotonic() >= replica.return_at:
                self._bring_back(replica)
            time.sleep(LOOK_SECONDS)

    def _look(self, replica: Replica) -> None:
        try:
            load = read_load(replica.client.metrics(timeout_seconds=LOOK_TIMEOUT_SECONDS))
        except VllmError:
            load = None  # It answers, but not with metrics: its queue is what we have sent.
        except TransientError as error:
            silent = time.monotonic() - replica.heard_at
            if silent > self._settings.lease_seconds and len(self.serving) > 1:
                self.leave_out(replica, f"it has not answered for {silent:.0f} s ({error})")
            return
        with self._changed:
            replica.heard_at = time.monotonic()
            replica.load, replica.sent = load, 0
            replica.window.heard(load)
            self._changed.notify_all()

    def _bring_back(self, replica: Replica) -> None:
        with suppress(TransientError):
            try:
                self.prepare(replica)
            except VllmError as error:
                log.error("vLLM at %s stays left out: %s", replica.url, error)
            else:
                self.take_back(replica)
                return
        replica.return_pause = min(replica.return_pause * 2, RETURN_PAUSE_SECONDS_MAX)
        replica.return_at = time.monotonic() + replica.return_pause
