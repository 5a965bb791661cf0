"""A group is held against the weights of the version that it names, not against those of today."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from learner.batches import Batch
from learner.checkpoints import Manifest, read_manifest
from learner.claims import ClaimChecker, ClaimSettings, is_chosen
from learner.generation import generate_groups
from learner.learning import Learner, LearnerSettings, write_policy_checkpoint
from learner.policy import Policy, build_tiny, load_policy, save_policy, with_lora
from learner.policy_settings import LoraSettings, TinySettings
from learner.product_prompts import ProductPromptSettings, tokenize_product_request
from learner.prompts import PromptSettings, tokenize_request
from learner.updates import UpdateSettings
from learner.versions import LoadedVersion
from streams.events import Completion, Outcome, PolicyRef, Position, Product, Request, Reward, Sampling

TINY = TinySettings(vocabulary_size=400, hidden_size=32, layers=2, heads=2, feedforward_size=64, positions_max=128)
TEXTS = ["red patch cable", "blue toner cartridge", "desk lamp red dimmable power 9 w colour"] * 4
ALL = ClaimSettings(share=1)
LAMP = Product(
    document_id="d", title="Desk lamp", values=(("colour", "red"), ("dimmable", "dimmable"), ("power", "9 w"))
)
KINDS = ["weights", "adapter", "selector"]


class Run:
    """A run with three versions of a policy, and what each of them wrote."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind, self.checkpoints = kind, folder / "checkpoints"
        policy = build_tiny(TEXTS, TINY, pointers=5 if kind == "selector" else 0)
        if kind == "adapter":
            base = save_policy(policy, folder / "base").path
            assert base is not None
            policy = with_lora(load_policy(base), LoraSettings(rank=2))
        self.versions: list[PolicyRef] = []
        for step in range(3):
            folder, version = self._save(policy, step)
            self.versions.append(version)
            policy = load_policy(folder)  # As a learner that is started again: its tokenizer's file is another one.

    def _save(self, policy: Policy, step: int) -> tuple[Path, PolicyRef]:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in (each for each in policy.model.parameters() if each.requires_grad):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        manifest = Manifest(policy=PolicyRef(lineage="1-aaaaaa", step=step, sha256=""), parent=None)
        folder, kept = write_policy_checkpoint(self.checkpoints, policy, manifest, None)
        return folder, kept.policy

    def written(self, step: int, groups: int = 2, *, no_repeat: bool = True) -> list[Reward]:
        """Return groups as the generator of a version writes them, with made up rewards."""
        version = LoadedVersion(self.checkpoints / f"1-aaaaaa-{step:06d}", self.versions[step])
        product = LAMP if self.kind == "selector" else msgspec.UNSET
        requests = [
            Request(request_id=f"r{n}", run="run", query_id="q", query=f"red cable {n}", index="i-1", product=product)
            for n in range(groups)
        ]
        made = generate_groups(
            [(Position(topic="run.requests", partition=step, offset=n), each) for n, each in enumerate(requests)],
            sampler=version.sampler,
            tokenizer=version.tokenizer,
            tokenizer_sha256=version.tokenizer_sha256,
            encode_prompt=lambda tokenizer, request: (
                tokenize_product_request(tokenizer, request, ProductPromptSettings(values=5))
                if self.kind == "selector"
                else tokenize_request(tokenizer, request, PromptSettings())
            ),
            sampling=Sampling(candidates=4, temperature=0.9, tokens_max=16, no_repeat=no_repeat),
            seed=step,
            made_at_ms=0,
        )
        return [
            Reward(
                group_id=group.group_id,
                generation=group,
                source=group.source,
                content_sha256="",
                outcomes=tuple(Outcome(status="scored", valid=True, reward=float(n)) for n in range(4)),
                index="i-1",
                relevance_model="",
                reward_sha256="",
            )
            for group in made
        ]

    def checker(self, settings: ClaimSettings = ALL, *, no_repeat: bool = True) -> ClaimChecker:
        return ClaimChecker(self.checkpoints, settings, no_repeat=no_repeat)


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("plain"), "weights")


def with_completion(reward: Reward, completion: Completion) -> Reward:
    """Return the reward with another first completion."""
    generation = reward.generation
    made = msgspec.structs.replace(generation, completions=(completion, *generation.completions[1:]))
    return msgspec.structs.replace(reward, generation=made)


