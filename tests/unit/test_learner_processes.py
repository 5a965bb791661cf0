"""Several processes as one learner: the same step as one process, one checkpoint, and none of half an update."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import learner.processes
import learner.publishing
from infra.app.app import App
from infra.app.home import Home
from infra.runs.learners import learner_processes
from learner.batches import Batch
from learner.checkpoints import Manifest, current_name, load_current
from learner.helping import begin_together, help_learner
from learner.learning import RNG_STATE, Learner, LearnerSettings, write_policy_checkpoint
from learner.objectives import ObjectiveSettings
from learner.policy import Policy, build_tiny, save_policy, with_lora
from learner.policy_settings import LoraSettings, TinySettings
from learner.processes import ALONE, LearnerProcessError, Processes, join
from learner.publishing import Publishing
from learner.shares import fingerprint, shares_of
from learner.updates import UpdateError, UpdateSettings
from streams.delivery import DeliverySettings
from streams.errors import SettingsError
from streams.events import PolicyRef, PolicyVersion
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.stopping import Stop
from streams.stored_objects import StoreAwayError
from tests.trl_oracle import random_group, reward_event

FORKS = multiprocessing.get_context("fork")
TINY = TinySettings(vocabulary_size=320, hidden_size=16, layers=2, heads=2, feedforward_size=32, positions_max=64)
SETTINGS = LearnerSettings(
    objective=ObjectiveSettings(kl_weight=0.1, entropy_weight=0.01),
    # The norm is about .2, so that clipping changes each step; two groups a forward, two steps a batch.
    update=UpdateSettings(learning_rate=1e-2, grad_norm_max=0.05, micro_batch_groups=2, inner_epochs=2),
)
OLDER = PolicyRef(lineage="0-test", step=0, sha256="")
NUMBERS = (1, 2, 3)
Act = Callable[[Processes], None]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


def begin(root: Path, *, lora: bool = False) -> Path:
    """Write a warmed-up policy as checkpoint 0 of a run, and return the folder of its checkpoints."""
    policy = build_tiny(["red patch cable", "blue toner cartridge"] * 4, TINY)
    if lora:
        torch.manual_seed(0)
        base: Policy = save_policy(policy, root / "base")
        policy = with_lora(base, LoraSettings(rank=4))
    first = PolicyRef(lineage="1-first", step=0, sha256="")
    write_policy_checkpoint(root / "checkpoints", policy, Manifest(policy=first, parent=None), None)
    return root / "checkpoints"


def batch(number: int) -> Batch:
    """Return a batch of five groups of several sizes, one of them flat."""
    generator = torch.Generator().manual_seed(number)
    shapes = [(7, [5, 1, 9]), (3, [4, 4]), (20, [2, 6]), (11, [3, 3, 3])]
    groups = [random_group(generator, prompt=prompt, lengths=lengths) for prompt, lengths in shapes]
    rewards = [reward_event(f"{number}-{place}", group, policy=OLDER) for place, group in enumerate(groups)]
    rewards.append(reward_event(f"{number}-flat", groups[1], rewards=[0.5, 0.5], policy=OLDER))
    rewards[0] = msgspec.structs.replace(rewards[0], made_at_ms=10**30)  # As a record may say.
    return Batch(fresh=tuple(rewards), expired=(), failed=(), positions={0: number}, requests_consumed={})


def resumed(checkpoints: Path, count: int, processes: Processes = ALONE) -> Learner:
    """Return the learner of the newest checkpoint, whose settings name `count` processes."""
    folder, manifest = load_current(checkpoints)
    settings = msgspec.structs.replace(SETTINGS, processes=count)
    return Learner.resume(
        folder, manifest, run="run", settings=settings, no_repeat=False, device="cpu", processes=processes
    )


def helping(checkpoints: Path, meeting: str, rank: int, count: int) -> None:
    """Be the process of this rank, as `searchloop run learner --worker` is."""
    torch.set_num_threads(1)
    processes = join(meeting, rank=rank, count=count)
    settings = msgspec.structs.replace(SETTINGS, processes=count)
    help_learner(checkpoints, run="run", learner=settings, no_repeat=False, processes=processes, stop=lambda: False)
    processes.close()


def leading(checkpoints: Path, meeting: str, count: int, act: Act) -> None:
    """Be rank 0: begin with the newest checkpoint and act."""
    torch.set_num_threads(1)
    processes = join(meeting, rank=0, count=count)
    act(processes)
    processes.end()
    processes.close()


def together(checkpoints: Path, folder: Path, act: Act, *, count: int = 2) -> list[int | None]:
    """Run `act` in rank 0 beside its helpers, and return the processes' statuses, by rank."""
    meeting = f"file://{folder}/meeting-{count}"
    members = [FORKS.Process(target=leading, args=(checkpoints, meeting, count, act))]
    members += [FORKS.Process(target=helping, args=(checkpoints, meeting, rank, count)) for rank in range(1, count)]
    for member in members:
        member.start()
    for member in members:
        member.join(120)
        if member.is_alive():
            member.kill()
    return [member.exitcode for member in members]


