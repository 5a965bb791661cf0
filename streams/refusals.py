"""The reasons why a reward may not train a policy, found from the event alone; our workers write no such reward.

The learner asks before a group reaches a batch, and buries refused groups. The proof of a run asks again for every
trained group. So this is a pure function of events, without torch, in a package that both may import. It cannot check
that the log-probabilities are those of the named version; that needs the version's weights (`learner.claims`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, TypeVar

import msgspec

from streams.codec import content_sha256, decode, encode_event
from streams.descriptions import describe
from streams.errors import EventError
from streams.events import Completion, Generation, Outcome, PolicyRef, Reward
from streams.ids import group_id, prompt_sha256
from streams.topics import topic_name, version_name

SPLITS = frozenset({"train", "dev", "test", "live"})
FINISHES = frozenset({"stop", "length"})
STATUSES = frozenset({"scored", "failed"})
Item = TypeVar("Item")
LOGPROB_ROUNDING = 1e-4  # A certain token's log-probability may be slightly above 0.


class RewardLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of a reward; a group beyond them is refused and becomes a dead letter."""

    # Above the rewards of the recipes, so that it refuses none of theirs, and finite, so that no invented number
    # overflows. LESER gives −0.9 … 2.4 by default, and −20 … 41 with every weight at its limit; ReSuMe ±2, and ±11.
    # ReLSum's error gives −1 … 0, and its list likelihood is the logarithm of a share, about −50 at worst. A cost per
    # term or token, which is 0 by default, subtracts at most 1 for each.
    reward_max: Annotated[
        float,
        msgspec.Meta(gt=0, le=1e12),
        describe("Largest absolute reward of a candidate. The default is far above the rewards of the recipes."),
    ] = 1e3
    candidates_max: Annotated[
        int, msgspec.Meta(ge=2, le=4096), describe("Largest number of candidates in a group.")
    ] = 64
    tokens_max: Annotated[
        int, msgspec.Meta(ge=1), describe("Largest number of tokens of a prompt, or of one completion.")
    ] = 32_768
    # The learner holds one byte for each pair of a group's tokens (`learner.packing`): 64 MiB for 8,192.
    group_tokens_max: Annotated[
        int,
        msgspec.Meta(ge=1),
        describe(
            "Largest number of tokens of a group's completions together. The learner's memory grows with its square. "
            "Groups as the run's own generator writes them always pass."
        ),
    ] = 8192

    def covering(self, *, candidates: int, tokens_max: int) -> RewardLimits:
        """Return these limits, raised to groups of so many candidates of so many tokens each."""
        return msgspec.structs.replace(self, group_tokens_max=max(self.group_tokens_max, candidates * tokens_max))


