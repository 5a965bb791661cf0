"""Promotion that is killed between its two writes, forged, hurried, or asked twice: people keep what was decided."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.promotion.promoting import admit, ask_log, by_person, look, needs_gate, start, withdraw
from infra.promotion.state import RAMP_FILE, read_ramp, read_routes, write_routes
from search_env.serving.ramp import Ramp
from services.local import Endpoints
from streams.clock import now_ms
from streams.errors import SettingsError
from tests.commands import ROOT, command, environment
from tests.services.test_gated_serving import verdict
from tests.services.test_promotion import RAMP, Shop
from tests.services.test_serving import VERSION, in_kafka

OTHER = "1-other-000001"


@pytest.fixture
def live(tmp_path: Path, local_services: Endpoints, unique_name: str) -> tuple[App, str]:
    """Give an app whose versions need their gate, and the name of a live run."""
    return App(Home(tmp_path), settings=Settings(ramp=RAMP), endpoints=local_services), unique_name


def begun(live: tuple[App, str], *, raw: float = 0.3, version: float = 0.5) -> Shop:
    """Admit a version, let people see it, and start its ramp."""
    app, run = live
    people = Shop(app, run)
    admit(app, run, verdict(True))
    people.searches(1_500, share=0.3, raw=raw, version=version, at_ms=1)
    start(app, run, VERSION)
    return people


def serving(live: tuple[App, str]) -> Ramp:
    """Begin a ramp and follow it to its end, through both stages; return its state."""
    app, run = live
    people = begun(live)
    for _ in range(2):
        ramp = read_ramp(app.home.run(run))
        assert ramp is not None
        people.searches(800, share=ramp.share, raw=0.3, version=0.5, at_ms=ramp.since_ms + 1)
        ramp, _ = look(app, run)
    return ramp


def kept(live: tuple[App, str], ramp: Ramp) -> None:
    app, run = live
    (app.home.run(run) / RAMP_FILE).write_bytes(msgspec.json.encode(ramp))


def test_a_roll_back_that_was_killed_before_it_was_kept_is_finished_by_the_next_look(
    live: tuple[App, str], local_services: Endpoints
) -> None:
    app, run = live
    begun(live)
    folder = app.home.run(run)
    ramp, routes = read_ramp(folder), read_routes(folder, VERSION)
    assert ramp is not None and routes is not None
    for killed in ("hold", "roll back"):
        by_person(app, run, killed)  # type: ignore[arg-type]
        kept(live, ramp)
        write_routes(folder, routes)
        after, step = look(app, run)
        assert (after.status, step.reason) == (
            {"hold": "held", "roll back": "rolled back"}[killed],
            f"finished what was decided before: {killed}",
        )
        if killed == "hold":
            by_person(app, run, "go on")
    assert read_routes(folder, VERSION).status == "withdrawn"  # type: ignore[union-attr]
    kept(live, ramp)
    again = by_person(app, run, "roll back")
    assert (again.kind, "finished" in again.reason) == ("roll back", True)
    assert read_ramp(folder).status == "rolled back"  # type: ignore[union-attr]
    kinds = [each.kind for each in in_kafka(local_services, run, "decisions")]
    assert kinds == ["admit", "start", "hold", "start", "roll back"], "nothing was decided twice"


def test_routes_that_a_killed_roll_back_left_admitted_open_no_gate(live: tuple[App, str]) -> None:
    app, run = live
    begun(live)
    routes = read_routes(app.home.run(run), VERSION)
    assert routes is not None
    by_person(app, run, "roll back")
    write_routes(app.home.run(run), routes)
    assert needs_gate(app, run, VERSION)
    with pytest.raises(SettingsError, match="has not passed its held-out gate"):
        start(app, run, VERSION)
    write_routes(app.home.run(run), msgspec.structs.replace(routes, made_at_ms=now_ms() + 1))
    assert not needs_gate(app, run, VERSION)


def test_a_forged_version_beside_the_ramp_is_told_and_nobody_is_brought_to_it(live: tuple[App, str]) -> None:
    app, run = live
    begun(live)
    ramp = read_ramp(app.home.run(run))
    assert ramp is not None
    forged = msgspec.structs.replace(ramp, before=OTHER)
    kept(live, forged)
    with pytest.raises(SettingsError, match=f"people get version '{OTHER}' beside .* no decision in the log finished"):
        look(app, run)
    kept(live, msgspec.structs.replace(ramp, version=OTHER, status="serves", share=1.0))
    with pytest.raises(SettingsError, match="no decision in the log says so"):
        start(app, run, VERSION)


def test_a_version_that_serves_is_not_begun_again_by_the_same_command(
    live: tuple[App, str], local_services: Endpoints
) -> None:
    app, run = live
    assert serving(live).status == "serves"
    before = (app.home.run(run) / RAMP_FILE).read_bytes()
    words = command(app.home.root, "promote", VERSION, "--run", run)
    done = subprocess.run(
        words, cwd=ROOT, env=environment(local_services), capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, "serves at 100%" in done.stdout) == (0, True), done.stderr
    with pytest.raises(SettingsError, match="serves already"):
        start(app, run, VERSION)
    assert (app.home.run(run) / RAMP_FILE).read_bytes() == before


def test_a_version_of_which_the_log_proves_a_loss_is_explored_no_more(live: tuple[App, str]) -> None:
    app, run = live
    people = Shop(app, run)
    admit(app, run, verdict(True))
    people.searches(1_500, share=0.3, raw=0.5, version=0.2, at_ms=1)
    assert start(app, run, VERSION).kind == "refuse"
    assert read_routes(app.home.run(run), VERSION).status == "withdrawn"  # type: ignore[union-attr]


def test_a_person_takes_back_a_version_that_is_only_explored(live: tuple[App, str], local_services: Endpoints) -> None:
    app, run = live
    Shop(app, run).searches(10, share=0.3, raw=0.3, version=0.3, at_ms=1)
    with pytest.raises(SettingsError, match="is shown to nobody"):
        withdraw(app, run, VERSION)
    admit(app, run, verdict(True))
    assert withdraw(app, run, VERSION).kind == "roll back"
    assert read_routes(app.home.run(run), VERSION).status == "withdrawn"  # type: ignore[union-attr]
    assert read_ramp(app.home.run(run)) is None
    assert [each.kind for each in in_kafka(local_services, run, "decisions")] == ["admit", "roll back"]
    assert needs_gate(app, run, VERSION)


def test_what_people_get_beside_a_version_that_was_rolled_back_can_be_taken_back_too(live: tuple[App, str]) -> None:
    app, run = live
    ramp = serving(live)
    assert (ramp.version, ramp.status) == (VERSION, "serves")
    # A newer one is tried, and rolled back.
    decide = Ramp(version=OTHER, before=VERSION, share=0.0, since_ms=ramp.since_ms, status="rolled back")
    admit(app, run, verdict(True, version=OTHER))
    withdraw(app, run, OTHER)
    kept(live, decide)
    with pytest.raises(SettingsError, match=f"promote {VERSION} --roll-back"):
        by_person(app, run, "roll back")
    withdraw(app, run, VERSION)
    after = read_ramp(app.home.run(run))
    assert after is not None and (after.version, after.before) == (OTHER, "")
    assert read_routes(app.home.run(run), VERSION).status == "withdrawn"  # type: ignore[union-attr]
    with pytest.raises(SettingsError, match="is shown to nobody"):
        withdraw(app, run, VERSION)


def test_a_version_that_is_taken_back_while_the_log_is_asked_does_not_begin_its_ramp(live: tuple[App, str]) -> None:
    app, run = live
    people = Shop(app, run)
    admit(app, run, verdict(True))
    people.searches(1_500, share=0.3, raw=0.3, version=0.5, at_ms=1)
    spoken = ask_log(app, run, VERSION)
    assert spoken.opened
    withdraw(app, run, VERSION)
    with pytest.raises(SettingsError, match="has not passed its held-out gate"):
        start(app, run, VERSION, spoken=spoken)
    assert read_ramp(app.home.run(run)) is None
    assert read_routes(app.home.run(run), VERSION).status == "withdrawn"  # type: ignore[union-attr]
