"""A small honest stand-in for a vLLM server: the routes that we use, real HTTP, and failures on demand.

It completes with tokens that follow from the request alone, knows which adapters were loaded, and refuses as vLLM 0.32
does, in its words. `ModelVllm` answers with a real model and its adapters instead.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any

LOADING = threading.Lock()  # transformers 5 gives random weights where two threads load a model at once.
UNCOUNTED = ("/metrics", "/version")  # Asked beside the work, at any time.


class FakeVllm:
    """Use as a context manager. `failures`: (status, headers) to answer with next, instead of the truth."""

    def __init__(self, *, api_key: str = "") -> None:
        self.api_key = api_key
        self.version = "0.32.0"
        self.adapters: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.failures: deque[tuple[int, dict[str, str]]] = deque()
        self.spoil: dict[str, Any] = {}
        """Replaces fields of every choice: what a wrong or an older server would answer."""
        self.refuses_adapters = False
        self.waiting = 0
        """Candidates in the queue, as the metrics tell."""
        self.moves = threading.Event()
        """Clear it to freeze the server: it takes requests and answers none, the metrics neither."""
        self.moves.set()
        self.busiest = 0
        self._busy = 0
        self._lock = threading.Lock()
        self._open: set[socket] = set()
        self._server = self._listen(0)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeVllm:
        self._serve()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """End as a killed server does: all connections break, and nobody listens."""
        self.moves.set()
        self._server.shutdown()
        self._server.server_close()
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(SHUT_RDWR)

    def rise(self) -> None:
        """Start anew at the same address, without adapters."""
        self.adapters.clear()
        self._server = self._listen(int(self.url.rpartition(":")[2]))
        self._serve()

    def asked(self, path: str) -> list[dict[str, Any]]:
        """Return the bodies of the requests to this path, in order."""
        return [body for asked, body in self.requests if asked == path]

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and content as vLLM would."""
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/metrics":
            return 200, (
                f'vllm:num_requests_running{{engine="0"}} {self._busy - 1}.0\n'
                f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}.0\n'
                'vllm:kv_cache_usage_perc{engine="0"} 0.5\n'
            )
        if path == "/v1/models":
            models = {"base": "/base", **self.adapters}
            return 200, {"data": [{"id": name, "root": root} for name, root in models.items()]}
        if path == "/v1/load_lora_adapter":
            name, folder = body["lora_name"], body["lora_path"]
            if name in self.adapters:
                return 400, _error(f"The lora adapter '{name}' has already been loaded. If you want to load …")
            if self.refuses_adapters:
                return 400, _error(f"LoRA rank 64 is greater than max_lora_rank 16: {name}")
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
        choices = [choice | self.spoil for choice in self.choices(body)]
        return 200, {"choices": choices[::-1]}  # The order of arrival, which is any.

    def choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the choices of a completion."""
        return [_choice(body, number) for number in range(body["n"])]

    def _listen(self, port: int) -> ThreadingHTTPServer:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            """Answers one request."""

            def setup(self) -> None:
                fake._open.add(self.request)
                super().setup()

            def finish(self) -> None:
                with suppress(OSError):
                    super().finish()
                fake._open.discard(self.request)

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                counted = self.path not in UNCOUNTED
                with fake._lock:
                    fake.requests.append((self.path, body))
                    fake._busy += 1
                    fake.busiest = max(fake.busiest, fake._busy) if counted else fake.busiest
                    failure = fake.failures.popleft() if fake.failures and counted else None
                fake.moves.wait()
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
                with suppress(OSError):  # Who asked may be gone.
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        return ThreadingHTTPServer(("127.0.0.1", port), Handler)

    def _serve(self) -> None:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class ModelVllm(FakeVllm):
    """A fake that computes: a base model with the adapters that were loaded, by transformers on the processor.

    `mistaken`: the name of an adapter → that of the one with which it answers instead, as vLLM up to 0.24 could.
    """

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.base = base
        self.mistaken: dict[str, str] = {}
        self._models: dict[str, Any] = {}
        self._computing = threading.Lock()

    def choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what the model writes, or the log-probabilities of a prompt."""
        with self._computing:
            policy = self._policy(body["model"])
            if body.get("prompt_logprobs") is not None:
                return [{"index": 0, "prompt_logprobs": _prompt_logprobs(policy, body["prompt"])}]
            return _written(policy, body)

    def _policy(self, name: str) -> Any:
        from dataclasses import replace

        from peft import PeftModel

        from learner.policy import load_policy

        name = self.mistaken.get(name, name)
        if name not in self._models:
            with LOADING:
                policy = load_policy(self.base)
                if name != "base":
                    policy = replace(policy, model=PeftModel.from_pretrained(policy.model, self.adapters[name]).eval())
            self._models[name] = policy
        return self._models[name]


def _choice(body: dict[str, Any], number: int) -> dict[str, Any]:
    if body.get("prompt_logprobs") is not None:
        rows = [None] + [{str(token): {"logprob": -1.0}} for token in body["prompt"][1:]]
        return {"index": number, "prompt_logprobs": rows}
    length = body["max_tokens"]
    ids = [5 + (body["seed"] + number + position) % 7 for position in range(length)]
    if number % 2:
        ids = [*ids[: length - 2], body["stop_token_ids"][0]]
    return {
        "index": number,
        "token_ids": ids,
        "logprobs": {"token_logprobs": [-0.5 - number for _ in ids]},
        "prompt_token_ids": body["prompt"],
        "finish_reason": "stop" if number % 2 else "length",
    }


def _prompt_logprobs(policy: Any, prompt: list[int]) -> list[dict[str, Any] | None]:
    import torch

    with torch.inference_mode():
        logprobs = policy.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return [None] + [{str(token): {"logprob": float(logprobs[place, token])}} for place, token in enumerate(prompt[1:])]


def _written(policy: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
    from learner.sampling import TransformersSampler
    from streams.events import PolicyRef, Sampling

    sampling = Sampling(
        candidates=body["n"], temperature=body["temperature"], tokens_max=body["max_tokens"], no_repeat=False
    )
    sampler = TransformersSampler(policy, PolicyRef(lineage="1-aaaaaa", step=0, sha256=""))
    (group,) = sampler.sample([body["prompt"]], sampling, [body["seed"]])
    return [
        {
            "index": number,
            "token_ids": list(completion.token_ids),
            "logprobs": {"token_logprobs": list(completion.logprobs)},
            "prompt_token_ids": body["prompt"],
        }
        for number, completion in enumerate(group)
    ]


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}
