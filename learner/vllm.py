"""A client of a vLLM server over HTTP: completions by token ids and LoRA adapters, with retries.

Written for vLLM 0.32 (`/v1/completions` with `return_token_ids`, `/v1/load_lora_adapter`, `/metrics`, …). The server
must run with `--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and `--logprobs-mode processed_logprobs`. In its
default mode, log-probabilities are those of temperature 1, whatever the sampling temperature.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import re
import ssl
import time
import urllib.error
import urllib.request
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from learner.calls import Call, handlers
from streams.descriptions import describe
from streams.errors import SearchloopError, TransientError
from streams.secrets import GuardedSettings, SecretText, reveal
from streams.tls import client_context, explain_tls, guard_plain

RETRIED = frozenset({429, 500, 502, 503, 504})
BACK_OFF_FIRST_SECONDS, BACK_OFF_SECONDS_MAX = 0.2, 5.0
OLDEST = (0, 25)  # Up to 0.24, a request could be answered with another adapter than it named (vllm#47724).
log = logging.getLogger(__name__)


class VllmError(SearchloopError, RuntimeError):
    """A vLLM server refuses a request or gives an unusable answer; a retry would not help."""


class UnknownModelError(VllmError):
    """The server has no adapter of this name: it was restarted, or somebody unloaded the adapter."""


class OverloadedError(TransientError):
    """A server that lives has no room now. retry_after_seconds: the pause that it asks for, 0 if it names none."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class VllmSettings(GuardedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The vLLM servers, if `generation.backend` is `vllm`, and how we use them."""

    url: Annotated[
        str,
        describe(
            "Address of your own vLLM server, or the addresses of several, separated by commas (infra/MODELS.md). "
            "Empty: `train` starts one on this machine (table `vllm_server`)."
        ),
    ] = ""
    api_key: Annotated[
        SecretText,
        describe(
            "Key of a server that was started with --api-key. A server that `train` starts gets a key of its own."
        ),
    ] = ""
    api_key_file: Annotated[str, describe("Path of a file that holds api_key, which then stays empty.")] = ""
    ca_certs: Annotated[
        str,
        describe(
            "Path of the certificates of trusted authorities, as PEM, for https. Empty: the authorities of the system."
        ),
    ] = ""
    allow_insecure: Annotated[bool, describe("True sends the key beyond this machine by plain http.")] = False
    home: Annotated[
        str,
        describe(
            "Path of our `--home` (a shared folder) on the server, which loads adapters from there. Empty: the "
            "same path as here."
        ),
    ] = ""
    requests_in_flight: Annotated[
        int,
        msgspec.Meta(ge=1, le=1024),
        describe("Largest number of groups that one generator requests at once of one server, which batches them."),
    ] = 32
    queue_max: Annotated[
        int,
        msgspec.Meta(ge=0, le=65_536),
        describe(
            "Candidates that may wait in a server's queue. While more wait, generators request fewer groups at once "
            "of that server."
        ),
    ] = 16
    lease_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=3600),
        describe(
            "Time after which a server that does not answer is left out, if there is another one. Its groups are then "
            "requested of the others."
        ),
    ] = 30.0
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600), describe("Time limit of one group.")] = 300.0
    retry_seconds_max: Annotated[
        float,
        msgspec.Meta(ge=0, le=3600),
        describe(
            "Time for which a request is retried while all servers are down or overloaded. After that, "
            "`delivery.retry_seconds_max` applies."
        ),
    ] = 20.0
    checked_prompts: Annotated[
        int,
        msgspec.Meta(ge=0, le=64),
        describe(
            "Groups whose log-probabilities are compared with the learner's own, for each server: before the first "
            "update, and again for each new version. 0: none, for a policy too large to load twice."
        ),
    ] = 2

    def __post_init__(self) -> None:
        """Hide the key. Raises ValueError for credentials in the URL and for a key that no header can hold."""
        super().__post_init__()
        if "@" in self.url:
            raise ValueError("url: expected http(s)://host:port without credentials; a key belongs in api_key")
        if len(set(addresses(self.url))) != len(addresses(self.url)):
            raise ValueError(f"url: expected each address once, got {self.url!r}")
        if not self.api_key.isascii():
            raise ValueError("api_key: expected ASCII, got other characters")

    def __repr__(self) -> str:
        """Show the settings without the key."""
        return f"VllmSettings(url={self.url!r}, home={self.home!r})"


