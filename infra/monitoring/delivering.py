"""The delivery of alert changes to a webhook: from a thread of its own, so that whoever found them never waits.

Each change is one POST with a JSON body. A change that cannot be delivered is tried again, with a pause that doubles,
and given up after `webhook_attempts`. The queue is bounded: when it is full, the oldest change goes. No redirect is
followed, so neither the body nor the secret reaches another host than the named one.
"""

from __future__ import annotations

import http.client
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import msgspec

from infra.monitoring.alert_settings import AlertSettings
from storage.monitor.alert_states import Transition
from streams.secrets import reveal

log = logging.getLogger(__name__)

QUEUE_MAX = 1_000
PAUSE_SECONDS_MAX = 300.0
ANSWER_BYTES_MAX = 64 * 1024
CLOSE_SECONDS = 2.0
TOLD = ("firing", "recovered")
# The answers after which the same body may succeed later; after any other one it will not.
AGAIN = frozenset({408, 425, 429, *range(500, 600)})


class AlertMessage(msgspec.Struct, frozen=True, kw_only=True, tag="alert/1", tag_field="event"):
    """The body of a post. id: the same for each try of one change, so that a receiver can drop repetitions."""

    id: str
    run: str
    change: Transition


class NoRedirects(HTTPRedirectHandler):
    """Turns a redirect into an error."""

    def redirect_request(self, *_: object) -> None:
        """Follow nothing."""
        return


class Webhook:
    """Posts changes of alerts in the order in which they came, in the background."""

    def __init__(self, settings: AlertSettings, *, run: str, jitter: Callable[[], float] = random.random) -> None:
        """jitter: a number from 0 to 1; pauses are up to a quarter longer by it."""
        self._settings = settings
        self._run = run
        self._jitter = jitter
        self._opener = build_opener(NoRedirects)
        self._queue: deque[AlertMessage] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._busy = False
        self.delivered = 0
        self.given_up = 0
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def tell(self, changes: Sequence[Transition]) -> None:
        """Queue the changes that people want to hear of: a rule fires, or has recovered. Never waits."""
        with self._wake:
            for change in changes:
                if change.state not in TOLD:
                    continue
                if len(self._queue) >= QUEUE_MAX:
                    self._queue.popleft()
                    self.given_up += 1
                name = f"{self._run}/{change.rule}/{change.at_ms}/{change.state}"
                self._queue.append(AlertMessage(id=name, run=self._run, change=change))
            self._wake.notify_all()

    @property
    def waiting(self) -> int:
        """Return the number of changes that are not delivered yet."""
        with self._wake:
            return len(self._queue) + self._busy

    def close(self, *, seconds: float = CLOSE_SECONDS) -> None:
        """End the thread; wait at most so long for the post in progress."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(timeout=seconds)

    def _work(self) -> None:
        while (message := self._next()) is not None:
            self._deliver(message)
            with self._wake:
                self._busy = False

    def _next(self) -> AlertMessage | None:
        with self._wake:
            self._wake.wait_for(lambda: bool(self._queue) or self._closed)
            if self._closed:
                return None
            self._busy = True
            return self._queue.popleft()

    def _deliver(self, message: AlertMessage) -> None:
        pause = self._settings.webhook_pause_seconds
        for attempt in range(1, self._settings.webhook_attempts + 1):
            problem, again = self._post(message)
            if not problem:
                self.delivered += 1
                return
            if not again or attempt == self._settings.webhook_attempts:
                break
            if self._closes_within(pause * (1 + self._jitter() / 4)):
                return
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
        self.given_up += 1
        log.warning("alert %r was not delivered after %d posts: %s", message.id, attempt, problem)

    def _closes_within(self, seconds: float) -> bool:
        with self._wake:
            return self._wake.wait_for(lambda: self._closed, timeout=seconds)

    def _post(self, message: AlertMessage) -> tuple[str, bool]:
        """Post once; return what went wrong, "" if nothing, and whether another try makes sense."""
        headers = {"Content-Type": "application/json", "User-Agent": "searchloop"}
        if self._settings.webhook_secret:
            headers["Authorization"] = f"Bearer {reveal(self._settings.webhook_secret)}"
        request = Request(self._settings.webhook, data=msgspec.json.encode(message), headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._settings.webhook_timeout_seconds) as answer:
                answer.read(ANSWER_BYTES_MAX)
        except HTTPError as error:
            error.close()
            return f"the webhook answered {error.code}", error.code in AGAIN
        except (OSError, http.client.HTTPException) as error:
            return f"the webhook could not be reached ({type(error).__name__})", True
        return "", False
