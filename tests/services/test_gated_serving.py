"""The gate before serving, on real services: nobody before it, routes, and damaged or doubled promotion."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.promotion.held_out import GateVerdict
from infra.promotion.promoting import admit, ask_log, by_person, following, look, needs_gate, start
from infra.promotion.state import RAMP_FILE, ROUTES_FOLDER, read_ramp, read_routes, write_routes
from search_env.serving.routing import Part, RouteAction, Routes
from services.local import Endpoints
from streams.clock import now_ms
from streams.errors import SettingsError
from tests.kafka_cluster import wait_until
from tests.services.test_promotion import RAMP, Shop
from tests.services.test_serving import VERSION, in_kafka, serving, shop  # noqa: F401 - a fixture.

RAW = ""


def routes(action: RouteAction, explored: RouteAction, **changes: Any) -> Routes:
    parts = {"short": Part(action=action, explored=explored)}
    given: dict[str, Any] = {"version": VERSION, "by": "words", "top": 2, "parts": parts, "evidence": {"queries": 71.0}}
    return Routes(**(given | changes))


def verdict(admitted: bool, **changes: Any) -> GateVerdict:
    figures = {"helped": 0.01 if admitted else -0.2, "queries": 71.0}
    return GateVerdict(admitted, "held-out nDCG@10 …", figures, routes("helped", "helped", **changes))


def test_nobody_is_served_before_the_gate_and_each_search_logs_its_route(
    shop: tuple[Path, str],  # noqa: F811
    local_services: Endpoints,
) -> None:
    home, index = shop
    live = Home(home).run(index)
    options = {"SEARCHLOOP_SERVE__UNGATED": "false", "SEARCHLOOP_SERVE__EPSILON": "1"}
    with serving(home, index, local_services, **options) as server:
        before = [server.get("/search?query=mug")[1] for _ in range(10)]
        assert {(each["policy"], each["action_propensity"]) for each in before} == {(RAW, 1.0)}
        assert before[0]["routes"] == {}
        write_routes(live, routes("raw", "helped"))
        wait_until(lambda: bool(server.get("/search?query=mug")[1]["routes"]), "the routes to be read")
        shown = [server.get("/search?query=mug")[1] for _ in range(30)]
        assert {(each["policy"], each["action_propensity"]) for each in shown} == {(RAW, 0.5), (VERSION, 0.5)}
        assert shown[0]["routes"] == {VERSION: "short: helped"}
        write_routes(live, routes("below", "below"))

        def lower() -> bool:
            return bool(server.get("/search?query=mug&size=6")[1]["routes"] == {VERSION: "short: below"})

        wait_until(lower, "the new routes")
        raw = [hit["id"] for hit in server.get("/search?query=mug&size=6&helped=raw")[1]["hits"]]
        both = [server.get("/search?query=mug&size=6")[1] for _ in range(30)]
        (long,) = {tuple(hit["id"] for hit in each["hits"]) for each in both if each["policy"] == VERSION}
        assert list(long[:2]) == raw[:2], "the first raw results stay"
        assert len(long) == 6 > len(raw), "the version finds more"
        assert server.get("/search?query=mug&size=2")[1]["routes"] == {VERSION: "short: raw"}
        (live / ROUTES_FOLDER / f"{VERSION}.json").write_text("{")
        wait_until(lambda: bool(server.get("/ready")[1]["trouble"]), "the damaged routes to be told")
        assert server.get("/search?query=mug&size=6")[1]["routes"] == {VERSION: "short: below"}, "kept as they were"
    logged = {each.impression_id: each for each in in_kafka(local_services, index, "impressions")}
    for each in [*before, *shown, *both]:
        impression = logged[each["query_id"]]
        assert (impression.routes or {}) == each["routes"]
        assert impression.offered == ({RAW: 0.5, VERSION: 0.5} if each["routes"] else {RAW: 1.0})


def test_while_a_ramp_is_under_way_no_list_is_interleaved(
    shop: tuple[Path, str],  # noqa: F811
    local_services: Endpoints,
) -> None:
    home, index = shop
    live = Home(home).run(index)
    write_routes(live, routes("helped", "helped"))
    options = {"SEARCHLOOP_SERVE__UNGATED": "false", "SEARCHLOOP_SERVE__INTERLEAVE": "1"}
    with serving(home, index, local_services, **options) as server:
        assert server.get("/search?query=mug")[1]["interleaved"] == [RAW, VERSION]
        state = f'{{"version":"{VERSION}","share":0.5,"since_ms":1,"status":"ramping"}}'
        (live / RAMP_FILE).write_text(state)
        wait_until(lambda: server.get("/search?query=mug")[1]["interleaved"] == [], "the ramp")
        found = [server.get(f"/search?query=mug&client_id=c{n}")[1] for n in range(20)]
        assert {each["action_propensity"] for each in found} == {0.5}


def test_a_version_goes_from_the_held_out_gate_to_the_log_and_a_roll_back_withdraws_it(
    tmp_path: Path, local_services: Endpoints, unique_name: str
) -> None:
    app, run = App(Home(tmp_path), settings=Settings(ramp=RAMP), endpoints=local_services), unique_name
    folder = app.home.run(run)
    assert needs_gate(app, run, VERSION)
    with pytest.raises(SettingsError, match="has not passed its held-out gate"):
        start(app, run, VERSION)
    assert admit(app, run, verdict(False)).kind == "refuse"
    assert read_routes(folder, VERSION) is None
    admitted = admit(app, run, verdict(True))
    assert (admitted.kind, admitted.share, admitted.evidence["queries"]) == ("admit", 0.05, 71.0)
    people = Shop(app, run)
    people.searches(10, share=0.3, raw=0.3, version=0.5, at_ms=1)
    assert not ask_log(app, run, VERSION).decided
    people.searches(1_500, share=0.3, raw=0.3, version=0.5, at_ms=1)
    begun = start(app, run, VERSION)
    assert (begun.kind, "routes: short: helped" in begun.reason) == ("start", True)
    kept = read_routes(folder, VERSION)
    assert kept is not None and set(kept.parts["short"].seen) == {"log"}

    # A clock that was set back holds nothing up in silence.
    ramp = read_ramp(folder)
    assert ramp is not None
    (folder / RAMP_FILE).write_bytes(msgspec.json.encode(msgspec.structs.replace(ramp, since_ms=now_ms() + 3_600_000)))
    assert "clock, which was set back" in look(app, run)[1].reason
    said = f"another .* follows it .process {os.getpid()} "
    with following(app, run), pytest.raises(SettingsError, match=said), following(app, run):
        pass
    by_person(app, run, "roll back")
    assert read_routes(folder, VERSION).status == "withdrawn"  # type: ignore[union-attr]
    assert needs_gate(app, run, VERSION)
    kinds = [each.kind for each in in_kafka(local_services, run, "decisions")]
    assert kinds == ["refuse", "admit", "start", "roll back"]


@pytest.mark.parametrize("state", ["{", '{"version":"1-a-000001","share":7,"since_ms":1}', '{"share":0.5}'])
def test_a_damaged_or_impossible_state_is_told_with_what_to_do(state: str, tmp_path: Path) -> None:
    (tmp_path / RAMP_FILE).write_text(state)
    with pytest.raises(SettingsError, match=r"Servers keep the state that they have\. Look at the last decision"):
        read_ramp(tmp_path)
    (tmp_path / ROUTES_FOLDER).mkdir()
    path = tmp_path / ROUTES_FOLDER / f"{VERSION}.json"
    path.write_text(state)
    with pytest.raises(SettingsError, match="Servers keep the routes that they have"):
        read_routes(tmp_path, VERSION)
    path.write_bytes(msgspec.json.encode(routes("helped", "helped", version="1-other-000001")))
    with pytest.raises(SettingsError, match=r"expected the routes of 1-abcdef-000004, got those of '1-other-000001'"):
        read_routes(tmp_path, VERSION)
