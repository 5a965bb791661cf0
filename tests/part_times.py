"""Where a worker's processor time goes: Kafka's client, the codec, DuckDB, and all the rest.

For benchmarks: clocks are put around the functions of those three parts from outside, and the product knows nothing of
them. A function's time is its thread's processor time without that of a timed function which it calls (a `send` holds
an `encode`), and waiting costs nothing. The client's own threads count as Kafka, from beginning to end.

Run as a script it is `searchloop` with these clocks: python tests/part_times.py FILE VERB…
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import infra.runs.sinks
import infra.runs.workers
import learner.workers
import search_env.workers

assert infra and learner and search_env  # Imported so that every name which holds a timed function is there.

SNAPSHOT_SECONDS = 0.25
OURS = ("streams", "learner", "search_env", "storage", "services", "infra")
FUNCTIONS = {
    "codec": (
        "streams.codec:encode_event",
        "streams.codec:decode",
        "streams.codec:content_sha256",
        "storage.entries:read_entry",
    ),
    "duckdb": (
        "storage.ledger:open_ledger",
        "storage.ledger:build_batch",
        "storage.ledger:store_batch",
        "storage.archive:close_segments",
    ),
    "kafka": ("streams.delivery:poll", "streams.delivery:commit"),
}
METHODS = {
    "kafka": (
        "streams.delivery:Outbox.send",
        "streams.delivery:Outbox.flush",
        *(f"kafka:KafkaConsumer.{name}" for name in ("poll", "commit", "position", "assignment", "pause", "resume")),
        *(f"kafka:KafkaProducer.{name}" for name in ("send", "flush", "close")),
    ),
}
THREADS = ("kafka.net.selector:NetworkSelector.run_forever", "kafka.producer.sender:Sender.run")
PARTS = ("kafka", "codec", "duckdb")


class PartTimes:
    """Processor seconds of this process by part, while it runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._local = threading.local()
        self._threads: dict[int, int] = {}  # ident → clock

    def install(self) -> None:
        """Put the clocks around the functions, methods and threads."""
        for part, names in FUNCTIONS.items():
            for name in names:
                owner, attribute = _found(name)
                original = getattr(owner, attribute)
                timed = self._timed(part, original)
                for module in [module for key, module in sys.modules.items() if key.partition(".")[0] in OURS]:
                    for key in [key for key, value in vars(module).items() if value is original]:
                        setattr(module, key, timed)
        for part, names in METHODS.items():
            for name in names:
                owner, attribute = _found(name)
                setattr(owner, attribute, self._timed(part, getattr(owner, attribute)))
        for name in THREADS:
            owner, attribute = _found(name)
            setattr(owner, attribute, self._thread(getattr(owner, attribute)))

    def write_until_exit(self, path: Path) -> None:
        """Append a line of JSON every `SNAPSHOT_SECONDS`: {"time", "total", and seconds by part}."""

        def write() -> None:
            with path.open("a") as file:
                while True:
                    file.write(json.dumps(self.snapshot()) + "\n")
                    file.flush()
                    time.sleep(SNAPSHOT_SECONDS)

        threading.Thread(target=write, name="part-times", daemon=True).start()

    def snapshot(self) -> dict[str, float]:
        """Return the seconds until now."""
        with self._lock:
            seconds = dict(self._seconds)
            seconds["kafka"] += sum(time.clock_gettime(clock) for clock in self._threads.values())
        return {"time": time.time(), "total": time.process_time(), **seconds}

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            if threading.get_ident() in self._threads:  # Counted whole.
                return function(*args, **options)
            began, inner = time.thread_time(), getattr(self._local, "inner", 0.0)
            self._local.inner = 0.0
            try:
                return function(*args, **options)
            finally:
                whole = time.thread_time() - began
                with self._lock:
                    self._seconds[part] += whole - self._local.inner
                self._local.inner = inner + whole

        return timed

    def _thread(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def counted(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                return run(*args, **options)
            ident = threading.get_ident()
            with self._lock:
                self._threads[ident] = time.pthread_getcpuclockid(ident)
            try:
                return run(*args, **options)
            finally:
                with self._lock:
                    del self._threads[ident]
                    self._seconds["kafka"] += time.thread_time()

        return counted


def _found(name: str) -> tuple[Any, str]:
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *owners, attribute = path.split(".")
    return functools.reduce(getattr, owners, owner), attribute


def main() -> None:
    """Be `searchloop`, and write where the time goes."""
    times = PartTimes()
    times.install()
    times.write_until_exit(Path(sys.argv[1]))
    sys.argv = ["searchloop", *sys.argv[2:]]
    from infra.cli import main as searchloop

    searchloop()


if __name__ == "__main__":
    main()
