"""Tabs of a headless browser that a test can question: sizes, themes, console, requests, accessibility, screenshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.browser.test_snippet import chromium

EXPECTED_WITHIN_MS = 120_000  # A bound, not a wait: on a busy machine, pages that keep to their share are slow.


class Tab:
    """One tab. trouble: console errors and warnings, exceptions, dialogs; requests: every address."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.trouble: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", lambda dialog: (self.trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, address: str, *, width: int = 1280, dark: bool = False, height: int = 900) -> None:
        """Load a page at a width and in a theme, and wait until it is loaded."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.goto(address)

    def value(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        return self.page.evaluate(script)

    def violations(self) -> list[str]:
        """Return what axe finds wrong with the page's accessibility, a line for each element."""
        found = Axe().run(self.page).response["violations"]
        return [f"{rule['id']}: {rule['help']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]

    def picture(self, path: Path) -> None:
        """Write a screenshot of the whole page."""
        self.page.screenshot(path=path, full_page=True)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.trouble.append(f"{message.text} {message.location.get('url', '')}")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Give a headless browser, the system's own."""
    expect.set_options(timeout=EXPECTED_WITHIN_MS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            yield found
        finally:
            found.close()