def learn(checkpoints: Path, count: int) -> Act:
    """Return an act: three updates, each with its checkpoint."""

    def act(processes: Processes) -> None:
        begin_together(processes, load_current(checkpoints)[0])
        learner = resumed(checkpoints, count, processes)
        for number in NUMBERS:
            learner.learn(batch(number), checkpoints)

    return act


def tensors(checkpoints: Path) -> dict[str, Tensor]:
    """Return weights and optimizer of the newest checkpoint; the random state, which no update uses, is left out."""
    files = load_current(checkpoints)[0].glob("*.safetensors")
    found = {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}
    return {name: tensor for name, tensor in found.items() if not name.endswith(RNG_STATE)}


@pytest.mark.parametrize(("count", "lora"), [(2, False), (3, False), (2, True)])
def test_processes_make_the_step_of_one_process_and_write_one_checkpoint(
    tmp_path: Path, count: int, lora: bool
) -> None:
    checkpoints = begin(tmp_path, lora=lora)
    alone, shares = (shutil.copytree(checkpoints, tmp_path / name / "checkpoints") for name in ("alone", "shares"))
    learn(alone, 1)(ALONE)
    learn(shares, count)(ALONE)
    assert together(checkpoints, tmp_path, learn(checkpoints, count), count=count) == [0] * count

    expected, found, by_shares = tensors(alone), tensors(checkpoints), tensors(shares)
    moved = tensors(begin(tmp_path / "first", lora=lora))
    assert expected.keys() == found.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, by_shares[name]), name  # One process that computes all shares: the same bits.
        # AdamW divides by the gradient's size, so a rounding error in a tiny gradient is no tiny error in the weight.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-5, msg=name)
    weights = [name for name in moved if "optimizer" not in name]
    assert any(not torch.equal(moved[name], found[name]) for name in weights)

    _, whole = load_current(alone)
    _, shared = load_current(checkpoints)
    assert whole.update is not None and shared.update is not None
    assert shared.update.metrics == pytest.approx(whole.update.metrics, rel=1e-4, abs=1e-6)
    assert whole.update.metrics["grad_norm"] > SETTINGS.update.grad_norm_max
    assert (shared.update.trained, shared.update.flat) == (whole.update.trained, whole.update.flat)
    assert len(list(checkpoints.glob("*-00000*"))) == 1 + len(NUMBERS)


