"""The key of our own vLLM: new at each start, asked for by the server, sent by our clients, and on no command line.

vLLM itself is 6 GB; a small honest server stands for it here, which asks for the key of VLLM_API_KEY as vLLM does.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from learner.vllm import VllmClient, VllmError, VllmSettings
from services.policy_server import PolicyServer
from services.vllm import VllmModel, VllmServerSettings
from streams.secrets import reveal

FAKE_SERVER = """
import http.server, json, os, sys
key, port = os.environ["VLLM_API_KEY"], int(sys.argv[sys.argv.index("--port") + 1])
class Door(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = 200
        if self.path == "/moved":
            status = 302
        elif self.path.startswith("/v1") and self.headers.get("Authorization") != f"Bearer {key}":
            status = 401
        body = json.dumps({"data": []} if status == 200 else {"error": {"message": "Unauthorized"}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Door).serve_forever()
"""


@pytest.fixture
def fake_vllm(tmp_path: Path) -> VllmServerSettings:
    """Settings whose Python has a vLLM that is ours."""
    environment = tmp_path / "environment"
    package = environment / "lib" / "python3" / "site-packages" / "vllm"
    (package / "entrypoints" / "openai").mkdir(parents=True)
    for folder in (package, package / "entrypoints", package / "entrypoints" / "openai"):
        (folder / "__init__.py").touch()
    (package / "entrypoints" / "openai" / "api_server.py").write_text(FAKE_SERVER)
    python = environment / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{package.parent}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return VllmServerSettings(python=str(python), start_seconds=60)


def test_each_start_has_a_key_that_our_clients_send_and_no_command_line_shows(
    fake_vllm: VllmServerSettings, tmp_path: Path
) -> None:
    server = PolicyServer(tmp_path / "home", fake_vllm)
    model = VllmModel(folder=str(tmp_path), rank=4, adapters_max=2)
    keys = []
    for _ in range(2):
        try:
            url = server.start(model)
            key = PolicyServer(tmp_path / "home", fake_vllm).key()
            keys.append(reveal(key))
            assert stat.S_IMODE((server.directory / "api.key").stat().st_mode) == 0o600
            impatient = VllmSettings(retry_seconds_max=0, allow_insecure=True)
            with pytest.raises(VllmError, match=r"answers 401"):
                VllmClient(url, impatient).models()
            assert VllmClient(url, msgspec.structs.replace(impatient, api_key=key)).models() == {}
            pid = server.status()[0].pid
            assert pid is not None
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            assert not any(reveal(key) in argument for process in family for argument in process.cmdline())
            assert reveal(key) not in (server.directory / "state.json").read_text()
        finally:
            server.stop()
    assert len(set(keys)) == 2 and min(map(len, keys)) > 20


def test_a_redirect_is_not_followed_with_the_key(fake_vllm: VllmServerSettings, tmp_path: Path) -> None:
    server = PolicyServer(tmp_path / "home", fake_vllm)
    try:
        url = server.start(VllmModel(folder=str(tmp_path), rank=4, adapters_max=2))
        settings = VllmSettings(retry_seconds_max=0, allow_insecure=True, api_key=server.key())
        with pytest.raises(VllmError, match="answers 302"):
            VllmClient(url, settings)._ask("GET", "/moved", None)
    finally:
        server.stop()


def test_a_key_among_the_arguments_of_the_server_is_refused() -> None:
    with pytest.raises(ValueError, match=r"arguments: expected no --api-key") as error:
        VllmServerSettings(arguments=("--api-key", "geheimes-wort"))
    assert "geheim" not in str(error.value)
