"""The snippet in a real browser: a shop's page on another origin, real clicks, and events that reach the log."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.local import Endpoints
from tests.kafka_cluster import wait_until
from tests.services.test_serving import in_kafka, serving, shop

__all__ = ["shop"]

PAGE = """<!doctype html><title>shop</title>
<script src="{server}/snippet.js" data-application="shop" {views}></script>
<ol data-sl-query-id="{query_id}">
  <li data-sl-id="p0"><a href="#p0"><b>Red mug</b></a></li>
  <li data-sl-id="p3&quot;<x>"><a href="#p3">Blue mug</a> <button data-sl-action="add_to_cart">Buy</button></li>
</ol><a href="#elsewhere" id="other">Elsewhere</a>
<script>
addEventListener("load", () => {{
  document.querySelector("b").click();
  document.querySelector("button").click();
  document.querySelector("#other").click();
  setTimeout(() => {{ document.title = "clicked"; }}, 2500);
}});
</script>"""


def chromium() -> str:
    """Return the browser's path. Fails, and says how to get it, if there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("this test needs a browser: make browser, or apt-get install chromium")
    return found


@contextmanager
def pages(content: dict[str, str]) -> Iterator[str]:
    """Serve pages of a shop on an origin of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(content["page"].encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def visit(url: str, profile: Path) -> str:
    """Open a page in a headless browser, and return its content when its scripts have run."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=6000",
        "--dump-dom",
    ]
    ended = subprocess.run([chromium(), *flags, url], capture_output=True, text=True, timeout=120, check=True)
    return ended.stdout


def test_clicks_on_results_reach_the_log_with_their_impression_and_others_do_not(
    shop: tuple[Path, str], local_services: Endpoints, tmp_path: Path
) -> None:
    home, index = shop
    content: dict[str, str] = {}
    with (
        pages(content) as origin,
        serving(home, index, local_services, SEARCHLOOP_SERVE__ORIGINS=f'["{origin}"]') as server,
    ):
        query_id = server.get("/search?query=mug&helped=raw")[1]["query_id"]
        content["page"] = PAGE.format(server=server.url, query_id=query_id, views="")
        shown = visit(origin, tmp_path / "profile")
        assert "<title>clicked</title>" in shown
        wait_until(lambda: len(in_kafka(local_services, index, "actions")) >= 2, "two clicks")
        actions = in_kafka(local_services, index, "actions")
        assert sorted((each.kind, each.document_id) for each in actions) == [
            ("add_to_cart", 'p3"<x>'),
            ("click", "p0"),
        ]
        assert {each.impression_id for each in actions} == {query_id}
        assert len({each.action_id for each in actions}) == 2
        # A browser tells of what is visible when it has painted, which it may not do before a headless visit ends.
        content["page"] = PAGE.format(server=server.url, query_id=query_id, views="data-views")

        def viewed() -> set[str]:
            visit(origin, tmp_path / "profile")
            return {each.document_id for each in in_kafka(local_services, index, "actions") if each.kind == "view"}

        wait_until(lambda: viewed() == {"p0", 'p3"<x>'}, "two views")


def test_the_snippet_is_small() -> None:
    size = (Path(__file__).parents[2] / "infra" / "serving" / "snippet.js").stat().st_size
    assert size <= 2048