def test_a_killed_process_ends_the_others_with_a_reason_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    checkpoints = begin(tmp_path)
    said = tmp_path / "said"

    def act(processes: Processes) -> None:
        begin_together(processes, load_current(checkpoints)[0])
        learner = resumed(checkpoints, 2, processes)
        learner.learn(batch(1), checkpoints)
        helper = int((tmp_path / "helper").read_text())
        multiprocessing.process.os.kill(helper, 9)  # type: ignore[attr-defined]
        try:
            learner.learn(batch(2), checkpoints)
        except LearnerProcessError as error:
            said.write_text(str(error))

    def helper() -> None:
        (tmp_path / "helper").write_text(str(FORKS.current_process().pid))  # type: ignore[attr-defined]
        helping(checkpoints, f"file://{tmp_path}/meeting", 1, 2)

    first = FORKS.Process(target=helper)
    first.start()
    other = FORKS.Process(target=leading, args=(checkpoints, f"file://{tmp_path}/meeting", 2, act))
    other.start()
    first.join(120)
    other.join(120)
    assert (first.exitcode, other.exitcode) == (-9, 0)
    assert "newest checkpoint" in said.read_text()
    folder, manifest = load_current(checkpoints)
    assert (folder.name, manifest.positions) == (current_name(checkpoints), {0: 1})
    assert sorted(each.name[-6:] for each in checkpoints.glob("*-0*")) == ["000000", "000001"]


def test_trouble_in_one_share_ends_the_update_in_every_process(tmp_path: Path) -> None:
    checkpoints = begin(tmp_path)
    said = tmp_path / "said"

    def act(processes: Processes) -> None:
        begin_together(processes, load_current(checkpoints)[0])
        learner = resumed(checkpoints, 2, processes)
        poisoned = batch(1)
        # A reward that fp32 cannot hold makes this group's loss infinite, in the one share where it lies.
        reward = poisoned.fresh[0]
        outcomes = (msgspec.structs.replace(reward.outcomes[0], reward=1e39), *reward.outcomes[1:])
        fresh = (msgspec.structs.replace(reward, outcomes=outcomes), *poisoned.fresh[1:])
        try:
            learner.learn(msgspec.structs.replace(poisoned, fresh=fresh), checkpoints)
        except UpdateError as error:
            said.write_text(str(error))

    statuses = together(checkpoints, tmp_path, act)
    assert statuses == [0, 1]
    assert "The weights did not move" in said.read_text()


def test_a_process_whose_weights_have_become_others_ends_all_before_the_next_step(tmp_path: Path) -> None:
    checkpoints = begin(tmp_path)
    said = tmp_path / "said"

    def act(processes: Processes) -> None:
        begin_together(processes, load_current(checkpoints)[0])
        learner = resumed(checkpoints, 2, processes)
        learner.learn(batch(1), checkpoints)
        with torch.no_grad():
            learner._updater._parameters[0].view(-1)[-1] += 1e-6  # As a broken memory cell would do.
        try:
            learner.learn(batch(2), checkpoints)
        except UpdateError as error:
            said.write_text(str(error))

    assert together(checkpoints, tmp_path, act) == [0, 1]
    assert ": learner process 1 has weights " in said.read_text()
    assert "The weights did not move" in said.read_text()
    assert load_current(checkpoints)[1].policy.step == 1


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_weights_have_one_fingerprint_however_they_lie_in_memory_and_others_have_another(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(5, 7).to(kind), torch.randn(16).to(kind), torch.randn(()).to(kind), torch.randn(0).to(kind)]
    expected = fingerprint(weights)
    shifted = torch.cat([torch.zeros(3, dtype=kind), weights[1]])[3:]
    transposed = weights[0].t().contiguous().t()
    assert fingerprint([transposed, shifted, *weights[2:]]) == expected
    for tensor in weights[:3]:
        for place in (0, -1):
            kept = tensor.view(-1)[place].clone()
            tensor.view(-1)[place] = kept * 1.01
            assert fingerprint(weights) != expected
            tensor.view(-1)[place] = kept
    assert fingerprint(weights) == expected


def test_shares_cost_about_the_same_and_hold_each_group_once() -> None:
    costs = [90, 10, 10, 10, 40, 50, 30, 30]
    shares = shares_of(costs, 3)
    assert sorted(item for share in shares for item in share) == list(range(len(costs)))
    assert [sum(costs[item] for item in share) for share in shares] == [90, 90, 90]
    assert shares_of(costs, 1) == [list(range(len(costs)))]
    assert shares_of([5], 3) == [[0], [], []]