def with_policy(reward: Reward, policy: PolicyRef) -> Reward:
    return msgspec.structs.replace(reward, generation=msgspec.structs.replace(reward.generation, policy=policy))


def moved(reward: Reward, by: float) -> Reward:
    """Return the reward with one log-probability changed: of the likeliest token, so that it stays below 0."""
    first = reward.generation.completions[0]
    place = min(range(len(first.logprobs)), key=lambda number: first.logprobs[number])
    logprobs = list(first.logprobs)
    logprobs[place] += by
    return with_completion(reward, msgspec.structs.replace(first, logprobs=tuple(logprobs)))


def test_honest_groups_of_every_version_pass_whatever_their_order(run: Run) -> None:
    checker = run.checker()
    rewards = [reward for step in (2, 0, 1) for reward in run.written(step)]
    mixed = [rewards[place] for place in (0, 2, 4, 1, 3, 5)]
    for _ in range(2):
        found = checker.measure(mixed)
        assert {claim.reason for claim in found.values()} == {""}
        assert max(claim.difference for claim in found.values() if claim.difference is not None) < 1e-4
        assert sorted(found) == sorted(reward.group_id for reward in rewards)
        assert checker.check(mixed) == {}


def test_a_stale_groups_changed_log_probability_is_refused_and_the_others_pass(run: Run) -> None:
    honest, liar = run.written(0)
    refused = run.checker().check([honest, moved(liar, -0.3)])
    assert list(refused) == [liar.group_id]
    assert "within 0.1 nats of those of the policy that it names, got 0.3 off" in refused[liar.group_id]


def test_a_coarser_sampler_passes_if_the_setting_allows_it(plain: Run) -> None:
    coarse = [moved(reward, -0.3) for reward in plain.written(1)]
    assert len(plain.checker().check(coarse)) == 2
    assert plain.checker(ClaimSettings(share=1, logprob_difference_max=0.5)).check(coarse) == {}


@pytest.mark.parametrize(("update", "own", "refused"), [(0.1, 0.0, 2), (1.0, 0.0, 0), (1.0, 0.1, 2), (0.1, 0.5, 0)])
def test_the_limit_for_stale_groups_is_that_of_the_update_unless_they_have_their_own(
    plain: Run, tmp_path: Path, update: float, own: float, refused: int
) -> None:
    """A bf16 server's recipe raises the update's limit; a tenth of its stale groups was refused all the same."""
    coarse = [moved(reward, -0.3) for reward in plain.written(1)]
    checkpoints = shutil.copytree(plain.checkpoints, tmp_path / "checkpoints")
    folder = checkpoints / "1-aaaaaa-000002"
    settings = LearnerSettings(
        update=UpdateSettings(logprob_difference_max=update),
        claims=ClaimSettings(share=1, logprob_difference_max=own),
    )
    learner = Learner.resume(folder, read_manifest(folder, verify=True), run="run", settings=settings, no_repeat=True)
    batch = Batch(fresh=tuple(coarse), expired=(), failed=(), positions={}, requests_consumed={})
    learner.learn(batch, checkpoints)
    assert learner.manifest.update is not None
    assert len(learner.manifest.update.rejected) == refused


def test_a_group_that_names_another_version_than_it_was_written_by_is_refused(run: Run) -> None:
    lies = [with_policy(reward, run.versions[2]) for reward in run.written(0)]
    assert sorted(run.checker().check(lies)) == sorted(reward.group_id for reward in lies)


def test_swapped_tokens_and_texts_are_refused(run: Run) -> None:
    reward, other = run.written(1)
    first, second = (
        reward.generation.completions[0],
        next(
            each
            for each in reward.generation.completions
            if each.token_ids != reward.generation.completions[0].token_ids
        ),
    )
    swapped = with_completion(
        reward, msgspec.structs.replace(first, token_ids=second.token_ids, logprobs=second.logprobs)
    )
    reasons = run.checker().check([swapped, other])
    assert list(reasons) == [reward.group_id] and "expected the text of its tokens" in reasons[reward.group_id]
    count = len(first.token_ids)
    copied = msgspec.structs.replace(first, token_ids=second.token_ids, text=second.text)
    if len(second.token_ids) != count:
        logprobs = (*first.logprobs, *[-1.0] * 16)[: len(second.token_ids)]
        copied = msgspec.structs.replace(copied, logprobs=logprobs)
    assert list(run.checker().check([with_completion(reward, copied)])) == [reward.group_id]


