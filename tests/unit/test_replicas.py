"""Several vLLM servers at once: one version on all of them or on none, each group answered once, none left waiting.

Most servers here answer with a real model and its adapters; the oracle is the same model asked alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from infra.app.layers import combine
from infra.app.settings import Settings
from learner.adapters import adapter_name
from learner.checkpoints import Manifest
from learner.engine_load import EngineLoad, GroupWindow, read_load
from learner.learning import write_policy_checkpoint
from learner.policy import Policy, build_tiny, load_policy, save_policy, with_lora
from learner.policy_settings import LoraSettings, TinySettings
from learner.probes import AdapterError, make_probes
from learner.serving import ServedVersion
from learner.vllm import VllmClient, VllmError, VllmSettings, addresses
from services.vllm import VllmServerSettings
from streams.errors import SettingsError, TransientError
from streams.events import PolicyRef, Sampling
from tests.fake_vllm import FakeVllm, ModelVllm
from tests.stored_events import generation

QUICK = VllmSettings(retry_seconds_max=20, timeout_seconds=20, lease_seconds=0.5)
HOT = Sampling(candidates=3, temperature=0.9, tokens_max=6, no_repeat=False)
PROMPTS = [[5 + number, 6, 7] for number in range(12)]
SEEDS = list(range(100, 112))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    shape = TinySettings(vocabulary_size=300, hidden_size=16, layers=1, heads=2, feedforward_size=32, positions_max=64)
    return save_policy(build_tiny(["red patch cable"] * 4, shape), tmp_path_factory.mktemp("base"))


@pytest.fixture
def fakes() -> Iterator[list[FakeVllm]]:
    """Give three servers that answer by rule."""
    with ExitStack() as stack:
        yield [stack.enter_context(FakeVllm()) for _ in range(3)]


@pytest.fixture
def models(base: Policy) -> Iterator[list[ModelVllm]]:
    """Give two servers that answer with the model."""
    assert base.path is not None
    servers = [ModelVllm(base.path), ModelVllm(base.path)]
    with servers[0], servers[1]:
        yield servers


def checkpoint(base: Policy, root: Path, step: int) -> tuple[Path, PolicyRef]:
    """Write a version as the learner does, with probes, and with weights of its own."""
    assert base.path is not None
    torch.manual_seed(step)
    policy = with_lora(load_policy(base.path), LoraSettings(rank=2))
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:  # Fresh adapters are 0 there, and change nothing.
                weight.normal_(std=2.0)
    groups = [
        msgspec.structs.replace(
            group,
            prompt_token_ids=tuple(token % 200 for token in group.prompt_token_ids[:20]),
            completions=tuple(
                msgspec.structs.replace(each, token_ids=tuple(token % 200 for token in each.token_ids[:8]))
                for each in group.completions
            ),
        )
        for group in (generation(number) for number in range(2))
    ]
    probes = make_probes(policy, groups, count=2)
    manifest = Manifest(policy=PolicyRef(lineage="1-aaaaaa", step=step, sha256=""), parent=None)
    folder, kept = write_policy_checkpoint(root / "checkpoints", policy, manifest, None, probes)
    return folder, kept.policy


def served(
    base: Policy, root: Path, servers: list[FakeVllm] | list[ModelVllm], settings: VllmSettings = QUICK, step: int = 0
) -> ServedVersion:
    return version_on(servers, *checkpoint(base, root, step), root, settings)


def version_on(
    servers: list[FakeVllm] | list[ModelVllm], folder: Path, reference: PolicyRef, root: Path, settings: VllmSettings
) -> ServedVersion:
    return ServedVersion(
        folder,
        reference,
        url=",".join(server.url for server in servers),
        settings=settings,
        directory=root,
        staleness_max=1,
        difference_max=0.01,
    )


def groups_at(server: FakeVllm) -> int:
    """Return how many groups a server was asked for, without the probes."""
    return sum("seed" in body for body in server.asked("/v1/completions"))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def test_servers_share_the_groups_and_give_what_one_alone_gives(
    base: Policy, tmp_path: Path, models: list[ModelVllm]
) -> None:
    both = served(base, tmp_path, models)
    shared = both.sampler.sample(PROMPTS, HOT, SEEDS)
    assert all(groups_at(server) >= 3 for server in models)
    alone = served(base, tmp_path / "alone", models[:1])
    assert alone.sampler.sample(PROMPTS, HOT, SEEDS) == shared
    assert len({group[0].token_ids for group in shared}) > 6


def test_a_version_that_one_server_refuses_is_used_on_none(base: Policy, tmp_path: Path, fakes: list[FakeVllm]) -> None:
    version = served_plainly(base, tmp_path, fakes)
    fakes[1].refuses_adapters = True
    folder, reference = checkpoint_without_probes(base, tmp_path, 1)
    with pytest.raises(VllmError, match=rf"version 1-aaaaaa-000001 is not used.*{fakes[1].url}.*max_lora_rank 16"):
        version.refresh(folder, reference)
    assert [sorted(server.adapters) for server in fakes] == [["policy-v1-aaaaaa-000000"]] * 3
    assert version.sampler.policy.step == 0
    assert len(version.sampler.sample(PROMPTS, HOT, SEEDS)) == len(PROMPTS)
    assert {body["model"] for server in fakes for body in server.asked("/v1/completions")} == {
        "policy-v1-aaaaaa-000000"
    }
    fakes[1].refuses_adapters = False
    version.refresh(folder, reference)
    assert all("policy-v1-aaaaaa-000001" in server.adapters for server in fakes)


def test_a_refused_version_stays_where_another_generator_uses_it(
    base: Policy, tmp_path: Path, fakes: list[FakeVllm]
) -> None:
    first, second = served_plainly(base, tmp_path, fakes[:1]), served_plainly(base, tmp_path, fakes)
    folder, reference = checkpoint_without_probes(base, tmp_path, 1)
    first.refresh(folder, reference)
    fakes[2].refuses_adapters = True
    with pytest.raises(VllmError, match="is not used"):
        second.refresh(folder, reference)
    assert adapter_name(reference) in fakes[0].adapters
    assert first.sampler.sample(PROMPTS, HOT, SEEDS)


def test_a_server_that_is_down_is_left_out_and_gets_the_version_in_use_before_it_serves_again(
    base: Policy, tmp_path: Path, fakes: list[FakeVllm]
) -> None:
    version = served_plainly(base, tmp_path, fakes)
    fakes[0].die()
    folder, reference = checkpoint_without_probes(base, tmp_path, 1)
    version.refresh(folder, reference)
    before = groups_at(fakes[0])
    assert len(version.sampler.sample(PROMPTS, HOT, SEEDS)) == len(PROMPTS)
    assert groups_at(fakes[0]) == before
    fakes[0].rise()
    wait_for(lambda: version.sampler.sample(PROMPTS, HOT, SEEDS) and groups_at(fakes[0]) > before)
    assert list(fakes[0].adapters) == [adapter_name(reference)]
    loads = [path for path, body in fakes[0].requests if path == "/v1/load_lora_adapter" or "seed" in body]
    assert loads[before + 1] == "/v1/load_lora_adapter"  # Before the first group.


def test_groups_of_a_server_that_dies_are_answered_once_by_another_one_with_the_same_texts(
    base: Policy, tmp_path: Path, models: list[ModelVllm]
) -> None:
    version = served(base, tmp_path, models)
    wanted = version.sampler.sample(PROMPTS, HOT, SEEDS)
    models[0].moves.clear()  # It takes its share and answers nothing.
    busy = groups_at(models[0])
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.extend(version.sampler.sample(PROMPTS, HOT, SEEDS)))
    thread.start()
    wait_for(lambda: groups_at(models[0]) > busy)
    models[0].die()
    thread.join(60)
    assert got == wanted


def test_groups_of_a_server_that_stands_still_are_asked_of_another_one_and_its_late_answers_are_dropped(
    base: Policy, tmp_path: Path, models: list[ModelVllm]
) -> None:
    version = served(base, tmp_path, models)
    wanted = version.sampler.sample(PROMPTS, HOT, SEEDS)
    models[0].moves.clear()
    assert version.sampler.sample(PROMPTS, HOT, SEEDS) == wanted
    taken = groups_at(models[0])
    models[0].moves.set()
    assert version.sampler.sample(PROMPTS, HOT, SEEDS) == wanted
    wait_for(lambda: version.sampler.sample(PROMPTS, HOT, SEEDS) and groups_at(models[0]) > taken)


def test_a_server_that_answers_with_another_adapter_is_found_out(
    base: Policy, tmp_path: Path, models: list[ModelVllm]
) -> None:
    version = served(base, tmp_path, models)
    folder, reference = checkpoint(base, tmp_path, 1)
    name = adapter_name(reference)
    models[1].mistaken[name] = "policy-v1-aaaaaa-000000"
    with pytest.raises(AdapterError, match=rf"{models[1].url}: adapter {name}: expected log-probabilities within 0.01"):
        version.refresh(folder, reference)
    assert all(name not in server.adapters for server in models)
    assert version.sampler.policy.step == 0
    models[1].mistaken.clear()
    version.refresh(folder, reference)
    assert version.sampler.policy.step == 1
    assert version.sampler.sample(PROMPTS, HOT, SEEDS)


def test_a_server_that_comes_back_with_another_adapter_stays_left_out(
    base: Policy, tmp_path: Path, models: list[ModelVllm], caplog: pytest.LogCaptureFixture
) -> None:
    version = served(base, tmp_path, models)
    wanted = version.sampler.sample(PROMPTS, HOT, SEEDS)
    models[0].die()
    assert version.sampler.sample(PROMPTS, HOT, SEEDS) == wanted
    taken = groups_at(models[0])
    models[0].mistaken["policy-v1-aaaaaa-000000"] = "base"
    models[0].rise()
    wait_for(lambda: version.sampler.sample(PROMPTS, HOT, SEEDS) == wanted and "stays left out" in caplog.text)
    assert groups_at(models[0]) == taken


def test_a_server_with_a_long_queue_gets_few_groups(base: Policy, tmp_path: Path, fakes: list[FakeVllm]) -> None:
    version = served_plainly(base, tmp_path, fakes)
    fakes[0].waiting = 500
    for _ in range(20):
        version.sampler.sample(PROMPTS, HOT, SEEDS)
        if groups_at(fakes[0]):
            break
    begun = [groups_at(server) for server in fakes]
    wait_for(lambda: fakes[0].asked("/metrics") or version.sampler.sample(PROMPTS, HOT, SEEDS))
    for _ in range(5):
        version.sampler.sample(PROMPTS, HOT, SEEDS)
    got = [groups_at(server) - before for server, before in zip(fakes, begun, strict=True)]
    assert got[0] < min(got[1:])


def test_a_server_that_forgets_its_adapter_at_once_is_left_out_and_the_others_answer(
    base: Policy, tmp_path: Path, fakes: list[FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = served_plainly(base, tmp_path, fakes)
    wanted = version.sampler.sample(PROMPTS, HOT, SEEDS)
    answer = fakes[0].answer

    def forgetful(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/completions":
            fakes[0].adapters.clear()
        return answer(path, body)

    monkeypatch.setattr(fakes[0], "answer", forgetful)
    assert version.sampler.sample(PROMPTS, HOT, SEEDS) == wanted


def test_an_overloaded_server_rests_and_the_others_answer(base: Policy, tmp_path: Path, fakes: list[FakeVllm]) -> None:
    version = served_plainly(base, tmp_path, fakes)
    fakes[0].failures.extend([(429, {"Retry-After": "3"})] * 2)
    assert len(version.sampler.sample(PROMPTS, HOT, SEEDS)) == len(PROMPTS)
    assert len(fakes[0].failures) < 2


def test_without_any_server_the_group_waits_and_then_says_why(
    base: Policy, tmp_path: Path, fakes: list[FakeVllm]
) -> None:
    version = served_plainly(base, tmp_path, fakes, msgspec.structs.replace(QUICK, retry_seconds_max=1.0))
    for server in fakes:
        server.die()
    with pytest.raises(TransientError, match=f"{fakes[0].url}"):
        version.sampler.sample(PROMPTS, HOT, SEEDS)
    fakes[2].rise()
    wait_for(lambda: sampled(version))


def test_an_old_vllm_is_refused(base: Policy, tmp_path: Path, fakes: list[FakeVllm]) -> None:
    fakes[1].version = "0.24.3.post1"
    with pytest.raises(VllmError, match=rf"{fakes[1].url}: expected version 0\.25 or newer, got '0\.24\.3"):
        served_plainly(base, tmp_path, fakes)
    for told in ("0.25.0rc1", "1.0", "", "main"):
        fakes[1].version = told
        VllmClient(fakes[1].url, QUICK).require_version()


def test_probes_are_what_transformers_computes(base: Policy, tmp_path: Path) -> None:
    from learner.probes import read_probes

    folder, _ = checkpoint(base, tmp_path, 3)
    policy = load_policy(folder)
    probes = read_probes(folder)
    assert len(probes) == 2
    for probe in probes:
        ids = [*probe.prompt_ids, *probe.token_ids]
        with torch.inference_mode():
            logprobs = policy.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = [float(logprobs[len(probe.prompt_ids) - 1 + n, token]) for n, token in enumerate(probe.token_ids)]
        assert probe.logprobs == pytest.approx(own, abs=1e-4)
    (folder / "probes.json").write_text('[{"prompt_ids": "x"}]')
    with pytest.raises(VllmError, match="expected the probes of a version"):
        read_probes(folder)


def test_the_load_is_read_from_the_metrics_of_vllm() -> None:
    text = (
        '# HELP vllm:num_requests_waiting Waiting.\nvllm:num_requests_waiting{engine="0",model_name="a b"} 3.0\n'
        'vllm:num_requests_waiting{engine="1",model_name="a b"} 4.0\n'
        'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 3.0\n'
        'vllm:num_requests_running{engine="0"} 8.0\nvllm:kv_cache_usage_perc{engine="0"} 0.75\n'
    )
    assert read_load(text) == EngineLoad(waiting=7, running=8, cache_share=0.75)
    assert read_load("<html>") is None
    assert read_load('vllm:num_requests_waiting{engine="0 3\nvllm:num_requests_running 1') is None


def test_the_window_shrinks_while_the_queue_is_long_and_grows_by_one_a_window() -> None:
    window = GroupWindow(groups_max=32, queue_max=16)
    for _ in range(3):
        window.heard(EngineLoad(waiting=17, running=64, cache_share=0.1))
    assert window.groups == 16 and window.is_closed
    window.answered(16)
    assert window.groups == 16  # Not while the queue is long.
    window.heard(EngineLoad(waiting=2, running=64, cache_share=0.1))
    for _ in range(17):
        window.answered(17)
    assert window.groups == 17 and not window.is_closed
    window.answered(3)  # A window that is not used up says nothing about the server.
    assert window.groups == 17
    window.refused()
    assert window.groups == 8
    for _ in range(50):
        window.heard(EngineLoad(waiting=1, running=64, cache_share=0.99))
    assert window.groups == 1 and window.is_closed
    window.heard(None)  # The metrics are gone: no old word may keep it closed for ever.
    assert not window.is_closed


def test_addresses_are_separated_by_commas_and_named_once() -> None:
    assert addresses(" http://a:1/ , http://b:2,") == ("http://a:1", "http://b:2")
    with pytest.raises(ValueError, match="expected each address once"):
        VllmSettings(url="http://a:1,http://a:1/")


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        ("generation", {"top_p": 0.9}, r"generation\.top_p: expected 1, got 0\.9: .*importance ratios"),
        ("generation", {"top_k": 50}, r"generation\.top_k: expected 0 .*got 50: .*importance ratios"),
        (
            "vllm_server",
            {"arguments": ["--override-generation-config={}"]},
            r"vllm_server\.arguments: expected no --ov",
        ),
        ("vllm_server", {"arguments": ["--logprobs-mode", "raw_logprobs"]}, r"no --logprobs-mode: .*importance ratios"),
    ],
)
def test_sampling_from_a_part_of_the_distribution_is_refused(
    table: str, given: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        combine(Settings, [("a.toml", {table: given})])
    neutral = combine(Settings, [("a.toml", {"generation": {"top_p": 1, "top_k": -1}})])
    assert neutral.generation.sampling() == Settings().generation.sampling()
    assert VllmServerSettings(arguments=("--gpu-memory-utilization", "0.35")).arguments


def checkpoint_without_probes(base: Policy, root: Path, step: int) -> tuple[Path, PolicyRef]:
    """Write a version as older learners did."""
    assert base.path is not None
    policy = with_lora(load_policy(base.path), LoraSettings(rank=2))
    manifest = Manifest(policy=PolicyRef(lineage="1-aaaaaa", step=step, sha256=""), parent=None)
    folder, kept = write_policy_checkpoint(root / "checkpoints", policy, manifest, None)
    return folder, kept.policy


def served_plainly(base: Policy, root: Path, servers: list[FakeVllm], settings: VllmSettings = QUICK) -> ServedVersion:
    """Return a first version without probes, for servers that answer by rule."""
    return version_on(servers, *checkpoint_without_probes(base, root, 0), root, settings)


def sampled(version: ServedVersion) -> bool:
    try:
        return len(version.sampler.sample(PROMPTS[:1], HOT, SEEDS[:1])) == 1
    except TransientError:
        return False