@pytest.mark.parametrize("address", ["localhost:1", "tcp://host", "http://host:1", "tcp://host:port"])
def test_a_wrong_address_is_refused_with_the_form_expected(address: str) -> None:
    with pytest.raises(SettingsError, match="tcp://HOST:PORT"):
        join(address, rank=0, count=2)


def test_a_learner_process_without_a_place_is_refused_with_what_to_set(tmp_path: Path) -> None:
    app, stop = App(Home(tmp_path / "home")), Stop()
    with learner_processes(app, "shop", worker=7, count=1, stop=stop) as processes:
        assert processes is ALONE
    with (
        pytest.raises(SettingsError, match=r"--worker: expected at most 2 .*got 3"),
        learner_processes(app, "shop", worker=3, count=2, stop=stop),
    ):
        pass
    with (
        pytest.raises(SettingsError, match=r"learner\.meeting: expected tcp://HOST:PORT"),
        learner_processes(app, "shop", worker=2, count=2, stop=stop),
    ):
        pass


def test_a_process_that_is_told_to_stop_waits_for_no_other(tmp_path: Path) -> None:
    with pytest.raises(LearnerProcessError, match=r"expected 2 processes at .*, not all came"):
        join(f"file://{tmp_path}/meeting", rank=0, count=2, stop=lambda: True)


def test_processes_that_would_share_a_gpu_are_refused_before_they_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with pytest.raises(SettingsError, match=r"learner\.processes: expected at most 2 .*a visible GPU each, got 3"):
        join(f"file://{tmp_path}/meeting", rank=0, count=3)
    assert chosen == []
    with pytest.raises(LearnerProcessError, match="not all came"):
        join(f"file://{tmp_path}/meeting", rank=1, count=2, stop=lambda: True)
    assert chosen == [1]


def test_processes_on_unlike_devices_are_told_so_before_an_exchange_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = f"file://{tmp_path}/meeting"

    def on_a_gpu() -> None:
        monkeypatch.setattr(learner.processes, "choose_device", lambda: "cuda")
        join(meeting, rank=1, count=2)

    other = FORKS.Process(target=on_a_gpu)
    other.start()
    with pytest.raises(LearnerProcessError, match=r"all on processors, got 0: cpu, 1: cuda\. Make a GPU visible"):
        join(meeting, rank=0, count=2)
    other.join(60)
    assert other.exitcode == 1


def test_a_learner_that_waits_for_its_store_tells_its_other_processes_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for a word ten minutes at most, and a store may be away for longer."""
    told: list[str] = []

    class Awaited(Processes):
        def keep(self) -> None:
            told.append("alive")

    class AwayStore:
        def put(self, name: str, folder: Path, files: list[str]) -> None:
            if len(told) < 3:
                raise StoreAwayError("no answer")
            told.append("stored")

    monkeypatch.setattr(learner.publishing, "RETRY_SECONDS", 0.0)
    checkpoints = begin(tmp_path)
    post = Post(
        run="run",
        member="learner-1",
        kafka=KafkaSettings(),
        delivery=DeliverySettings(),
        stop=Stop(),
        store=AwayStore(),  # type: ignore[arg-type]
    )
    sent: list[PolicyVersion] = []
    outbox = SimpleNamespace(send=sent.append, flush=lambda: None)
    state = resumed(checkpoints, 1)
    publishing = Publishing(post, checkpoints, Awaited())
    publishing.announce(
        outbox,  # type: ignore[arg-type]
        state,
        load_current(checkpoints)[0],
        SimpleNamespace(consumed={}, granted={}),  # type: ignore[arg-type]
        update=False,
    )
    assert told == ["alive"] * 3 + ["stored", "alive"]
    assert [each.policy for each in sent] == [state.manifest.policy]


def test_a_process_without_memory_for_an_exchange_blames_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(torch, "cat", full)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        Processes(rank=0, count=2).add([torch.ones(2)])
