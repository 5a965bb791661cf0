"""The learner without its streams: going on from a checkpoint is the same as never having stopped."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from learner.batches import Batch
from learner.checkpoints import CheckpointError, Manifest, load_current, prune_checkpoints
from learner.learning import Learner, LearnerSettings, write_policy_checkpoint
from learner.logprobs import vocabulary_size
from learner.objectives import ObjectiveSettings
from learner.policy import build_tiny, load_policy
from learner.policy_settings import TinySettings
from learner.probes import PROBES, PROBES_BYTES_MAX, PROMPT_TOKENS_MAX, TOKENS_MAX, make_probes, read_probes
from learner.updates import UpdateSettings
from streams.codec import content_sha256, decode, encode_event
from streams.events import PolicyRef, Reward, Update
from tests.small_disk import on_small_disk
from tests.trl_oracle import random_group, reward_event

ROOT = Path(__file__).parents[2]
TINY = TinySettings(vocabulary_size=320, hidden_size=16, layers=2, heads=2, feedforward_size=32, positions_max=64)
HELD = LearnerSettings(objective=ObjectiveSettings(kl_weight=0.5), update=UpdateSettings(learning_rate=1e-2))
OLDER = PolicyRef(lineage="0-test", step=0, sha256="")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Give a run's checkpoints, with a warmed-up policy as checkpoint 0."""
    policy = build_tiny(["red patch cable", "blue toner cartridge"] * 4, TINY)
    first = PolicyRef(lineage="1-first", step=0, sha256="")
    write_policy_checkpoint(tmp_path / "checkpoints", policy, Manifest(policy=first, parent=None), None)
    return tmp_path / "checkpoints"


def resumed(checkpoints: Path, settings: LearnerSettings = HELD) -> Learner:
    folder, manifest = load_current(checkpoints)
    return Learner.resume(folder, manifest, run="run", settings=settings, no_repeat=False)


def batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    shapes = [(7, [5, 1, 9]), (3, [4, 4])]
    groups = [random_group(generator, prompt=prompt, lengths=lengths) for prompt, lengths in shapes]
    return Batch(
        fresh=tuple(reward_event(f"{number}-{index}", group, policy=OLDER) for index, group in enumerate(groups)),
        expired=(),
        failed=(),
        positions={0: 2 * number},
        requests_consumed={},
    )


def learned(learner: Learner, checkpoints: Path, numbers: list[int]) -> list[Update]:
    updates = []
    for number in numbers:
        learner.learn(batch(number), checkpoints)
        assert learner.manifest.update is not None
        updates.append(learner.manifest.update)
    return updates


@pytest.mark.parametrize("stops", [[[1], [2, 3, 4]], [[1], [2], [3], [4]]])
def test_a_resumed_learner_is_held_to_the_same_reference_and_gives_the_same_bits(
    checkpoints: Path, tmp_path: Path, stops: list[list[int]]
) -> None:
    other = shutil.copytree(checkpoints, tmp_path / "other")
    whole = learned(resumed(checkpoints), checkpoints, [1, 2, 3, 4])
    parts = [update for numbers in stops for update in learned(resumed(other), other, numbers)]
    assert whole[1].metrics["kl_reference"] > 0
    assert [update.metrics for update in parts] == [update.metrics for update in whole]
    assert [update.policy.sha256 for update in parts] == [update.policy.sha256 for update in whole]


def test_probes_change_no_weights_and_hold_the_log_probabilities_of_the_new_ones(
    checkpoints: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoints, tmp_path / "other")
    (plain,) = learned(resumed(checkpoints), checkpoints, [1])
    folder, manifest = load_current(other)
    learner = Learner.resume(folder, manifest, run="run", settings=HELD, no_repeat=False, probes=2)
    (probed,) = learned(learner, other, [1])
    assert probed.policy.sha256 == plain.policy.sha256
    assert probed.metrics == plain.metrics
    folder, manifest = load_current(other)
    assert PROBES in manifest.files
    policy = load_policy(folder)
    probes = read_probes(folder)
    assert [len(probe.token_ids) for probe in probes] == [4, 3]  # The first completions, without their last tokens.
    for probe in probes:
        with torch.inference_mode():
            ids = torch.tensor([[*probe.prompt_ids, *probe.token_ids]])
            rows = policy.model(ids).logits[0, len(probe.prompt_ids) - 1 : -1].log_softmax(-1)
        own = rows.gather(1, torch.tensor(probe.token_ids)[:, None]).squeeze(1).tolist()
        assert probe.logprobs == pytest.approx(own, abs=1e-4)
    assert read_probes(load_current(checkpoints)[0]) == []


