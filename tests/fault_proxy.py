"""A proxy before a real search engine that does to some of its answers what networks and clusters do."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["well", "down", "slow", "busy", "partial", "reset", "truncated"]
HELD_BACK = {"connection", "content-length", "transfer-encoding", "host"}
ANSWER_SECONDS_MAX = 60.0


class FaultProxy:
    """Hands requests on to the engine; what happens to a search depends on the mode.

    down: the port is closed and open connections are cut. slow: each answer is late by `delay_seconds`. busy: a share
    of the requests, and of the searches in the others, is refused with 429. partial: a share of the searches answers
    with half of its hits and says that a shard failed or that time ran out. reset: a share of the connections is reset
    in the middle of the answer. truncated: a share of the answers ends in the middle.
    searches: `_msearch` requests so far; harmed: those that did not get their true answer at once.
    """

    def __init__(self, engine: str, *, share: float = 0.3, delay_seconds: float = 3.0, seed: int = 0) -> None:
        address = urlsplit(engine)
        self._engine = (address.hostname or "", address.port or 80)
        self._share = share
        self.delay_seconds = delay_seconds
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._mode: Mode = "well"
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.searches = 0
        self.harmed = 0
        self._open()

    @property
    def url(self) -> str:
        """Return where clients find the proxy; it stays the same when it goes down and comes back."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def mode(self) -> Mode:
        """Return what happens to answers now."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode == "down":
            self.close()
        elif self._mode == "down":
            self._open()
        self._mode = mode

    def close(self) -> None:
        """Close the port; whoever is connected is cut off at his next request."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def struck(self) -> bool:
        """Decide by lot whether something bad happens now."""
        with self._lock:
            return self._chance.random() < self._share

    def count(self, *, harmed: bool) -> None:
        """Count one search request."""
        with self._lock:
            self.searches += 1
            self.harmed += harmed

    def forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the engine's own answer: status, headers and body."""
        connection = http.client.HTTPConnection(*self._engine, timeout=ANSWER_SECONDS_MAX)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() not in HELD_BACK}
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HELD_BACK]
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _open(self) -> None:
        server = _Server(("127.0.0.1", self._port), _handler(self))
        self._port, self._server = server.server_address[1], server
        threading.Thread(target=server.serve_forever, args=(0.02,), name="proxy", daemon=True).start()


class _Server(ThreadingHTTPServer):
    def shutdown_request(self, request: Any) -> None:
        """Close without the FIN that comes first by default: a connection that is to be reset sends none."""
        self.close_request(request)


@contextmanager
def fault_proxy(engine: str, *, share: float = 0.3, delay_seconds: float = 3.0) -> Iterator[FaultProxy]:
    """Give a proxy before this engine (its URL) until the end of the block."""
    proxy = FaultProxy(engine, share=share, delay_seconds=delay_seconds)
    try:
        yield proxy
    finally:
        proxy.close()


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            mode = proxy.mode
            if mode == "down":
                self._cut()
                return
            search = "_msearch" in self.path
            strikes = search and mode != "well" and (mode == "slow" or proxy.struck())
            if strikes and mode == "busy":
                proxy.count(harmed=True)
                self._answer(429, [("content-type", "application/json")], b'{"error": {"reason": "queue is full"}}')
                return
            try:
                status, headers, answer = proxy.forward(self, body)
            except OSError:
                self._cut()
                return
            if not search:
                self._answer(status, headers, answer)
                return
            if mode == "slow":
                time.sleep(proxy.delay_seconds)
            spoilt = _spoilt(proxy, mode, answer) if mode in ("busy", "partial") else answer
            proxy.count(harmed=strikes or spoilt != answer)
            if strikes and mode in ("reset", "truncated"):
                self._answer(status, headers, answer, cut=len(answer) // 2)
                self._cut(reset=mode == "reset")
                return
            self._answer(status, headers, spoilt)

        do_GET = do_HEAD = do_PUT = do_DELETE = do_POST

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:cut])

        def _cut(self, *, reset: bool = False) -> None:
            if reset:  # Closing with a linger of 0 s sends RST instead of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Stay silent."""

    return Handler


def _spoilt(proxy: FaultProxy, mode: Mode, answer: bytes) -> bytes:
    """Refuse a share of the searches in an `_msearch` answer, or answer them in part."""
    tree = json.loads(answer)
    for number, item in enumerate(tree.get("responses", [])):
        if not proxy.struck():
            continue
        if mode == "busy":
            tree["responses"][number] = {"status": 429, "error": {"type": "es_rejected", "reason": "queue is full"}}
            continue
        found = item.get("hits", {}).get("hits", [])
        item["hits"] = {"hits": found[: len(found) // 2]}
        item |= {"timed_out": True} if number % 2 else {"_shards": {"failed": 1}}
    return json.dumps(tree).encode()
