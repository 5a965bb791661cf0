"""A real vLLM on the CPU: what it answers is what transformers computes, adapters come and go, and no process stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import psutil
import pytest
import torch

from learner.agreement import Agreement, AgreementError, measure_agreement, require_agreement
from learner.checkpoints import Manifest, save_checkpoint
from learner.engine_load import read_load
from learner.policy import Policy, build_tiny, load_policy, save_policy, with_lora
from learner.policy_settings import LoraSettings, TinySettings
from learner.probes import AdapterError, check_adapter, make_probes, read_probes, write_probes
from learner.serving import ServedVersion
from learner.vllm import VllmClient, VllmError, VllmSettings
from services.policy_server import PolicyServer
from services.processes import tagged_processes
from services.vllm import ENVIRONMENT, ROLE, VllmModel, VllmServerSettings, vllm_command, vllm_python
from services.vllm import vllm_environment as vllm_process_environment
from streams.events import Generation, PolicyRef, Sampling
from tests.stored_events import generation

ROOT = Path(__file__).parents[2]
HOT = Sampling(candidates=4, temperature=0.7, tokens_max=10, no_repeat=False)
PROMPTS = [[5, 6, 7], [9, 30, 31, 32, 33], [11, 12]]
SEEDS = [1, 2, 3]
# fp32 on both sides, other kernels: 2e-6 was measured. A wrong temperature is off by more than 1.
TOLERANCE = 1e-4
READ_AT_ONCE = 128  # Prompt tokens; vLLM's own limit is 2,048, which an update of 32 candidates is beyond.
SETTINGS = VllmServerSettings(
    dtype="float32",
    context_tokens=128,
    sequences_max=32,
    threads=1,
    arguments=("--max-num-batched-tokens", str(READ_AT_ONCE)),
)
PARENT = """
import sys, time, msgspec
from services.policy_server import PolicyServer
from services.vllm import VllmModel, VllmServerSettings
server = PolicyServer(sys.argv[1], msgspec.json.decode(sys.argv[2], type=VllmServerSettings))
server.start(msgspec.json.decode(sys.argv[3], type=VllmModel))
print("up", flush=True)
time.sleep(600)
"""


class World(msgspec.Struct, frozen=True):
    """A server that runs, and two versions of an adapter that write differently."""

    home: Path
    model: VllmModel
    url: str
    folders: tuple[Path, Path]
    versions: tuple[PolicyRef, PolicyRef]


@pytest.fixture(scope="session")
def vllm_environment() -> None:
    """Install the environment as a user would, where it is missing."""
    if not (ENVIRONMENT / ".ready").is_file():
        subprocess.run(["make", "vllm"], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def world(vllm_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One start for the whole module; it is killed together with the parent that started it, by the last test."""
    home = tmp_path_factory.mktemp("ein Zuhause")
    shape = TinySettings(
        vocabulary_size=400, hidden_size=64, layers=2, heads=2, feedforward_size=128, positions_max=128
    )
    base = save_policy(build_tiny(["red patch cable", "blue toner cartridge"] * 4, shape), home / "base")
    assert base.path is not None
    folders, versions = [], []
    for step in (0, 1):
        policy = with_lora(load_policy(base.path), LoraSettings(rank=4))
        torch.manual_seed(step)
        with torch.no_grad():
            for name, weight in policy.model.named_parameters():
                if "lora_B" in name:  # Fresh adapters are 0 there, and change nothing.
                    weight.normal_(std=0.3 * step)
        folder, version = checkpoint(policy, home / "checkpoints", step)
        folders.append(folder)
        versions.append(version)
    model = VllmModel(folder=str(base.path), rank=4, adapters_max=2)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(home), msgspec.json.encode(SETTINGS), msgspec.json.encode(model)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == "up"
        url = PolicyServer(home, SETTINGS).url()
        yield World(home, model, url, (folders[0], folders[1]), (versions[0], versions[1]))
        row = PolicyServer(home, SETTINGS).status()[0]
        assert row.health == "ok" and row.pid is not None
        members = session_of(row.pid)
        assert len(members) >= 3  # A shell, the HTTP server, the engine.
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_for(
            lambda: not any(psutil.pid_exists(pid) for pid in members) and not list(tagged_processes(home, [ROLE]))
        )
        assert PolicyServer(home, SETTINGS).status()[0].health == "down"
    finally:
        parent.kill()
        parent.wait()
        PolicyServer(home, SETTINGS).stop()


def checkpoint(policy: Policy, root: Path, step: int) -> tuple[Path, PolicyRef]:
    """Write the policy as a learner would, and return its folder and what is announced of it."""
    reference = PolicyRef(lineage="1-aaaaaa", step=step, sha256="")

    def write_files(folder: Path) -> Manifest:
        nonlocal reference
        saved = save_policy(policy, folder)
        write_probes(folder, make_probes(policy, [written(number) for number in range(2)], count=2))
        reference = PolicyRef(lineage=reference.lineage, step=step, sha256=saved.sha256)
        return Manifest(policy=reference, parent=None)

    return save_checkpoint(root, reference, write_files), reference


