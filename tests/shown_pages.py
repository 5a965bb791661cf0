"""Pages of a home for tests: a run in its ledger, and `searchloop ui` as its users start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from infra.app.home import Home
from storage.ledger import LEDGER
from storage.sink import Sink
from streams.events import Event
from streams.records import Received
from streams.topics import BY_EVENT
from tests.commands import ROOT, command
from tests.stored_events import generation, policy, record, request, reward, update, version

TOKEN = "the-token-of-the-tests"
VILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & [red]bold[/red] \u202egnirts'


def write_run(home: Path, records: list[Received], *, run: str = "demo") -> Path:
    """Write a run's records into its ledger, and return its folder."""
    folder = Home(home).runs / run
    with Sink(folder / LEDGER) as sink:
        sink.write(records)
    return folder


def in_log_order(events: list[Event]) -> list[Received]:
    """Return events as records, with offsets that rise in each topic."""
    offsets: dict[str, int] = {}
    found = []
    for event in events:
        kind = BY_EVENT[type(event)].kind
        found.append(record(event, offsets.get(kind, 0)))
        offsets[kind] = offsets.get(kind, 0) + 1
    return found


def whole_run(groups: int = 12, *, query: str = "") -> list[Received]:
    """Return a run in which every four groups give one update, so group `n` is written by version `n // 4`."""
    events: list[Event] = [version(0)]
    for number in range(groups):
        step = number // 4
        written, judged = generation(number, step=step), reward(number, step=step)
        if query:
            asked = msgspec.structs.replace(request(number), query=query)
            written = msgspec.structs.replace(written, request=asked)
            judged = msgspec.structs.replace(
                judged, generation=msgspec.structs.replace(judged.generation, request=asked)
            )
        events += [written.request, written, judged]
        if number % 4 == 3:
            made = update(step + 1, range(4 * step, 4 * step + 4), parent=policy(step))
            events += [made, version(step + 1, of=made)]
    return in_log_order(events)


@contextmanager
def shown(home: Path, *, variables: Mapping[str, str] | None = None, port: int = 0) -> Iterator[str]:
    """Run `searchloop ui` on a port, a free one for 0, and give its address without the token."""
    environment = {**os.environ, "SEARCHLOOP_UI__TOKEN": TOKEN, **(variables or {})}
    environment.pop("SEARCHLOOP_SCREENSHOTS", None)  # The tests' own; searchloop knows no such setting.
    process = subprocess.Popen(
        command(home, "ui", "--port", str(port)),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), f"it ended with {process.wait()}"
        yield address.rstrip("/")
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0, "the pages did not end well"