def test_a_version_that_is_not_kept_or_has_another_sha256_cannot_vouch(plain: Run) -> None:
    reward, _ = plain.written(1)
    policy = reward.generation.policy
    for named, reason in (
        (msgspec.structs.replace(policy, step=7), "no checkpoint of that name is kept"),
        (msgspec.structs.replace(policy, lineage="9-bbbbbb"), "no checkpoint of that name is kept"),
        (msgspec.structs.replace(policy, sha256="f" * 64), "expected weights with sha256 ffffffffffff"),
        (msgspec.structs.replace(policy, lineage="../checkpoints/1-aaaaaa"), "expected the name of a version"),
        (msgspec.structs.replace(policy, lineage="."), "expected the name of a version"),
    ):
        checker = plain.checker()
        assert checker.check([reward]) == {}
        [(_, claim)] = checker.measure([with_policy(reward, named)]).items()
        assert reason in claim.reason and claim.difference is None
        assert checker.check([reward]) == {}  # What could not be loaded has left no trace.
        assert reason in plain.checker().check([with_policy(reward, named)])[reward.group_id]


def test_a_damaged_checkpoint_cannot_vouch_and_an_honest_one_after_it_can(tmp_path: Path) -> None:
    run = Run(tmp_path, "weights")
    damaged, whole = run.written(0), run.written(1)
    file = run.checkpoints / "1-aaaaaa-000000" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused = run.checker().check([*damaged, *whole])
    assert sorted(refused) == sorted(reward.group_id for reward in damaged)
    assert all("should have sha256" in reason or "expected weights" in reason for reason in refused.values())


def test_the_no_repeat_rule_counts_as_in_the_learner(plain: Run) -> None:
    kept, free = plain.written(0, 8), plain.written(1, 8, no_repeat=False)
    assert plain.checker().check(kept + free) == {}
    assert plain.checker(no_repeat=False).check(free) == {}


def test_malformed_groups_have_a_reason_and_failed_ones_are_left_out(plain: Run) -> None:
    good, _ = plain.written(0)
    first = good.generation.completions[0]
    short = with_completion(good, msgspec.structs.replace(first, logprobs=first.logprobs[1:]))
    assert "one log-probability per token" in plain.checker().check([short])[good.group_id]
    far = with_completion(good, msgspec.structs.replace(first, token_ids=(10**12, *first.token_ids[1:])))
    assert "expected token ids in" in plain.checker().check([far])[good.group_id]
    failed = tuple(Outcome(status="failed", valid=False, error="down") for _ in good.outcomes)
    assert plain.checker().measure([msgspec.structs.replace(good, outcomes=failed)]) == {}


def test_the_updates_own_groups_are_left_to_the_update_and_a_share_is_chosen_by_the_id(plain: Run) -> None:
    lies = [moved(reward, -1.0) for reward in plain.written(2, 40)]
    assert plain.checker().check(lies, current=plain.versions[2]) == {}
    some = plain.checker(ClaimSettings(share=0.5)).check(lies)
    assert set(some) == {reward.group_id for reward in lies if is_chosen(reward.group_id, 0.5)}
    assert 8 <= len(some) <= 32
    assert plain.checker(ClaimSettings(share=0)).check(lies) == {}


def test_a_larger_share_holds_the_smaller_one(plain: Run) -> None:
    names = [f"group-{number}" for number in range(2_000)]
    shares: list[Sequence[str]] = [[name for name in names if is_chosen(name, share)] for share in (0.1, 0.3, 1.0)]
    assert set(shares[0]) < set(shares[1]) < set(shares[2]) == set(names)
    assert abs(len(shares[0]) - 200) < 60 and abs(len(shares[1]) - 600) < 90


def test_checking_takes_no_random_number_and_leaves_no_gradient(run: Run) -> None:
    rewards = run.written(0) + run.written(1)
    checker = run.checker()
    before = torch.get_rng_state()
    checker.check(rewards)
    assert torch.equal(torch.get_rng_state(), before)
    assert checker._spare is not None
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in checker._spare.model.parameters()
    )
