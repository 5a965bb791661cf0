"""A server looks for what is new: one damaged file holds back nothing else, and no withdrawal."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from infra.app.home import Home
from infra.promotion.state import RAMP_FILE, ROUTES_FOLDER, write_routes
from infra.serving.policies import Policies
from infra.serving.tail import TailStart
from search_env.serving.ramp import Ramp
from search_env.serving.routing import Part, Routes
from search_env.serving.settings import ServeSettings

VERSION, OTHER = "1-new-000001", "1-other-000002"


def routes(version: str, **changes: object) -> Routes:
    given = Routes(version=version, by="all", top=10, parts={"all": Part(action="helped", explored="helped")})
    return msgspec.structs.replace(given, **changes)


def test_damaged_routes_of_one_version_hold_back_neither_a_withdrawal_nor_a_new_version_of_routes(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    live = home.run("live")
    start = TailStart(home=str(tmp_path), index="i", run="live", policy="none", variables={})
    policies = Policies(start, live, live, "i-1", ServeSettings())
    write_routes(live, routes(VERSION))
    write_routes(live, routes(OTHER))
    asyncio.run(policies.look())
    assert (sorted(policies.routers), policies.trouble) == ([VERSION, OTHER], "")
    damaged = live / ROUTES_FOLDER / f"{OTHER}.json"
    damaged.write_text("{")
    write_routes(live, routes(VERSION, status="withdrawn"))
    for _ in range(2):  # It is told as long as it is damaged.
        asyncio.run(policies.look())
        assert policies.routers[VERSION].routes.status == "withdrawn"
        assert policies.routers[OTHER].routes.status == "admitted", "kept as it was"
        assert str(damaged) in policies.trouble
    write_routes(live, routes(OTHER, top=3))
    os.utime(damaged, ns=(1, 1))  # Even an older time is another one.
    asyncio.run(policies.look())
    assert (policies.routers[OTHER].routes.top, policies.trouble) == (3, "")


def test_a_damaged_ramp_keeps_the_state_and_new_routes_are_loaded_all_the_same(tmp_path: Path) -> None:
    live = Home(tmp_path).run("live")
    start = TailStart(home=str(tmp_path), index="i", run="live", policy="none", variables={})
    policies = Policies(start, live, live, "i-1", ServeSettings())
    write_routes(live, routes(VERSION))
    ramp = Ramp(version=VERSION, share=0.05, since_ms=1)
    (live / RAMP_FILE).write_bytes(msgspec.json.encode(ramp))
    asyncio.run(policies.look())
    (live / RAMP_FILE).write_bytes(b"\x00\xff")
    write_routes(live, routes(VERSION, status="withdrawn"))
    asyncio.run(policies.look())
    assert policies.ramp == ramp
    assert policies.routers[VERSION].routes.status == "withdrawn"
    assert "expected the state of a ramp" in policies.trouble
