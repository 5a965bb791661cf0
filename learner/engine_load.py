"""What a vLLM engine says about its own queue, and how many groups a generator may have there at once.

The window grows by one group for each window of answers, and shrinks by a share when the queue is long or the server
refuses: additive increase, multiplicative decrease (Chiu and Jain, 1989). Generators that know nothing of each other so
come to equal shares of a server, and its queue stays short.
"""

from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

# Names of vLLM 0.32; a server with several engines has each once for every engine.
WAITING, RUNNING, CACHE = "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"
LONG_QUEUE_SHARE, REFUSED_SHARE = 0.8, 0.5
CACHE_FULL_SHARE = 0.98  # Beyond it, vLLM takes running candidates out again, and computes them anew later.


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A server's load: candidates that wait, candidates that are written, and the used share of its KV cache."""

    waiting: float
    running: float
    cache_share: float


def read_load(metrics: str) -> EngineLoad | None:
    """Return the load in the text of `/metrics`; None if it does not say how many candidates wait and run."""
    # Only our three of a thousand lines are parsed.
    lines = [line for line in metrics.splitlines() if line.startswith((WAITING, RUNNING, CACHE))]
    found: dict[str, list[float]] = {WAITING: [], RUNNING: [], CACHE: []}
    try:
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if sample.name in found:
                    found[sample.name].append(sample.value)
    except (ValueError, LookupError):  # The parser's own, for lines that are cut off.
        return None
    if not found[WAITING] or not found[RUNNING]:
        return None
    return EngineLoad(
        waiting=sum(found[WAITING]), running=sum(found[RUNNING]), cache_share=max(found[CACHE], default=0.0)
    )


class GroupWindow:
    """The number of groups that one generator may have at one server at once; not thread-safe."""

    def __init__(self, *, groups_max: int, queue_max: int) -> None:
        """groups_max: the largest window, and the first one. queue_max: candidates that may wait at the server."""
        self._groups_max = groups_max
        self._queue_max = queue_max
        self._size = float(groups_max)
        self._is_long = False

    @property
    def groups(self) -> int:
        """Return the whole groups that fit, at least 1."""
        return int(self._size)

    def answered(self, in_flight: int) -> None:
        """Count an answer. in_flight: groups at the server until then; a window that was not full does not grow."""
        if in_flight >= self.groups and not self._is_long:
            self._size = min(self._size + 1 / self._size, float(self._groups_max))

    def refused(self) -> None:
        """Count a refusal for lack of room."""
        self._shrink(REFUSED_SHARE)

    def heard(self, load: EngineLoad | None) -> None:
        """Take what the server says about itself; None: it says nothing, so nothing speaks for a long queue."""
        self._is_long = load is not None and (
            load.waiting > self._queue_max or (load.waiting > 0 and load.cache_share > CACHE_FULL_SHARE)
        )
        if self._is_long:
            self._shrink(LONG_QUEUE_SHARE)

    @property
    def is_closed(self) -> bool:
        """Return whether the server's queue is longer than it may be."""
        return self._is_long

    def _shrink(self, share: float) -> None:
        self._size = max(self._size * share, 1.0)