def addresses(url: str) -> tuple[str, ...]:
    """Return the addresses that the setting `vllm.url` names."""
    return tuple(part.strip().rstrip("/") for part in url.split(",") if part.strip())


class VllmClient:
    """An HTTP client of one server. Thread-safe."""

    def __init__(self, url: str, settings: VllmSettings) -> None:
        """Set up the client without sending anything.

        Raises SettingsError if the key would travel unencrypted, VllmError if the address is none: asked for an answer,
        it would only look like a server that is down.
        """
        self.url = url.rstrip("/")
        self._settings = settings
        self._context: ssl.SSLContext | None = None
        try:
            parts = urlsplit(self.url)
            self._host, _ = parts.hostname or "", parts.port
        except ValueError as error:
            raise VllmError(
                f"vllm.url: expected an address like http://host:8000, got {self.url!r} ({error})"
            ) from error
        if parts.scheme not in ("http", "https") or not self._host:
            raise VllmError(f"vllm.url: expected an address like http://host:8000, got {self.url!r}")
        if self.url.startswith("https"):
            self._context = client_context(cafile=settings.ca_certs, table="vllm", ca_setting="ca_certs")
        self._opener = urllib.request.build_opener(_NoRedirects, *handlers(self._context))
        if settings.api_key and self._context is None:
            guard_plain(
                "vllm",
                what="a key",
                hosts=[self._host],
                instead="Set vllm.url to https://…",
                allowed=settings.allow_insecure,
            )

    def complete(
        self, body: dict[str, Any], *, patience_seconds: float | None = None, call: Call | None = None
    ) -> dict[str, Any]:
        """Return the answer to a completion request.

        patience_seconds: time for retries; None takes that of the settings. call: lets another thread cut it off.
        Raises UnknownModelError, VllmError or TransientError, as `_ask` does.
        """
        answer = self._ask("POST", "/v1/completions", body, patience_seconds=patience_seconds, call=call)
        if not isinstance(answer, dict):
            raise VllmError(f"vLLM at {self.url}: expected an object from /v1/completions, got {str(answer)[:80]!r}")
        return answer

    def load_adapter(self, name: str, path: str) -> None:
        """Make the server load the LoRA adapter in the folder `path`, a path on the server; a loaded name stays as is.

        New weights always need a new name: vLLM 0.32 keeps the prefix cache of an adapter that is reloaded in place.
        Raises VllmError if the server cannot load it, and TransientError if the server stays down.
        """
        try:
            self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except UnknownModelError as error:
            raise VllmError(
                f"{error} It was asked to load the adapter {path!r}. It needs --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and must be able to read that folder (vllm.home)"
            ) from error
        except VllmError as error:
            if "already been loaded" not in str(error):
                raise

    def unload_adapter(self, name: str) -> None:
        """Make the server unload an adapter; its current requests finish normally. An unknown name is no error."""
        try:
            self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except UnknownModelError:
            return

    def metrics(self, *, timeout_seconds: float) -> str:
        """Return the server's metrics as Prometheus reads them; "" if it has none.

        Raises TransientError if it does not answer in time, and VllmError if it refuses.
        """
        try:
            answer = self._ask("GET", "/metrics", None, patience_seconds=0.0, timeout_seconds=timeout_seconds)
        except UnknownModelError:
            return ""
        return answer if isinstance(answer, str) else ""

    def require_version(self) -> None:
        """Raise VllmError if the server says that it is older than the first vLLM whose answers can be trusted.

        A server that does not tell its version passes: the log-probabilities of each adapter are checked in any case.
        Raises TransientError if the server is down.
        """
        try:
            answer = self._ask("GET", "/version", None)
        except UnknownModelError:
            return
        told = str(answer.get("version", "")) if isinstance(answer, dict) else ""
        numbers = re.match(r"(\d+)\.(\d+)", told)
        if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
            raise VllmError(
                f"vLLM at {self.url}: expected version {OLDEST[0]}.{OLDEST[1]} or newer, got {told[:40]!r}, which may "
                "answer a request with another adapter than the request names. Upgrade that server"
            )

    def models(self) -> dict[str, str]:
        """Return the server's base model and adapters: name → folder, as a path on the server.

        Raises VllmError if the answer has another form, and TransientError if the server stays down.
        """
        answer = self._ask("GET", "/v1/models", None)
        try:
            return {card["id"]: card.get("root") or "" for card in answer["data"]}
        except (TypeError, KeyError) as error:
            raise VllmError(
                f"vLLM at {self.url}: expected a list of models, got {str(answer)[:80]!r}. Is it a vLLM server?"
            ) from error

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        *,
        patience_seconds: float | None = None,
        timeout_seconds: float | None = None,
        call: Call | None = None,
    ) -> Any:
        """Return the decoded answer; retry with back-off and jitter while the server is down or overloaded.

        Raises UnknownModelError on 404, VllmError on other refusals, and TransientError after the last retry, which is
        an OverloadedError if the server lives.
        """
        patience = self._settings.retry_seconds_max if patience_seconds is None else patience_seconds
        timeout = self._settings.timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + patience
        pause = BACK_OFF_FIRST_SECONDS
        while True:
            try:
                return self._ask_once(method, path, body, timeout, call)
            except _BusyError as busy:
                # Full jitter: generators that were refused together do not return together.
                wait = max(random.uniform(0, pause), busy.retry_after_seconds)
                if time.monotonic() + wait > deadline or (call is not None and call.is_cut):
                    said = f"vLLM at {self.url} {busy}" + (f" (retried for {patience:g} s)" if patience else "")
                    if busy.lives:
                        raise OverloadedError(said, busy.retry_after_seconds) from busy
                    raise TransientError(said) from busy
                log.debug("vLLM at %s %s; again in %.1f s", self.url, busy, wait)
                time.sleep(wait)
                pause = min(pause * 2, BACK_OFF_SECONDS_MAX)

    def _ask_once(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_seconds: float, call: Call | None
    ) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._settings.api_key:
            headers["Authorization"] = f"Bearer {reveal(self._settings.api_key)}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, method=method, data=data, headers=headers)
            if call is not None:
                call.rides_on(request)
            with self._opener.open(request, timeout=timeout_seconds) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            reason = _reason(error)
            if error.code in RETRIED:
                raise _BusyError(
                    f"answers {error.code}: {reason}", _seconds(error.headers.get("Retry-After")), lives=True
                ) from error
            kind = UnknownModelError if error.code == 404 else VllmError
            hint = " Check vllm.api_key." if error.code in (401, 403) else ""
            raise kind(f"vLLM at {self.url}{path} answers {error.code}: {reason}.{hint}") from error
        except (OSError, http.client.HTTPException) as error:
            tls = explain_tls(error, host=self._host, cafile=self._settings.ca_certs, ca_setting="vllm.ca_certs")
            if tls:
                raise VllmError(f"vLLM at {self.url}: {tls}") from error
            raise _BusyError(f"does not answer ({type(error).__name__}: {getattr(error, 'reason', error)})") from error
        except ValueError as error:
            raise VllmError(
                f"vllm.url: expected an address like http://host:8000, got {self.url!r} ({error})"
            ) from error
        try:
            return json.loads(content)
        except ValueError:
            return content.decode(errors="replace")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because the key would be sent to its target."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Return no request, so that the redirect itself becomes the answer."""


class _BusyError(Exception):
    """The server is down, starting or overloaded; a retry may help."""

    def __init__(self, what: str, retry_after_seconds: float = 0.0, *, lives: bool = False) -> None:
        super().__init__(what)
        self.retry_after_seconds = retry_after_seconds
        self.lives = lives


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        content = error.read()
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        return str(json.loads(content)["error"]["message"]).strip().rstrip(".")
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace").strip()[:200] or str(error.reason)


def _seconds(header: str | None) -> float:
    """Return the pause that the server asks for; a date, which the header may also hold, counts as no pause."""
    try:
        return min(max(float(header or 0), 0.0), BACK_OFF_SECONDS_MAX)
    except ValueError:
        return 0.0
