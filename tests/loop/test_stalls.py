"""A run whose worker stands still: what its log, `status`, `watch` and the alerts say of it, and that it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable

import msgspec

from infra.app.app import App
from infra.recipes.recipe import Prepared
from infra.runs.living import living_workers
from infra.runs.standing import run_states
from services.local import Endpoints
from tests.commands import command, environment, interrupt, start
from tests.loop.conftest import SMALL

Make = Callable[..., Prepared]
STALL_SECONDS = 3
DEADLINE_SECONDS = 120.0


def test_a_frozen_worker_is_named_in_the_log_in_status_in_watch_and_in_an_alert_until_it_goes_on(
    local_services: Endpoints, small_world: App, new_run: Make
) -> None:
    settings = msgspec.structs.replace(
        SMALL, delivery=msgspec.structs.replace(SMALL.delivery, stall_seconds=STALL_SECONDS)
    )
    home, run = small_world.home, new_run(settings, updates=5000).run
    recipe = home.root / "stalls.toml"
    recipe.write_text("")
    variables = environment(local_services, settings)
    train = ["train", "--recipe", str(recipe), "--index", "small", "--run", run, "--updates", "5000"]
    process = start(home.root, *train, variables=variables, until="updates: ")
    kafka = small_world.settings.kafka

    def state() -> str:
        return run_states(home, kafka, [run])[0].state

    def until(wanted: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := state()) != wanted:
            assert time.monotonic() < deadline, f"expected {wanted}, it is {found}"

    def call(*arguments: str) -> list[dict[str, object]]:
        done = subprocess.run(command(home.root, *arguments), env=variables, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    (pid,) = [pid for name, role, pid in living_workers(home.runs) if (name, role) == (run, "environment")]
    os.kill(pid, signal.SIGSTOP)
    try:
        until("stalled")
        ((rows),) = call("status", "--json")
        (row,) = [each for each in rows if each["role"] == "run" and each["run"] == run]  # type: ignore[index, union-attr]
        assert row["health"] == "stalled"  # type: ignore[index]
        waits_for = str(row["waiting_for"])  # type: ignore[index]
        assert "the environment: " in waits_for and f"its process {pid} is stopped by a signal" in waits_for
        (view,) = call("watch", "--run", run, "--once", "--json")
        assert view["state"]["state"] == "stalled"  # type: ignore[index]
        (alert,) = [each for each in view["alerts"] if each["name"] == "stall"]  # type: ignore[attr-defined]
        assert "no progress for" in alert["what"] and "the environment: " in alert["what"]
    finally:
        os.kill(pid, signal.SIGCONT)
    until("running")
    status, _ = interrupt(process)
    assert status == 130
    until("stopped")
