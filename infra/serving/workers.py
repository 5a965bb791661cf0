"""Several server processes behind one port: the parent holds the port, starts each again that dies, and drains all.

The parent binds the address, so nobody else can have it while it lives, and hands the listening socket to each worker.
It accepts nothing itself. A connection that waits when a worker dies is taken by another one, or by the next life of
the dead one; only the requests that the worker had in hand fail. Its acknowledged events lie in its spool, which the
next life sends. Each worker holds one end of a pair of sockets: by it the worker tells that it answers, and sees the
parent's end, after which it drains, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from streams.errors import SearchloopError

DEATHS_MAX = 5
WITHIN_SECONDS = 60.0
PAUSE_SECONDS = 0.2
KILL_SECONDS = 5.0  # After the time to drain.
READY = b"r"

Say = Callable[[str], None]


class WorkerEnded(SearchloopError, RuntimeError):
    """A server process that cannot start, or dies again and again."""


class Workers:
    """Keeps a number of processes that serve one socket, until it is told to stop."""

    def __init__(
        self,
        door: socket.socket,
        command: Callable[[int, int, int], Sequence[str]],
        *,
        environment: dict[str, str],
        secrets: bytes,
        drain_seconds: float,
        say: Say,
    ) -> None:
        """command: gives a worker's command from its number and two descriptors: of the door, and of the pair.

        secrets: the first line on a worker's standard input. say: told of each death and return.
        """
        self._door = door
        self._command = command
        self._environment = environment
        self._secrets = secrets
        self._drain_seconds = drain_seconds
        self._say = say
        self._living: dict[int, asyncio.subprocess.Process] = {}
        self._draining = False

    async def keep(self, count: int, *, ready: Callable[[], None]) -> None:
        """Keep `count` workers until SIGTERM or SIGINT; then drain them.

        ready: called when all of them answer for the first time. Raises WorkerEnded if one cannot be kept; the others
        are drained before.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        answering = [asyncio.Event() for _ in range(count)]
        keeping = [asyncio.create_task(self._keep_one(n, answering[n - 1])) for n in range(1, count + 1)]
        stopping = asyncio.create_task(ended.wait())
        greeting = asyncio.create_task(_when_all(answering, ready))
        try:
            done, _ = await asyncio.wait([*keeping, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            greeting.cancel()
            await self._drain(keeping)
        for task in done - {stopping}:
            task.result()

    async def _keep_one(self, number: int, answers: asyncio.Event) -> None:
        """Start one worker, and start it again whenever it dies."""
        deaths: deque[float] = deque()
        while not self._draining:
            was_ready, status = await self._live(number, answers, again=bool(deaths))
            if self._draining:
                return
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            if not was_ready and status >= 0:
                raise WorkerEnded(
                    f"server process {number} ended {how} before it answered. Its message stands above; mend that, "
                    "and start again"
                )
            deaths.append(time.monotonic())
            while deaths[0] < deaths[-1] - WITHIN_SECONDS:
                deaths.popleft()
            if len(deaths) > DEATHS_MAX:
                raise WorkerEnded(
                    f"server process {number} died {len(deaths)} times within {WITHIN_SECONDS:.0f} s, last {how}. "
                    "Look at its messages and at the machine's memory, and start again"
                )
            self._say(f"server process {number} died {how}; it starts again")
            await asyncio.sleep(PAUSE_SECONDS * 2 ** (len(deaths) - 1))

    async def _live(self, number: int, answers: asyncio.Event, *, again: bool) -> tuple[bool, int]:
        """Run a worker until its end; return whether it has answered, and its status (minus the signal)."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *self._command(number, self._door.fileno(), theirs.fileno()),
                    env=self._environment,
                    stdin=asyncio.subprocess.PIPE,
                    pass_fds=(self._door.fileno(), theirs.fileno()),
                )
            self._living[number] = process
            if self._draining:  # The signal came while the process was being made.
                process.terminate()
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.write(self._secrets)
                process.stdin.close()
            said = b""
            with contextlib.suppress(OSError):
                said = await asyncio.get_running_loop().sock_recv(ours, 1)
            if said == READY:
                answers.set()
                if again:
                    self._say(f"server process {number} answers again")
            status = await process.wait()
            del self._living[number]
        return said == READY, status

    async def _drain(self, keeping: Sequence[Awaitable[None]]) -> None:
        """Let all workers answer what they have in hand; kill those that need too long."""
        self._draining = True
        self._door.close()
        for process in list(self._living.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        waiting = asyncio.gather(*(process.wait() for process in list(self._living.values())))
        try:
            await asyncio.wait_for(waiting, self._drain_seconds + KILL_SECONDS)
        except TimeoutError:
            for process in list(self._living.values()):
                self._say(f"a server process did not end within {self._drain_seconds + KILL_SECONDS:g} s; it is killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        await asyncio.gather(*keeping, return_exceptions=True)


async def _when_all(events: Sequence[asyncio.Event], ready: Callable[[], None]) -> None:
    for event in events:
        await event.wait()
    ready()