class KnownRun(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a run that a reward is checked against.

    origin: the run whose requests or generations were copied into this one's topics; "" if none was. The reward's
    requests may then be that run's. If its generations were copied, their places and versions may be that run's, too.
    step: optimizer steps that the policy has made. staleness_max: as in `BatchSettings`. versions: the sha256 of the
    weights by (lineage, step), of every version that was announced or has a checkpoint. None: unknown, so names are not
    looked up. partitions: the number of partitions of the run's topics; None: unknown.
    vocabulary: token ids are below it; None: unknown.
    """

    run: str
    step: int
    staleness_max: int
    origin: str = ""
    versions: Mapping[tuple[str, int], str] | None = None
    partitions: int | None = None
    vocabulary: int | None = None
    limits: RewardLimits = RewardLimits()


def refusal(reward: Reward, known: KnownRun) -> str:
    """Return why this reward may not train this run's policy, "" if there is no reason.

    A group that is older than the staleness limit is not refused for an unknown version: it expires, and its version
    may be forgotten. The learner passes over groups of splits other than "train" before it asks.
    """
    generation, limits = reward.generation, known.limits
    return next(
        chain(
            _wrong_place(reward, known),
            () if is_recorded(reward, known) else _wrong_version(generation.policy, known),
            _wrong_sizes(reward, limits),
            _wrong_prompt(generation, known),
            _each(generation.completions, lambda each: _wrong_completion(each, generation, known), "completion"),
            _each(reward.outcomes, lambda each: _wrong_outcome(each, limits), "outcome"),
        ),
        "",
    )


def is_recorded(reward: Reward, known: KnownRun) -> bool:
    """Return whether a group was written for another run whose generations were copied into this one's topics."""
    source = reward.generation.source.topic
    return bool(known.origin) and known.origin != known.run and source == topic_name(known.origin, "requests")


def unlike_source(reward: Reward, value: bytes | None) -> str:
    """Return the difference between a reward's generation and its named source record, "" if there is none.

    value: the bytes of the record at `reward.source`.
    """
    if value is None:
        return "its source is an empty record (a tombstone), not the generation that it holds"
    if (found := content_sha256(value)) != reward.content_sha256:
        return (
            f"expected the record at its source to have sha256 {reward.content_sha256[:12]}…, as it says, found "
            f"{found[:12]}…"
        )
    try:
        event = decode(value)
    except EventError as error:
        return f"its source is no generation: {error}"
    if event != reward.generation:
        return "the generation that it holds is not the one that lies at its source"
    return ""


def content_agrees(reward: Reward) -> bool:
    """Return whether the reward's generation, in our encoding, has the hash that the reward names.

    If True, the source need not be read: the hashed texts are these. False may also mean that another version of
    searchloop wrote the generation, without a field or in another JSON form; then read the source, and ask
    `unlike_source`. Only the source reveals a forger who rewrites both the generation and the hash.
    """
    try:
        return content_sha256(encode_event(reward.generation)) == reward.content_sha256
    except EventError:
        return False


def _wrong_place(reward: Reward, known: KnownRun) -> Iterator[str]:
    generation, run = reward.generation, known.run
    if generation.request.run not in {run, known.origin or run}:
        yield f"expected a request of run {known.origin or run!r}, got one of {generation.request.run[:80]!r}"
    if generation.request.split != "train":
        what = "which never trains" if generation.request.split in SPLITS else "which is unknown"
        yield f"expected split 'train', got {generation.request.split[:80]!r}, {what}"
    asked_in = topic_name(known.origin if is_recorded(reward, known) else run, "requests")
    for position, topic in ((generation.source, asked_in), (reward.source, topic_name(run, "generations"))):
        if position.topic != topic:
            yield f"expected a source in {topic!r}, got {position.topic[:80]!r}"
        if position.offset < 0 or position.partition < 0:
            place = f"partition {position.partition}, offset {position.offset}"
            yield f"expected a place in {position.topic!r}, got {place}"
    if generation.source.partition != reward.source.partition:
        yield (
            f"expected generation and request in one partition, got {reward.source.partition} and "
            f"{generation.source.partition}"
        )
    if known.partitions is not None and reward.source.partition >= known.partitions:
        yield f"expected one of {known.partitions} partitions, got {reward.source.partition}"
    if (expected := group_id(generation.request.run, generation.source)) != generation.group_id:
        yield f"expected group {expected}, which its request's place gives, got {generation.group_id[:80]!r}"
    if reward.group_id != generation.group_id:
        yield f"expected the group of its generation, {generation.group_id}, got {reward.group_id[:80]!r}"


def _wrong_version(policy: PolicyRef, known: KnownRun) -> Iterator[str]:
    if policy.step < 0:
        yield f"expected a policy step of 0 or more, got {policy.step}"
    if policy.step > known.step:
        yield f"expected a policy of step {known.step} at most, got {policy.step}, which is still to come"
    if known.versions is None or known.step - policy.step > known.staleness_max:
        return
    sha256 = known.versions.get((policy.lineage, policy.step))
    if sha256 is None:
        yield f"expected a policy version of this run, got {_name(policy)}, which is unknown"
    elif sha256 != policy.sha256:
        yield f"expected weights {sha256[:12]}… of policy {_name(policy)}, got {policy.sha256[:12]!r}"


def _wrong_sizes(reward: Reward, limits: RewardLimits) -> Iterator[str]:
    generation = reward.generation
    count = len(generation.completions)
    if not 1 <= count <= limits.candidates_max:
        yield f"expected 1 to {limits.candidates_max} completions, got {count}"
    if (tokens := sum(len(each.token_ids) for each in generation.completions)) > limits.group_tokens_max:
        yield (
            f"expected at most {limits.group_tokens_max} tokens in the completions of a group "
            f"(learner.limits.group_tokens_max), got {tokens}"
        )
    if generation.sampling.candidates != count:
        yield f"expected {generation.sampling.candidates} completions, as it was asked for, got {count}"
    if len(reward.outcomes) != count:
        yield f"expected {count} outcomes, one a completion, got {len(reward.outcomes)}"
    if not (generation.sampling.temperature > 0 and math.isfinite(generation.sampling.temperature)):
        yield f"expected a sampling temperature above 0, got {generation.sampling.temperature}"


def _wrong_prompt(generation: Generation, known: KnownRun) -> Iterator[str]:
    ids = generation.prompt_token_ids
    if not 1 <= len(ids) <= known.limits.tokens_max:
        yield f"expected a prompt of 1 to {known.limits.tokens_max} tokens, got {len(ids)}"
        return
    yield from _wrong_ids(ids, known.vocabulary, "prompt")
    if (found := prompt_sha256(ids)) != generation.prompt_sha256:
        yield f"expected a prompt with sha256 {generation.prompt_sha256[:12]!r}, as it says, found {found[:12]}…"


def _wrong_completion(completion: Completion, generation: Generation, known: KnownRun) -> Iterator[str]:
    ids, logprobs = completion.token_ids, completion.logprobs
    most = min(generation.sampling.tokens_max, known.limits.tokens_max)
    if not 1 <= len(ids) <= most:
        yield f"expected 1 to {most} tokens, got {len(ids)}"
        return
    if len(logprobs) != len(ids):
        yield f"expected one log-probability a token, got {len(logprobs)} for {len(ids)}"
    odd = (logprob for logprob in logprobs if not (math.isfinite(logprob) and logprob <= LOGPROB_ROUNDING))
    if (first := next(odd, None)) is not None:
        yield f"expected finite log-probabilities of 0 at most, got {first:g}"
    yield from _wrong_ids(ids, known.vocabulary, "completion")
    if completion.finish not in FINISHES:
        yield f"expected to have ended by stop or length, got {completion.finish[:80]!r}"


def _wrong_ids(ids: Sequence[int], vocabulary: int | None, what: str) -> Iterator[str]:
    if min(ids) < 0:
        yield f"expected token ids of 0 or more in the {what}, got {min(ids)}"
    if vocabulary is not None and max(ids) >= vocabulary:
        yield f"expected token ids below {vocabulary} in the {what}, got {max(ids)}"


def _wrong_outcome(outcome: Outcome, limits: RewardLimits) -> Iterator[str]:
    if outcome.status not in STATUSES:
        yield f"expected status scored or failed, got {outcome.status[:80]!r}"
    if outcome.status == "scored" and outcome.reward is None:
        yield "expected a reward, as it is scored, got none"
    if outcome.status == "failed" and outcome.reward is not None:
        yield f"expected no reward, as it is failed, got {outcome.reward:g}"
    if outcome.reward is not None and not abs(outcome.reward) <= limits.reward_max:
        yield f"expected a reward within ±{limits.reward_max:g}, got {outcome.reward:g}"
    if odd := [name for name, value in outcome.components.items() if not math.isfinite(value)]:
        yield f"expected finite components, got another number for {odd[0][:80]!r}"


def _each(items: Sequence[Item], wrong: Callable[[Item], Iterator[str]], name: str) -> Iterator[str]:
    for index, item in enumerate(items):
        for reason in wrong(item):
            yield f"{name} {index}: {reason}"


def _name(policy: PolicyRef) -> str:
    return repr(version_name(policy)[:80])
