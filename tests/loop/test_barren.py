"""A run whose requests all end without a reward: it ends, with the reason, and goes on once the cause is mended."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from infra.app.app import App
from infra.app.run_settings import read_run_settings, write_run_settings
from infra.recipes.recipe import Prepared
from infra.runs.barren import BarrenRunError
from infra.runs.training import stream
from streams.events import DeadLetter, PolicyVersion
from streams.ranges import read_events
from tests.loop.conftest import SMALL, quiet


def test_a_run_whose_prompts_all_leave_no_room_ends_with_the_reason_after_one_epoch(
    small_world: App, new_run: Callable[..., Prepared]
) -> None:
    room = SMALL.policy.tiny.positions_max
    settings = msgspec.structs.replace(SMALL, generation=msgspec.structs.replace(SMALL.generation, tokens_max=room - 1))
    prepared = new_run(settings)
    asked = 6 * settings.batch.groups  # As many as are open at once.
    prepared = msgspec.structs.replace(prepared, asked=prepared.asked[:asked])
    app = small_world.with_settings(settings)
    with pytest.raises(BarrenRunError) as ended:
        stream(app, prepared, updates=2, seed=0, report=quiet)
    said = str(ended.value)
    assert f"got none for the last {asked} requests" in said and "expected a prompt of 1 to 1 tokens" in said, said
    letters = read_events(app.settings.kafka, prepared.run, DeadLetter)
    assert asked <= len(letters) <= 2 * asked
    assert not any(each.policy.step for each in read_events(app.settings.kafka, prepared.run, PolicyVersion))

    # The same run with its cause mended learns: what was buried before the call does not count against it.
    run_dir = app.home.run(prepared.run)
    write_run_settings(run_dir, msgspec.structs.replace(read_run_settings(run_dir), settings=SMALL))
    summary = stream(small_world, prepared, updates=2, seed=0, report=quiet)
    assert summary.updates == 2
