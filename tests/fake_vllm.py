"""A small honest stand-in for a vLLM server: the five routes that we use, real HTTP, and failures on demand.

It completes with tokens that follow from the request alone, knows which adapters were loaded, and refuses as vLLM 0.32
does, in its words.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FakeVllm:
    """Use as a context manager. `failures`: (status, headers) to answer with next, instead of the truth."""

    def __init__(self, *, api_key: str = "") -> None:
        self.api_key = api_key
        self.adapters: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.failures: deque[tuple[int, dict[str, str]]] = deque()
        self.spoil: dict[str, Any] = {}
        """Replaces fields of every choice: what a wrong or an older server would answer."""
        self.busiest = 0
        self._busy = 0
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            """Answers one request."""

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                with fake._lock:
                    fake.requests.append((self.path, body))
                    fake._busy += 1
                    fake.busiest = max(fake.busiest, fake._busy)
                    failure = fake.failures.popleft() if fake.failures else None
                if failure is not None:
                    status, content, headers = failure[0], {"error": {"message": "told to fail"}}, failure[1]
                elif fake.api_key and self.headers.get("Authorization") != f"Bearer {fake.api_key}":
                    status, content, headers = 401, {"error": "Unauthorized"}, {}
                else:
                    status, content = fake.answer(self.path, body)
                    headers = {}
                with fake._lock:
                    fake._busy -= 1
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeVllm:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path: str) -> list[dict[str, Any]]:
        """Return the bodies of the requests to this path, in order."""
        return [body for asked, body in self.requests if asked == path]

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and content as vLLM would."""
        if path == "/v1/models":
            models = {"base": "/base", **self.adapters}
            return 200, {"data": [{"id": name, "root": root} for name, root in models.items()]}
        if path == "/v1/load_lora_adapter":
            name, folder = body["lora_name"], body["lora_path"]
            if name in self.adapters:
                return 400, _error(f"The lora adapter '{name}' has already been loaded. If you want to load …")
            if not (Path(folder) / "adapter_config.json").is_file():
                return 404, _error(f"Loading lora {name} failed: No adapter found for <path>")
            self.adapters[name] = folder
            return 200, f"Success: LoRA adapter '{name}' added successfully."
        if path == "/v1/unload_lora_adapter":
            if self.adapters.pop(body["lora_name"], None) is None:
                return 404, _error(f"The lora adapter '{body['lora_name']}' cannot be found.")
            return 200, "Success"
        if body["model"] not in {"base", *self.adapters}:
            return 404, _error(f"The model `{body['model']}` does not exist.")
        choices = [self._choice(body, number) for number in range(body["n"])]
        return 200, {"choices": choices[::-1]}  # The order of arrival, which is any.

    def _choice(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        length = body["max_tokens"]
        ids = [5 + (body["seed"] + number + position) % 7 for position in range(length)]
        if number % 2:
            ids = [*ids[: length - 2], body["stop_token_ids"][0]]
        choice = {
            "index": number,
            "token_ids": ids,
            "logprobs": {"token_logprobs": [-0.5 - number for _ in ids]},
            "prompt_token_ids": body["prompt"],
            "finish_reason": "stop" if number % 2 else "length",
        }
        return choice | self.spoil


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}
