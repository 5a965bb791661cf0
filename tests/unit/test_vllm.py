"""The client of a vLLM server: what it sends, what it refuses, how it waits, and which adapters it keeps."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

import learner.vllm
from infra.app.app import VllmTables
from infra.app.settings import Settings
from infra.runs.serving import check_backend
from learner.adapters import Adapters, adapter_name, superseded
from learner.checkpoints import CheckpointError, Manifest
from learner.generation import GenerationSettings
from learner.learning import write_policy_checkpoint
from learner.policy import Policy, PolicyError, build_tiny, load_policy, save_policy, with_lora
from learner.policy_settings import LoraSettings, PolicySettings, TinySettings
from learner.replicas import Replicas
from learner.sampling import SamplingError
from learner.serving import ServedVersion
from learner.vllm import UnknownModelError, VllmClient, VllmError, VllmSettings
from services.errors import ProvisionError
from services.vllm import ENVIRONMENT, VllmModel, VllmServerSettings, lora_room, vllm_command, vllm_python
from streams.errors import SettingsError, TransientError
from streams.events import PolicyRef, Sampling
from streams.whole_file import file_sha256
from tests.fake_vllm import FakeVllm

QUICK = VllmSettings(retry_seconds_max=5, timeout_seconds=5)
HOT = Sampling(candidates=4, temperature=0.9, tokens_max=6, no_repeat=False)


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    with FakeVllm() as fake:
        yield fake


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    shape = TinySettings(vocabulary_size=300, hidden_size=16, layers=1, heads=2, feedforward_size=32, positions_max=64)
    return save_policy(build_tiny(["red patch cable"] * 4, shape), tmp_path_factory.mktemp("base"))


def checkpoint(base: Policy, folder: Path, step: int, lineage: str = "1-aaaaaa") -> PolicyRef:
    """Write a version as the learner does, an adapter with its tokenizer, but into a folder of this name."""
    assert base.path is not None
    policy = with_lora(load_policy(base.path), LoraSettings(rank=2))
    manifest = Manifest(policy=PolicyRef(lineage=lineage, step=step, sha256=""), parent=None)
    written, kept = write_policy_checkpoint(folder.parent / f"{folder.name}.all", policy, manifest, None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    written.rename(folder)
    return kept.policy


def served(
    base: Policy, folder: Path, url: str, settings: VllmSettings = QUICK, staleness_max: int = 0
) -> ServedVersion:
    reference = checkpoint(base, folder / "checkpoints" / "0", 0)
    return ServedVersion(
        folder / "checkpoints" / "0",
        reference,
        url=url,
        settings=settings,
        directory=folder,
        staleness_max=staleness_max,
        difference_max=0.1,
    )


def test_a_group_is_one_request_for_token_ids_at_the_plain_distribution(
    server: FakeVllm, base: Policy, tmp_path: Path
) -> None:
    version = served(base, tmp_path, server.url)
    groups = version.sampler.sample([[5, 6, 7], [9]], HOT, [11, 2**63 - 1])
    bodies = sorted(server.asked("/v1/completions"), key=lambda body: len(body["prompt"]), reverse=True)
    assert [body["prompt"] for body in bodies] == [[5, 6, 7], [9]]
    first = bodies[0]
    assert first["model"] == "policy-v1-aaaaaa-000000"
    assert (first["n"], first["seed"], first["temperature"], first["max_tokens"]) == (4, 11, 0.9, 6)
    assert (first["top_p"], first["top_k"], first["min_p"], first["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
    assert first["return_token_ids"] is True and first["logprobs"] == 0
    assert first["ignore_eos"] is True and first["stop_token_ids"] == list(base.stop_ids)
    assert bodies[1]["seed"] + first["n"] < 2**63
    assert [[c.logprobs[0] for c in group] for group in groups] == [[-0.5, -1.5, -2.5, -3.5]] * 2
    assert [len(c.token_ids) for c in groups[0]] == [6, 5, 6, 5]


def test_a_completion_ends_as_the_policys_own_stops_say(server: FakeVllm, base: Policy, tmp_path: Path) -> None:
    group = served(base, tmp_path, server.url).sampler.sample([[5]], HOT, [1])[0]
    assert [completion.finish for completion in group] == ["length", "stop", "length", "stop"]
    assert all(completion.text == base.tokenizer.decode(list(completion.token_ids)) for completion in group[::2])


def test_greedy_asks_for_one_candidate_and_its_logprobs_are_0(server: FakeVllm, base: Policy, tmp_path: Path) -> None:
    greedy = msgspec.structs.replace(HOT, temperature=0.0)
    group = served(base, tmp_path, server.url).sampler.sample([[5]], greedy, [1])[0]
    assert server.asked("/v1/completions")[0]["n"] == 1
    assert len(group) == 4 and len(set(group)) == 1 and set(group[0].logprobs) == {0.0}


def test_no_more_requests_are_in_flight_than_allowed(server: FakeVllm, base: Policy, tmp_path: Path) -> None:
    version = served(base, tmp_path, server.url, msgspec.structs.replace(QUICK, requests_in_flight=2))
    groups = version.sampler.sample([[5 + number] for number in range(12)], HOT, list(range(12)))
    assert len(groups) == 12 and 1 <= server.busiest <= 2


def test_what_cannot_be_sampled_is_refused_before_it_is_sent(server: FakeVllm, base: Policy, tmp_path: Path) -> None:
    sampler = served(base, tmp_path, server.url).sampler
    with pytest.raises(SamplingError, match=r"expected generation\.no_repeat = false, got true"):
        sampler.sample([[5]], msgspec.structs.replace(HOT, no_repeat=True), [1])
    with pytest.raises(SamplingError, match="expected one seed"):
        sampler.sample([[5]], HOT, [])
    with pytest.raises(SamplingError, match="got an empty one"):
        sampler.sample([[]], HOT, [1])
    assert server.asked("/v1/completions") == []


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"token_ids": None}, r"expected token_ids \(return_token_ids\)"),
        ({"logprobs": None}, "expected 6 log-probabilities, one for each token id"),
        ({"logprobs": {"token_logprobs": [-1.0] * 3}}, "expected 6 log-probabilities"),
        ({"token_ids": [5], "logprobs": {"token_logprobs": [None]}}, "expected finite log-probabilities"),
        ({"token_ids": [5], "logprobs": {"token_logprobs": [0.3]}}, "expected finite log-probabilities"),
        ({"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0, -1.0]}}, r"got 2 without one.*context_tokens"),
        ({"prompt_token_ids": [1, 5]}, "expected the prompt's token ids as they were sent"),
    ],
)
def test_half_an_answer_never_becomes_a_group(
    server: FakeVllm, base: Policy, tmp_path: Path, spoiled: dict[str, object], message: str
) -> None:
    sampler = served(base, tmp_path, server.url).sampler
    server.spoil = spoiled
    with pytest.raises(VllmError, match=message):
        sampler.sample([[5]], msgspec.structs.replace(HOT, candidates=1), [1])


def test_an_overloaded_server_is_asked_again_and_told_waits_are_kept(server: FakeVllm) -> None:
    server.failures.extend([(429, {"Retry-After": "0.3"}), (503, {}), (500, {})])
    began = time.monotonic()
    assert VllmClient(server.url, QUICK).models() == {"base": "/base"}
    assert time.monotonic() - began >= 0.3
    assert len(server.requests) == 4


def test_back_off_grows_and_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(learner.vllm.time, "sleep", waits.append)
    monkeypatch.setattr(learner.vllm.random, "uniform", lambda low, high: high if low == 0 else low)
    monkeypatch.setattr(learner.vllm.time, "monotonic", lambda: sum(waits))
    with pytest.raises(TransientError, match=r"does not answer .*retried for 20 s"):
        VllmClient("http://127.0.0.1:9", VllmSettings(retry_seconds_max=20)).models()
    assert waits[:6] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert sum(waits) <= 20


def test_a_server_that_stays_down_is_transient_and_a_refusal_is_not(server: FakeVllm) -> None:
    server.failures.extend([(503, {})] * 50)
    with pytest.raises(TransientError, match="answers 503: told to fail"):
        VllmClient(server.url, VllmSettings(retry_seconds_max=0.3)).models()
    server.failures.clear()
    server.failures.append((400, {}))
    asked = len(server.requests)
    with pytest.raises(VllmError, match="answers 400: told to fail"):
        VllmClient(server.url, QUICK).models()
    assert len(server.requests) == asked + 1


def test_a_wrong_key_says_which_setting_and_the_key_is_not_in_the_repr() -> None:
    with FakeVllm(api_key="open sesame") as server:
        with pytest.raises(VllmError, match=r"401: .*Check vllm\.api_key"):
            VllmClient(server.url, QUICK).models()
        settings = msgspec.structs.replace(QUICK, api_key="open sesame")
        assert VllmClient(server.url, settings).models()
    assert "sesame" not in repr(settings) and "sesame" not in repr(VllmTables(vllm=settings))


@pytest.mark.parametrize("url", ["localhost", "localhost:8000", "gpu-1:8000", "ftp://a:1", "http://", "http://a:port"])
def test_an_address_that_is_none_names_the_setting(url: str) -> None:
    with pytest.raises(VllmError, match=r"vllm\.url: expected an address like"):
        VllmClient(url, QUICK)


def test_a_server_that_was_started_anew_gets_the_adapter_again(server: FakeVllm, base: Policy, tmp_path: Path) -> None:
    version = served(base, tmp_path, server.url)
    server.adapters.clear()
    assert len(version.sampler.sample([[5]], HOT, [1])[0]) == 4
    assert list(server.adapters) == ["policy-v1-aaaaaa-000000"]


def test_each_version_has_a_name_and_a_folder_that_the_learner_does_not_prune(
    server: FakeVllm, base: Policy, tmp_path: Path
) -> None:
    version = served(base, tmp_path, server.url, staleness_max=1)
    for step in range(1, 6):
        folder = tmp_path / "checkpoints" / str(step)
        version.refresh(folder, checkpoint(base, folder, step))
        assert version.sampler.policy.step == step
        for file in folder.iterdir():  # What the learner's pruning does.
            file.unlink()
        assert (Path(server.adapters[f"policy-v1-aaaaaa-{step:06d}"]) / "adapter_model.safetensors").is_file()
    # staleness 1: the newest three stay.
    assert sorted(server.adapters) == [f"policy-v1-aaaaaa-{step:06d}" for step in (3, 4, 5)]
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir() if path.is_dir()) == sorted(server.adapters)


def test_a_version_that_another_generator_uses_is_never_unloaded(
    server: FakeVllm, base: Policy, tmp_path: Path
) -> None:
    slow = served(base, tmp_path, server.url)
    fast = served(base, tmp_path, server.url)
    for step in range(1, 5):
        folder = tmp_path / "checkpoints" / str(step)
        fast.refresh(folder, checkpoint(base, folder, step))
        assert "policy-v1-aaaaaa-000000" in server.adapters
        assert slow.sampler.sample([[5]], HOT, [1])
    slow.close()
    folder = tmp_path / "checkpoints" / "5"
    fast.refresh(folder, checkpoint(base, folder, 5))
    assert sorted(server.adapters) == [f"policy-v1-aaaaaa-{step:06d}" for step in (4, 5)]


def test_a_lease_ends_with_its_process(server: FakeVllm, base: Policy, tmp_path: Path) -> None:
    fast = served(base, tmp_path, server.url)
    child = os.fork()
    if child == 0:  # Killed while it holds the lease on version 0, without a word.
        served(base, tmp_path, server.url)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    for step in range(1, 4):
        folder = tmp_path / "checkpoints" / str(step)
        fast.refresh(folder, checkpoint(base, folder, step))
    assert sorted(server.adapters) == [f"policy-v1-aaaaaa-{step:06d}" for step in (2, 3)]


def test_weights_that_are_not_the_announced_ones_leave_the_version_before_in_use(
    server: FakeVllm, base: Policy, tmp_path: Path
) -> None:
    version = served(base, tmp_path, server.url)
    folder = tmp_path / "checkpoints" / "1"
    reference = checkpoint(base, folder, 1)
    with pytest.raises(CheckpointError, match="expected weights with sha256 000"):
        version.refresh(folder, msgspec.structs.replace(reference, sha256="0" * 64))
    with pytest.raises(CheckpointError, match="No such file"):
        version.refresh(tmp_path / "checkpoints" / "gone", msgspec.structs.replace(reference, step=7))
    assert version.sampler.policy.step == 0
    assert version.sampler.sample([[5]], HOT, [1])
    assert file_sha256(folder / "adapter_model.safetensors") == reference.sha256


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.unlink()  # The checkpoint's file and the adapter's are one file with two names: leave the other one alone.
    file.write_bytes(content)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"])
def test_a_first_version_of_which_a_file_has_changed_is_never_sampled_from(
    server: FakeVllm, base: Policy, tmp_path: Path, file: str
) -> None:
    folder = tmp_path / "checkpoints" / "0"
    reference = checkpoint(base, folder, 0)
    flip_byte(folder / file)
    with pytest.raises((CheckpointError, PolicyError)):
        ServedVersion(
            folder, reference, url=server.url, settings=QUICK, directory=tmp_path, staleness_max=0, difference_max=0.1
        )
    assert server.adapters == {}


@pytest.mark.parametrize("file", ["adapter_config.json", "tokenizer.json"])
def test_a_newer_version_of_which_a_file_has_changed_leaves_the_version_before_in_use(
    server: FakeVllm, base: Policy, tmp_path: Path, file: str
) -> None:
    version = served(base, tmp_path, server.url)
    reference = checkpoint(base, tmp_path / "checkpoints" / "1", 1)
    flip_byte(tmp_path / "checkpoints" / "1" / file)
    with pytest.raises(CheckpointError, match="should have sha256"):
        version.refresh(tmp_path / "checkpoints" / "1", reference)
    assert version.sampler.policy.step == 0 and list(server.adapters) == ["policy-v1-aaaaaa-000000"]


@pytest.mark.parametrize("damage", ["other weights", "other settings", "a file too few", "a file too many"])
def test_an_adapters_folder_that_holds_something_else_is_exchanged_and_loaded_anew(
    server: FakeVllm, base: Policy, tmp_path: Path, damage: str
) -> None:
    reference = checkpoint(base, tmp_path / "checkpoint", 0)
    place = tmp_path / "adapters" / adapter_name(reference)
    replicas = Replicas(QUICK, [server.url])
    Adapters(replicas, tmp_path / "adapters", kept=2, difference_max=0.1).use(reference, tmp_path / "checkpoint")
    if damage == "a file too few":
        (place / "adapter_config.json").unlink()
    elif damage == "a file too many":
        (place / "new_embeddings.safetensors").write_text("not ours")
    else:
        flip_byte(place / ("adapter_model.safetensors" if damage == "other weights" else "adapter_config.json"))
    asked = len(server.requests)
    Adapters(replicas, tmp_path / "adapters", kept=2, difference_max=0.1).use(reference, tmp_path / "checkpoint")
    assert {path.name: file_sha256(path) for path in place.iterdir()} == {
        name: file_sha256(tmp_path / "checkpoint" / name)
        for name in ("adapter_model.safetensors", "adapter_config.json")
    }
    assert [path for path, _ in server.requests[asked:]] == ["/v1/unload_lora_adapter", "/v1/load_lora_adapter"]
    assert [path.name for path in (tmp_path / "adapters").iterdir() if path.is_dir()] == [place.name]


def test_a_policy_without_an_adapter_is_refused(server: FakeVllm, base: Policy, tmp_path: Path) -> None:
    assert base.path is not None
    with pytest.raises(PolicyError, match=r"expected a LoRA adapter .* policy\.lora\.rank above 0"):
        ServedVersion(
            base.path,
            PolicyRef(lineage="1-aaaaaa", step=0, sha256=base.sha256),
            url=server.url,
            settings=QUICK,
            directory=tmp_path,
            staleness_max=0,
            difference_max=0.1,
        )


def test_a_server_that_sees_another_path_is_told_that_path(server: FakeVllm, base: Policy, tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(tmp_path / "run")
    reference = checkpoint(base, tmp_path / "checkpoint", 0)
    adapters = Adapters(
        Replicas(QUICK, [server.url]),
        tmp_path / "run",
        kept=2,
        difference_max=0.1,
        seen_as=str(tmp_path / "mounted"),
    )
    adapters.use(reference, tmp_path / "checkpoint")
    assert server.adapters == {adapter_name(reference): str(tmp_path / "mounted" / adapter_name(reference))}


def test_a_server_without_hot_load_says_how_to_start_it(server: FakeVllm) -> None:
    with pytest.raises(VllmError, match=r"No adapter found.*VLLM_ALLOW_RUNTIME_LORA_UPDATING.*vllm\.home"):
        VllmClient(server.url, QUICK).load_adapter("policy-v1-aaaaaa-000000", "/nowhere")
    with pytest.raises(UnknownModelError):
        VllmClient(server.url, QUICK).complete({"model": "policy-v9", "n": 1})
    VllmClient(server.url, QUICK).unload_adapter("policy-v9")


def test_the_oldest_versions_go_first_by_lineage_and_step_not_by_spelling() -> None:
    names = ["policy-v10-aaaaaa-000001", "policy-v9-ffffff-000200", "policy-v9-ffffff-000003"]
    assert superseded(names, 1) == ["policy-v9-ffffff-000003", "policy-v9-ffffff-000200"]
    assert superseded(names, 3) == []


def test_settings_that_vllm_cannot_keep_are_refused() -> None:
    lora = PolicySettings(lora=LoraSettings(rank=8))
    vllm = GenerationSettings(backend="vllm", no_repeat=False)
    check_backend(Settings())
    check_backend(Settings(generation=vllm, policy=lora))
    with pytest.raises(SettingsError, match=r"generation\.no_repeat: expected false .* got true"):
        check_backend(Settings(generation=GenerationSettings(backend="vllm"), policy=lora))
    with pytest.raises(SettingsError, match=r"policy\.lora\.rank: expected above 0 .* got 0"):
        check_backend(Settings(generation=vllm))


def test_the_server_keeps_as_many_adapters_as_may_be_in_use() -> None:
    model = VllmModel(folder="/base", rank=12, adapters_max=4)
    command = vllm_command(
        VllmServerSettings(), model, python=Path("/python"), port=8000, tags=["-Da=b c"], on_gpu=False
    )
    after = dict(pairwise(command))
    assert after["--max-loras"] == after["--max-cpu-loras"] == "4"
    assert after["--max-lora-rank"] == "16" and after["--host"] == "127.0.0.1"
    assert after["--logprobs-mode"] == "processed_logprobs"
    assert after["-X"] == "-Da=b c"
    assert "--worker-extension-cls" not in after  # That is for the pinned vLLM alone, and for a CPU.
    for on_gpu, expected in ((False, True), (True, False)):
        command = vllm_command(
            VllmServerSettings(), model, python=ENVIRONMENT / "bin" / "python", port=8000, tags=[], on_gpu=on_gpu
        )
        assert ("--worker-extension-cls" in command) is expected
    with pytest.raises(ProvisionError, match="up to rank 512, got 600"):
        lora_room(600)


def test_a_missing_environment_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match="Run: make vllm"):
        vllm_python(VllmServerSettings(python=str(tmp_path / "python")))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("")
    with pytest.raises(ProvisionError, match=r"does not have the package vllm\. Run: make vllm"):
        vllm_python(VllmServerSettings(python=str(tmp_path / "bin" / "python")))


def test_a_runs_folder_keeps_no_address_and_no_key(tmp_path: Path) -> None:
    from infra.app.run_settings import RunSettings, write_run_settings

    secret = VllmSettings(url="http://gpu:8000", api_key="open sesame", home="/mnt", requests_in_flight=7)
    kept = RunSettings(
        run="r", recipe="leser", index="i", index_version="i-1", seed=0, updates=1, settings=Settings(vllm=secret)
    )
    write_run_settings(tmp_path, kept)
    table = json.loads((tmp_path / "settings.json").read_text())["settings"]["vllm"]
    assert (table["url"], table["api_key"], table["home"], table["requests_in_flight"]) == ("", "", "", 7)