def test_groups_that_no_sampler_wrote_stop_no_update_and_give_no_probe(checkpoints: Path) -> None:
    """Somebody else's producer writes such groups; one that stopped the learner would stop it at each start anew."""
    good, other = batch(1).fresh
    folder, manifest = load_current(checkpoints)

    def changed(name: str, **changes: object) -> Reward:
        group = msgspec.structs.replace(other.generation, group_id=name, policy=manifest.policy, **changes)
        return msgspec.structs.replace(other, group_id=name, generation=group)

    first, second = other.generation.completions
    cold = msgspec.structs.replace(other.generation.sampling, temperature=1e-300)
    low = msgspec.structs.replace(first, logprobs=(-1e300,) * len(first.logprobs))
    bad = (
        changed("unknown tokens", prompt_token_ids=(3, 10**6)),
        changed("no tokens of a machine", prompt_token_ids=(3, 10**30)),
        changed("cold", sampling=cold),
        changed("low", completions=(low, second)),
    )
    late = msgspec.structs.replace(good, made_at_ms=10**30)
    learner = Learner.resume(folder, manifest, run="run", settings=HELD, no_repeat=False, probes=8)
    written = learner.learn(msgspec.structs.replace(batch(1), fresh=(*bad, late)), checkpoints)
    assert learner.manifest.update is not None
    assert sorted(learner.manifest.update.rejected) == sorted(each.group_id for each in bad)
    assert learner.manifest.update.trained == (good.group_id,)
    assert decode(encode_event(learner.manifest.update)) == learner.manifest.update
    assert [probe.prompt_ids for probe in read_probes(written)] == [good.generation.prompt_token_ids]


def test_a_probe_of_a_long_group_keeps_the_prompts_end_and_the_completions_beginning(checkpoints: Path) -> None:
    policy = load_policy(load_current(checkpoints)[0])
    (good,) = batch(1).fresh[:1]
    long = msgspec.structs.replace(good.generation.completions[0], token_ids=tuple(range(9, 9 + TOKENS_MAX % 300)) * 9)
    group = msgspec.structs.replace(good.generation, prompt_token_ids=(7,) * 300 + (8,), completions=(long,))
    (probe,) = make_probes(policy, [group], count=64)
    assert (len(probe.prompt_ids), probe.prompt_ids[-1]) == (PROMPT_TOKENS_MAX, 8)
    assert probe.token_ids == long.token_ids[:TOKENS_MAX]
    digits = len(str(-0.12345678955316544)) + len(str(vocabulary_size(policy.model))) + 2
    assert 64 * (TOKENS_MAX + PROMPT_TOKENS_MAX) * digits < PROBES_BYTES_MAX


def test_the_warmed_up_policy_outlives_pruning_and_is_found_from_any_lineage(checkpoints: Path) -> None:
    for number in (1, 2, 3):
        learned(resumed(checkpoints), checkpoints, [number])
        prune_checkpoints(checkpoints, keep=1, keep_every=50)
    assert len(list(checkpoints.glob("*-*-*"))) == 2
    _, manifest = load_current(checkpoints)
    assert manifest.origin is not None and (manifest.origin.lineage, manifest.origin.step) == ("1-first", 0)
    assert manifest.policy.lineage.startswith("4-")
    resumed(checkpoints)


def test_an_update_is_announced_again_byte_for_byte_and_the_next_one_names_its_hash(checkpoints: Path) -> None:
    (first,) = learned(resumed(checkpoints), checkpoints, [1])
    again = resumed(checkpoints)
    assert again.manifest.update is not None
    assert encode_event(again.manifest.update) == encode_event(first)
    (second,) = learned(again, checkpoints, [2])
    assert second.parent_update_sha256 == content_sha256(encode_event(first))


FULL = """
import sys
from pathlib import Path
from learner.checkpoints import CheckpointError, Manifest, load_current
from learner.learning import write_policy_checkpoint
from learner.policy import TinySettings, build_tiny
from streams.events import PolicyRef
checkpoints = Path(sys.argv[1]) / "checkpoints"
for step, layers in enumerate([1, 32]):  # Of 1 and 25 MiB.
    policy = build_tiny(["red patch cable"] * 4, TinySettings(vocabulary_size=300, layers=layers))
    manifest = Manifest(policy=PolicyRef(lineage="1-full", step=step, sha256=""), parent=None)
    try:
        write_policy_checkpoint(checkpoints, policy, manifest, None)
    except CheckpointError as error:
        print(error)
print(load_current(checkpoints)[0].name, *sorted(path.name for path in checkpoints.iterdir()))
"""


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path: Path) -> None:
    command = on_small_disk(tmp_path, 8, [sys.executable, "-c", FULL, str(tmp_path)])
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (
        f"checkpoint 1-full-000001 could not be written to {tmp_path}/checkpoints: the disk is full. The previous "
        "checkpoint is still CURRENT; free some disk space and start again\n"
        "1-full-000000 1-full-000000 CURRENT\n"
    )


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_resume_without_its_reference_says_what_is_missing_and_what_to_do(checkpoints: Path, harm: str) -> None:
    learned(resumed(checkpoints), checkpoints, [1])
    first = checkpoints / "1-first-000000"
    if harm == "gone":
        shutil.rmtree(first)
    else:
        (first / "model.safetensors").chmod(0o600)
        with (first / "model.safetensors").open("ab") as file:
            file.write(b"more")
    with pytest.raises(CheckpointError, match=r"kl_weight > 0 needs .* 1-first-000000.* set kl_weight to 0") as caught:
        resumed(checkpoints)
    assert str(checkpoints) in str(caught.value) and "\n" not in str(caught.value)
    resumed(checkpoints, LearnerSettings())
