"""A headless browser that a test can question: sizes, themes, scripts of ours, console, requests, screenshots.

It speaks the DevTools protocol over a pipe, so no port is opened and no package is needed. Scripts that run through the
protocol run beside a page's content policy, not under it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tests.browser.test_snippet import chromium

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
LAUNCHER = "import os, sys; [os.dup2(int(sys.argv[n]), n + 2) for n in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"


class DevtoolsPage:
    """One tab. trouble: console errors, exceptions and what the content policy refused; requests: every address."""

    def __init__(self, browser: _Pipe, session: str) -> None:
        self._browser, self._session = browser, session
        self.trouble: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command. Raises AssertionError for an error."""
        number = self._browser.send(method, parameters, self._session)
        while True:
            message = self._browser.receive()
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                result: dict[str, Any] = message["result"]
                return result
            self._heard(message)

    def open(self, address: str, *, width: int, dark: bool = False, height: int = 900) -> None:
        """Load a page at a width and in a theme, and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        self.call("Page.navigate", url=address)
        while self._heard(self._browser.receive()) != "Page.loadEventFired":
            pass

    def value(self, script: str) -> Any:
        """Return the value of an expression in the page, awaited. Raises AssertionError if it throws."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _heard(self, message: dict[str, Any]) -> str:
        method, given = str(message.get("method", "")), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.trouble.append(str(given["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.trouble.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.trouble.append(given["entry"]["text"])
        return method


class _Pipe:
    """Messages to and from the browser, each ended by a zero byte."""

    def __init__(self, to: BinaryIO, back: BinaryIO) -> None:
        self._to, self._back = to, back
        self._number = 0
        self._rest = b""

    def send(self, method: str, parameters: dict[str, Any], session: str = "") -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        return self._number

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._back.fileno(), 1 << 20)
            assert read, "the browser is gone"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def answer(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self.send(method, parameters)
        while (message := self.receive()).get("id") != number:
            pass
        result: dict[str, Any] = message["result"]
        return result


@contextmanager
def browser_page(profile: Path) -> Iterator[DevtoolsPage]:
    """Start a browser with an empty profile, give one tab of it, and end it."""
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    # The browser reads commands from descriptor 3 and writes answers to 4. No other may lie there before they do.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_commands, write_answers)]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *map(str, ends), chromium(), *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=ends,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    for end in (read_commands, write_answers, *ends):
        os.close(end)
    try:
        with os.fdopen(write_commands, "wb") as to, os.fdopen(read_answers, "rb") as back:
            pipe = _Pipe(to, back)
            target = pipe.answer("Target.createTarget", url="about:blank")["targetId"]
            session = pipe.answer("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            yield DevtoolsPage(pipe, session)
            pipe.send("Browser.close", {})
    finally:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