def written(number: int) -> Generation:
    """Return a group whose tokens the tiny policy knows."""
    group = generation(number)
    return msgspec.structs.replace(
        group,
        prompt_token_ids=tuple(token % 250 for token in group.prompt_token_ids[:40]),
        completions=tuple(
            msgspec.structs.replace(each, token_ids=tuple(token % 250 for token in each.token_ids[:12]))
            for each in group.completions
        ),
    )


def door(home: Path) -> VllmSettings:
    """Return what lets us in: the key that the server was started with."""
    return VllmSettings(api_key=PolicyServer(home, SETTINGS).key(), allow_insecure=True)


def served(world: World, number: int, run: str) -> ServedVersion:
    return ServedVersion(
        world.folders[number],
        world.versions[number],
        url=world.url,
        settings=door(world.home),
        directory=world.home / "runs" / run,
        staleness_max=0,
        difference_max=TOLERANCE,
    )


def session_of(leader: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                found.append(process.pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


def recomputed(policy: Policy, prompt: list[int], ids: tuple[int, ...], temperature: float) -> list[float]:
    """The oracle: one plain forward of transformers, no cache, no packing."""
    with torch.inference_mode():
        logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor(ids)[:, None]
    return torch.log_softmax(logits.double() / temperature, -1).gather(1, chosen).squeeze(1).tolist()


@pytest.mark.parametrize("number", [0, 1])
def test_token_ids_come_with_the_logprobs_that_transformers_computes(world: World, number: int) -> None:
    version = served(world, number, "logprobs")
    groups = version.sampler.sample(PROMPTS, HOT, SEEDS)
    version.close()
    policy = load_policy(world.folders[number])
    assert [len(group) for group in groups] == [4, 4, 4]
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert len({completion.token_ids for completion in group}) > 1
        for completion in group:
            stops = [token in policy.stop_ids for token in completion.token_ids]
            assert not any(stops[:-1]) and completion.finish == ("stop" if stops[-1] else "length")
            assert completion.finish == "stop" or len(completion.token_ids) == HOT.tokens_max
            own = recomputed(policy, prompt, completion.token_ids, HOT.temperature)
            assert completion.logprobs == pytest.approx(own, abs=TOLERANCE)


def test_the_learner_finds_the_logprobs_again_and_other_weights_are_found_out(world: World) -> None:
    version = served(world, 1, "agreement")
    policy = load_policy(world.folders[1])
    agreement = measure_agreement(policy, version.sampler, PROMPTS, HOT, SEEDS)
    assert agreement.tokens > 50
    assert agreement.difference_max < TOLERANCE
    stranger = load_policy(world.folders[0])
    other = measure_agreement(stranger, version.sampler, PROMPTS, HOT, SEEDS)
    version.close()
    assert other.difference_max > 0.1
    require_agreement(Agreement(tokens=60, difference_mean=0.0, difference_max=TOLERANCE), difference_max=0.1)
    with pytest.raises(AgreementError, match=r"expected within 0\.1 nats .*--logprobs-mode"):
        require_agreement(other, difference_max=0.1)


def test_the_probes_of_a_version_are_found_again_and_another_adapter_of_its_name_is_found_out(world: World) -> None:
    client = VllmClient(world.url, door(world.home))
    client.require_version()
    version = served(world, 1, "probes")  # Its probes were compared here, too.
    name = "policy-v1-aaaaaa-000001"
    probes = read_probes(world.folders[1])
    found = check_adapter(client, name, probes, difference_max=TOLERANCE)
    assert found is not None and found.tokens == 22 and found.difference_max < TOLERANCE
    with pytest.raises(AdapterError, match=rf"adapter {name}: expected log-probabilities within 0\.1 nats"):
        check_adapter(client, name, read_probes(world.folders[0]), difference_max=0.1)
    version.close()


def test_the_server_tells_how_many_candidates_wait_and_run(world: World) -> None:
    client = VllmClient(world.url, door(world.home))
    idle = read_load(client.metrics(timeout_seconds=10))
    assert idle is not None and (idle.waiting, idle.running) == (0, 0)
    many = Sampling(candidates=64, temperature=1.0, tokens_max=60, no_repeat=False)
    version = served(world, 0, "load")
    thread = threading.Thread(target=lambda: version.sampler.sample([[5, 6, 7]], many, [1]))
    thread.start()
    seen = []

    def is_full() -> bool:
        load = read_load(client.metrics(timeout_seconds=10))
        assert load is not None
        seen.append((load.running, load.waiting))
        return load.running == SETTINGS.sequences_max and load.waiting > 0

    try:
        wait_for(is_full)
    finally:
        thread.join(120)
        version.close()
    assert not thread.is_alive()


@contextmanager
def another_server(world: World, home: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a second server as a user would, without a key; it is killed at the end, if it still lives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = vllm_command(SETTINGS, world.model, python=vllm_python(SETTINGS), port=port, tags=[], on_gpu=False)
    with (home / "console.log").open("wb") as console:
        process = subprocess.Popen(
            command,
            env=vllm_process_environment(SETTINGS, home),
            cwd=home,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or answers(url), seconds=SETTINGS.start_seconds)
        assert process.poll() is None, (home / "console.log").read_text()[-2000:]
        yield url, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def test_two_servers_write_as_one_and_one_goes_on_when_the_other_is_killed(world: World, tmp_path: Path) -> None:
    with another_server(world, tmp_path) as (url, process):
        version = ServedVersion(
            world.folders[1],
            world.versions[1],
            url=f"{world.url},{url}",
            settings=msgspec.structs.replace(door(world.home), requests_in_flight=1),
            directory=tmp_path / "runs" / "two",
            staleness_max=0,
            difference_max=TOLERANCE,
        )
        prompts, seeds = PROMPTS * 4, list(range(12))
        policy = load_policy(world.folders[1])
        assert measure_agreement(policy, version.sampler, prompts, HOT, seeds).difference_max < TOLERANCE
        second = VllmClient(url, VllmSettings())
        assert "policy-v1-aaaaaa-000001" in second.models()
        assert "vllm:request_success_total{" in second.metrics(timeout_seconds=10)
        assert requests_done(second) > 2  # The probes are two.
        groups: list[object] = []
        thread = threading.Thread(target=lambda: groups.extend(version.sampler.sample(prompts, HOT, seeds)))
        before = requests_done(second)
        thread.start()
        wait_for(lambda: requests_done(second) > before)
        os.killpg(process.pid, signal.SIGKILL)
        thread.join(120)
        assert len(groups) == 12
        assert measure_agreement(policy, version.sampler, prompts, HOT, seeds).difference_max < TOLERANCE
        version.close()


def requests_done(client: VllmClient) -> float:
    """Return how many requests a server has answered."""
    lines = client.metrics(timeout_seconds=10).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))


def test_greedy_decoding_is_that_of_transformers(world: World) -> None:
    version = served(world, 1, "greedy")
    greedy = Sampling(candidates=1, temperature=0.0, tokens_max=6, no_repeat=False)
    groups = version.sampler.sample(PROMPTS, greedy, SEEDS)
    version.close()
    policy = load_policy(world.folders[1])
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids = list(prompt)
        for token in group[0].token_ids:
            with torch.inference_mode():
                assert token == int(policy.model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_adapters_applied_by_one_product_each_are_vllms_own(world: World) -> None:
    # The oracle is vLLM's way, which copies an adapter for each token: bf16 alike to the bit, fp32 to its rounding.
    said = subprocess.run(
        [ENVIRONMENT / "bin" / "python", Path(__file__).with_name("lora_oracle.py")],
        env=vllm_process_environment(SETTINGS, world.home),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = msgspec.json.decode(said.splitlines()[-1])
    assert found["chosen"] == "GroupedLora"
    assert len(found["differences"]) == 12
    assert max(found["differences"].values()) < 1e-6
    assert found["base_untouched"] == [True, False, True]
    console = next((world.home / "services" / ROLE).rglob("console.log"))
    assert "Using GroupedLora." in console.read_text()


def test_a_version_loaded_while_it_runs_writes_otherwise_and_an_old_one_goes(world: World) -> None:
    client = VllmClient(world.url, door(world.home))
    version = served(world, 0, "versions")
    before = version.sampler.sample(PROMPTS, HOT, SEEDS)
    assert version.sampler.sample(PROMPTS, HOT, SEEDS) == before  # The same seeds, the same company.
    version.refresh(world.folders[1], world.versions[1])
    after = version.sampler.sample(PROMPTS, HOT, SEEDS)
    assert [[c.token_ids for c in group] for group in after] != [[c.token_ids for c in group] for group in before]
    version.refresh(*checkpoint(load_policy(world.folders[1]), world.home / "checkpoints", 2))
    assert sorted(name for name in client.models() if name.startswith("policy-v")) == [
        "policy-v1-aaaaaa-000001",
        "policy-v1-aaaaaa-000002",
    ]
    version.close()


def test_a_burst_of_prompts_beyond_what_is_read_at_once_is_answered(world: World) -> None:
    prompts = [[5 + place] * 90 for place in range(6)]
    assert len(prompts[0]) < READ_AT_ONCE < 2 * len(prompts[0])
    version = served(world, 0, "burst")
    groups = version.sampler.sample(prompts, HOT, list(range(6)))
    alone = [version.sampler.sample([prompt], HOT, [seed])[0] for seed, prompt in enumerate(prompts)]
    version.close()
    assert [[c.token_ids for c in group] for group in groups] == [[c.token_ids for c in group] for group in alone]


def test_a_prompt_that_leaves_no_room_for_the_answer_is_an_error(world: World) -> None:
    version = served(world, 0, "long")
    with pytest.raises(VllmError, match=r"expected 10 tokens or an end, got \d without one.*context_tokens"):
        version.sampler.sample([[5] * 120], HOT, [1])
    with pytest.raises(VllmError, match="maximum context length is 128 tokens"):
        version.sampler.sample([[5] * 129], HOT, [1])
    version.close()
