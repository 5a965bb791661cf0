"""A search engine that misbehaves on demand: a real HTTP server with scripted answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, bytes] | None  # status and body; None cuts the connection
Script = Callable[[int, list[dict[str, Any]]], Answer]


def hits(*documents: tuple[str, float]) -> dict[str, Any]:
    """Return one item of an `_msearch` answer that found these documents."""
    return {"status": 200, "hits": {"hits": [{"sort": [score, document]} for document, score in documents]}}


def responses(*items: dict[str, Any]) -> Answer:
    """Return an `_msearch` answer of these items."""
    return 200, json.dumps({"responses": list(items)}).encode()


class FakeEngine:
    """Answers the n-th request (from 0) with what the script says about it and its search bodies."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[list[dict[str, Any]]] = []


@contextmanager
def fake_engine(script: Script) -> Iterator[FakeEngine]:
    """Run a FakeEngine on a free port until the end of the block."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            lines = self.rfile.read(int(self.headers["content-length"])).splitlines()
            bodies = [json.loads(line) for line in lines[1::2]]
            with lock:
                number = len(engine.requests)
                engine.requests.append(bodies)
            answer = script(number, bodies)
            if answer is None:
                self.connection.close()
                return
            status, body = answer
            self.send_response(status)
            self.send_header("content-type", "application/vnd.elasticsearch+json;compatible-with=9")
            self.send_header("x-elastic-product", "Elasticsearch")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    engine = FakeEngine(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
