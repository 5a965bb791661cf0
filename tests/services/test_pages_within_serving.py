"""The pages within `searchloop serve`, over real services: for their own token alone, and judgments go into the log."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from services.local import Endpoints
from streams.traffic_events import JUDGING
from tests.services.test_serving import VERSION, in_kafka, serving, shop
from tests.shown_pages import TOKEN, whole_run, write_run

__all__ = ["shop"]
SHOP = "the-token-of-the-shop"
SETTINGS = {
    "SEARCHLOOP_SERVE__PAGES": "true",
    "SEARCHLOOP_SERVE__TOKEN": SHOP,
    "SEARCHLOOP_UI__TOKEN": TOKEN,
}


@contextlib.contextmanager
def asked(address: str, path: str, token: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    given = None if body is None else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, given, {"authorization": f"Bearer {token}"})
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def answer(address: str, path: str, token: str, body: Any = None) -> tuple[int, bytes]:
    with asked(address, path, token, body) as found:
        return found.status, found.read()


def test_pages_within_a_server_are_for_their_own_token_and_judge_its_results(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    write_run(home, whole_run(4))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(home, index, local_services, **SETTINGS))
        for path in ("/ui/", "/ui/api/runs", "/ui/static/main.js", "/ui/api/sql"):
            assert answer(server.url, path, SHOP)[0] == 401
        assert answer(server.url, "/search?query=mug", TOKEN)[0] == 401
        assert answer(server.url, "/search?query=mug&log=false", SHOP)[0] == 200
        assert answer(server.url, "/search?query=mug&log=perhaps", SHOP)[0] == 400
        status, page = answer(server.url, "/ui/versions", TOKEN)
        assert status == 200 and b'data-base="/ui"' in page
        status, said = answer(server.url, f"/ui/api/pair?query=mug&version={VERSION}", TOKEN)
        pair = json.loads(said)
        assert status == 200 and not pair["same"]
        ids = {side: [hit["document_id"] for hit in pair[side]] for side in ("left", "right")}
        assert {len(ids["left"]), len(ids["right"])} == {3, 6}
        body = {**{name: pair[name] for name in ("judgment", "query", "version")}, "side": "tie", **ids}
        for _ in range(2):
            assert answer(server.url, "/ui/api/judge", TOKEN, body)[0] == 200
        # A page that listens does not hold the server's end.
        stream = stack.enter_context(asked(server.url, "/ui/api/stream?run=demo", TOKEN))
        assert stream.status == 200 and stream.readline() == b"event: state\n"
        # What the pages ask is no traffic of people.
        _, metrics = answer(server.url, "/metrics", SHOP)
        assert b"/ui" not in metrics
        server.process.terminate()
        assert server.process.wait(60) == 0
    logged = in_kafka(local_services, index, "impressions")
    assert {(each.application, each.policy, each.action_propensity) for each in logged} == {
        (JUDGING, "", None),
        (JUDGING, VERSION, None),
    }
    assert {(each.action_id, each.kind) for each in in_kafka(local_services, index, "actions")} == {
        (pair["judgment"], "tie")
    }


def test_without_the_setting_a_server_has_no_pages(shop: tuple[Path, str], local_services: Endpoints) -> None:
    home, index = shop
    with serving(home, index, local_services, SEARCHLOOP_UI__TOKEN=TOKEN) as server:
        for path in ("/ui/", "/ui/api/runs", "/api/runs"):
            assert answer(server.url, path, TOKEN)[0] == 404


@pytest.mark.parametrize("wrong", [{"SEARCHLOOP_UI__TOKEN": ""}, {"SEARCHLOOP_UI__TOKEN": SHOP}])
def test_pages_that_a_shop_could_open_are_refused_at_the_start(
    wrong: dict[str, str], shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    # It ends before it prints its address.
    with (
        pytest.raises(AssertionError, match="assert False"),
        serving(home, index, local_services, **{**SETTINGS, **wrong}),
    ):
        raise RuntimeError("it has started")
