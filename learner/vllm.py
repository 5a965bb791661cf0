"""A client of a vLLM server over HTTP: completions by token ids and LoRA adapters, with retries.

Written for vLLM 0.32 (`/v1/completions` with `return_token_ids`, `/v1/load_lora_adapter`, `/v1/models`, …). The server
must run with `--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and `--logprobs-mode processed_logprobs`. In its
default mode, log-probabilities are those of temperature 1, whatever the sampling temperature.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import ssl
import time
import urllib.error
import urllib.request
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from streams.descriptions import describe
from streams.errors import SearchloopError, TransientError
from streams.secrets import GuardedSettings, SecretText, reveal
from streams.tls import client_context, explain_tls, guard_plain

RETRIED = frozenset({429, 500, 502, 503, 504})
BACK_OFF_FIRST_SECONDS, BACK_OFF_SECONDS_MAX = 0.2, 5.0
log = logging.getLogger(__name__)


class VllmError(SearchloopError, RuntimeError):
    """A vLLM server refuses a request or gives an unusable answer; a retry would not help."""


class UnknownModelError(VllmError):
    """The server has no adapter of this name: it was restarted, or somebody unloaded the adapter."""


class VllmSettings(GuardedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The vLLM server, if `generation.backend` is `vllm`, and how we use it."""

    url: Annotated[
        str,
        describe(
            "Address of your own vLLM server (infra/MODELS.md). Empty: `train` starts one on this machine "
            "(table `vllm_server`)."
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
        describe("Groups that one generator requests at once. The server batches them."),
    ] = 32
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600), describe("Time limit of one group.")] = 300.0
    retry_seconds_max: Annotated[
        float,
        msgspec.Meta(ge=0, le=3600),
        describe(
            "Time for which a request is retried while the server is down or overloaded. After that, "
            "`delivery.retry_seconds_max` applies."
        ),
    ] = 20.0
    checked_prompts: Annotated[
        int,
        msgspec.Meta(ge=0, le=64),
        describe(
            "Groups whose log-probabilities are compared with the learner's own before the first update. 0: "
            "none, for a policy too large to load twice."
        ),
    ] = 2

    def __post_init__(self) -> None:
        """Hide the key. Raises ValueError for credentials in the URL and for a key that no header can hold."""
        super().__post_init__()
        if "@" in self.url:
            raise ValueError("url: expected http(s)://host:port without credentials; a key belongs in api_key")
        if not self.api_key.isascii():
            raise ValueError("api_key: expected ASCII, got other characters")

    def __repr__(self) -> str:
        """Show the settings without the key."""
        return f"VllmSettings(url={self.url!r}, home={self.home!r})"


class VllmClient:
    """An HTTP client of one server. Thread-safe."""

    def __init__(self, url: str, settings: VllmSettings) -> None:
        """Set up the client without sending anything. Raises SettingsError if the key would travel unencrypted."""
        self.url = url.rstrip("/")
        self._settings = settings
        self._context: ssl.SSLContext | None = None
        try:
            self._host = urlsplit(self.url).hostname or ""
        except ValueError as error:
            raise VllmError(
                f"vllm.url: expected an address like http://host:8000, got {self.url!r} ({error})"
            ) from error
        if self.url.startswith("https"):
            self._context = client_context(cafile=settings.ca_certs, table="vllm", ca_setting="ca_certs")
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=self._context))
        if settings.api_key and self._context is None:
            guard_plain(
                "vllm",
                what="a key",
                hosts=[self._host],
                instead="Set vllm.url to https://…",
                allowed=settings.allow_insecure,
            )

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a completion request.

        Raises UnknownModelError, VllmError or TransientError, as `_ask` does.
        """
        answer = self._ask("POST", "/v1/completions", body)
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

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Return the decoded answer; retry with back-off and jitter while the server is down or overloaded.

        Raises UnknownModelError on 404, VllmError on other refusals, and TransientError after the last retry.
        """
        deadline = time.monotonic() + self._settings.retry_seconds_max
        pause = BACK_OFF_FIRST_SECONDS
        while True:
            try:
                return self._ask_once(method, path, body)
            except _BusyError as busy:
                # Full jitter: generators that were refused together do not return together.
                wait = max(random.uniform(0, pause), busy.retry_after_seconds)
                if time.monotonic() + wait > deadline:
                    raise TransientError(
                        f"vLLM at {self.url} {busy} (retried for {self._settings.retry_seconds_max:g} s)"
                    ) from busy
                log.debug("vLLM at %s %s; again in %.1f s", self.url, busy, wait)
                time.sleep(wait)
                pause = min(pause * 2, BACK_OFF_SECONDS_MAX)

    def _ask_once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._settings.api_key:
            headers["Authorization"] = f"Bearer {reveal(self._settings.api_key)}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, method=method, data=data, headers=headers)
            with self._opener.open(request, timeout=self._settings.timeout_seconds) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            reason = _reason(error)
            if error.code in RETRIED:
                raise _BusyError(
                    f"answers {error.code}: {reason}", _seconds(error.headers.get("Retry-After"))
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

    def __init__(self, what: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(what)
        self.retry_after_seconds = retry_after_seconds


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
