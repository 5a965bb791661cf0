"""HTTP calls that another thread may cut off, on connections that do not wait long for a machine that is gone."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.request
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import Any

CONNECT_SECONDS_MAX = 10.0  # A machine that is gone answers nothing, and an answer may take minutes.


class Call:
    """One HTTP request, which `cut` ends from another thread: its own thread then gets an OSError."""

    def __init__(self) -> None:
        self.is_cut = False
        self._socket: socket.socket | None = None
        self._lock = Lock()

    def rides_on(self, request: urllib.request.Request) -> None:
        """Make `cut` end this request. It must be opened with `handlers`."""
        request.call = self  # type: ignore[attr-defined]

    def cut(self) -> None:
        """End the request, or let it fail when it connects."""
        with self._lock:
            self.is_cut = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def connected(self, through: socket.socket) -> None:
        """Take the socket of the request. Raises ConnectionAbortedError if the call was cut off before."""
        with self._lock:
            if self.is_cut:
                raise ConnectionAbortedError("cut off, because its server was left out")
            self._socket = through


def handlers(context: ssl.SSLContext | None) -> tuple[urllib.request.BaseHandler, ...]:
    """Return the handlers of an opener whose requests a `Call` may ride on. context: for https."""
    return _PlainHandler(), _TlsHandler(context=context)


class _Connects:
    """The part of a connection that both kinds share: a short wait for the connection, a long one for the answer."""

    timeout: float | None
    sock: socket.socket

    def __init__(self, *arguments: Any, call: Call | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._call = call

    def connect(self) -> None:
        """Connect, within the time for that."""
        patient = self.timeout
        if patient is not None:
            self.timeout = min(patient, CONNECT_SECONDS_MAX)
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self.timeout = patient
        self.sock.settimeout(patient)
        if self._call is not None:
            self._call.connected(self.sock)


class _PlainConnection(_Connects, http.client.HTTPConnection):
    pass


class _TlsConnection(_Connects, http.client.HTTPSConnection):
    pass


class _PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_PlainConnection, call=getattr(req, "call", None)), req)


class _TlsHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(context=context)
        self._ours = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        made = partial(_TlsConnection, call=getattr(req, "call", None), context=self._ours)
        return self.do_open(made, req)
