"""What no worker of ours writes is refused with a reason, and what they write is not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_env.leser.reward import LeserSettings, SetMeasurements, leser_reward
from search_env.relsum.reward import RelsumSettings, Scored, relsum_reward
from search_env.resume.reward import ResumeSettings, resume_reward, unformatted_reward
from streams.codec import content_sha256, decode, encode_event
from streams.events import Generation, Position, Reward
from streams.ids import group_id, prompt_sha256
from streams.refusals import KnownRun, RewardLimits, content_agrees, refusal, unlike_source
from tests.stored_events import RUN, generation, policy, reward

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "events"
VERSIONS = {("a", step): policy(step).sha256 for step in range(6)}
OTHER_GROUP = group_id(RUN, Position(topic=f"{RUN}.requests", partition=0, offset=1))
ADMISSION = KnownRun(run=RUN, step=5, staleness_max=2, versions=VERSIONS, partitions=2, vocabulary=3000)


def sound(number: int = 0, *, step: int = 5) -> Reward:
    """Return a reward as our workers write it."""
    made = generation(number, step=step)
    made = msgspec.structs.replace(made, prompt_sha256=prompt_sha256(made.prompt_token_ids))
    return msgspec.structs.replace(
        reward(number), generation=made, group_id=made.group_id, content_sha256=content_sha256(encode_event(made))
    )


def changed(event: Reward, path: str, value: Any) -> Reward:
    """Return the event with one field changed, as JSON would bring it: "generation.completions.0.finish"."""
    tree = json.loads(encode_event(event))
    *above, last = path.split(".")
    place = tree
    for name in above:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[int(last) if isinstance(place, list) else last] = value
    return msgspec.convert(tree, Reward)


@given(st.integers(0, 200), st.integers(3, 5))
def test_what_our_workers_write_is_never_refused(number: int, step: int) -> None:
    assert refusal(sound(number, step=step), ADMISSION) == ""


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("group_id", "g", "expected the group of its generation"),
        ("generation.group_id", OTHER_GROUP, "request's place"),
        ("generation.source.offset", 7, "which its request's place gives"),
        ("generation.source.offset", -1, "offset -1"),
        ("generation.source.topic", "other.requests", f"expected a source in '{RUN}.requests'"),
        ("source.topic", f"{RUN}.requests", f"expected a source in '{RUN}.generations'"),
        ("source.partition", 1, "in one partition, got 1 and 0"),
        ("generation.request.run", "other", "got one of 'other'"),
        ("generation.request.split", "test", "got 'test', which never trains"),
        ("generation.request.split", "trains", "got 'trains', which is unknown"),
        ("generation.policy.step", 6, "which is still to come"),
        ("generation.policy.step", 10**30, "which is still to come"),
        ("generation.policy.step", -1, "step of 0 or more"),
        ("generation.policy.lineage", "b", "got 'b-000005', which is unknown"),
        ("generation.policy.lineage", "../../etc", "which is unknown"),
        ("generation.policy.sha256", "f" * 64, "expected weights 000000"),
        ("generation.completions", [], "expected 1 to 64 completions, got 0"),
        ("outcomes", [], "expected 8 outcomes"),
        ("generation.sampling.candidates", 9, "expected 9 completions, as it was asked for"),
        ("generation.sampling.temperature", 0.0, "temperature above 0"),
        ("generation.sampling.tokens_max", 4, "completion 0: expected 1 to 4 tokens, got 12"),
        ("generation.prompt_token_ids", [], "a prompt of 1 to 32768 tokens, got 0"),
        ("generation.prompt_token_ids", [1] * 40_000, "a prompt of 1 to 32768 tokens, got 40000"),
        ("generation.prompt_token_ids.3", 3000, "below 3000 in the prompt"),
        ("generation.prompt_token_ids.3", 1, "a prompt with sha256"),
        ("generation.completions.2.token_ids", [], "completion 2: expected 1 to 32 tokens, got 0"),
        ("generation.completions.2.token_ids.0", -1, "completion 2: expected token ids of 0 or more"),
        ("generation.completions.2.token_ids.0", 10**20, "completion 2: expected token ids below 3000"),
        ("generation.completions.7.logprobs", [-0.1], "one log-probability a token, got 1 for 12"),
        ("generation.completions.7.logprobs.3", 0.5, "of 0 at most, got 0.5"),
        ("generation.completions.1.finish", "crash", "ended by stop or length"),
        ("outcomes.3.reward", 1e30, "outcome 3: expected a reward within ±1000, got 1e+30"),
        ("outcomes.3.reward", -1000.5, "expected a reward within ±1000"),
        ("outcomes.3.reward", None, "outcome 3: expected a reward, as it is scored"),
        ("outcomes.3.status", "failed", "outcome 3: expected no reward, as it is failed"),
        ("outcomes.3.status", "expired", "expected status scored or failed"),
    ],
)  # fmt: skip
def test_what_no_worker_of_ours_writes_is_refused_with_its_reason(path: str, value: Any, reason: str) -> None:
    found = refusal(changed(sound(), path, value), ADMISSION)
    assert reason in found and "\n" not in found and len(found) < 300


def test_a_group_of_many_long_completions_is_refused_and_one_as_the_run_writes_them_is_not() -> None:
    group = sound()
    tokens = sum(len(each.token_ids) for each in group.generation.completions)
    assert tokens == 8 * 12

    def asked(limits: RewardLimits) -> str:
        return refusal(group, msgspec.structs.replace(ADMISSION, limits=limits))

    assert asked(RewardLimits(group_tokens_max=tokens)) == ""
    few = RewardLimits(group_tokens_max=tokens - 1)
    assert asked(few) == (
        f"expected at most {tokens - 1} tokens in the completions of a group (learner.limits.group_tokens_max), got "
        f"{tokens}"
    )
    assert asked(few.covering(candidates=8, tokens_max=12)) == ""
    assert few.covering(candidates=2, tokens_max=3) == few


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_wherever_they_stand(value: float) -> None:
    good = sound()
    outcome = msgspec.structs.replace(good.outcomes[0], reward=value)
    part = msgspec.structs.replace(good.outcomes[0], components={"relevance": value})
    for each, reason in ((outcome, "a reward within"), (part, "finite components")):
        assert reason in refusal(msgspec.structs.replace(good, outcomes=(each, *good.outcomes[1:])), ADMISSION)
    written = good.generation.completions[0]
    odd = msgspec.structs.replace(written, logprobs=(value, *written.logprobs[1:]))
    made = msgspec.structs.replace(good.generation, completions=(odd, *good.generation.completions[1:]))
    assert "finite log-probabilities" in refusal(msgspec.structs.replace(good, generation=made), ADMISSION)


def test_of_a_group_that_is_too_old_the_version_may_be_forgotten() -> None:
    few = msgspec.structs.replace(ADMISSION, versions={("a", 5): policy(5).sha256})
    assert refusal(sound(step=2), few) == ""
    assert "which is unknown" in refusal(sound(step=3), few)
    assert refusal(sound(step=3), msgspec.structs.replace(few, versions=None)) == ""


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.lists(st.floats(-1, 1), min_size=1, max_size=4),
    st.lists(st.floats(-60, 60), min_size=1, max_size=8),
)
def test_no_recipes_own_reward_is_out_of_bounds(
    raw: list[float], union: list[float], raw_size: int, union_size: int, cosines: list[float], logits: list[float]
) -> None:
    most = LeserSettings(relevance_weight=10, size_weight=10, format_bonus=1)
    measured = SetMeasurements(raw, union, raw_size, union_size, terms=96)
    scored = [Scored(logits[0], 0.5, 1, logits[1:])]
    resume = {
        "positives": cosines,
        "negatives": cosines[::-1],
        "document_positives": [1.0],
        "document_negatives": [-1.0],
    }
    found = [leser_reward(measured, settings)[0] for settings in (LeserSettings(), most)]
    found += [
        relsum_reward(scored, 512, RelsumSettings(kind=kind))[0]  # type: ignore[arg-type]
        for kind in ("error", "reciprocal_rank", "list_likelihood")
    ]
    for weight in (1.0, 10.0):
        settings = ResumeSettings(structure_weight=weight)
        found += [resume_reward(**resume, tokens=20, settings=settings)[0], unformatted_reward(settings)[0]]  # type: ignore[arg-type]
    assert all(abs(value) <= RewardLimits().reward_max / 5 for value in found)


def test_a_generation_is_held_against_the_record_that_it_names() -> None:
    good = sound()
    value = encode_event(good.generation)
    assert unlike_source(good, value) == ""
    assert "a tombstone" in unlike_source(good, None)
    assert "to have sha256" in unlike_source(good, value + b" ")
    other = encode_event(sound(1).generation)
    named = msgspec.structs.replace(good, content_sha256=content_sha256(other))
    assert "not the one that lies at its source" in unlike_source(named, other)
    for wrong in (b"{", encode_event(good.generation.request)):
        named = msgspec.structs.replace(good, content_sha256=content_sha256(wrong))
        assert unlike_source(named, wrong) != ""
    written = good.generation.completions[0]
    swapped = msgspec.structs.replace(written, text="<answer>[]</answer>")
    made = msgspec.structs.replace(good.generation, completions=(swapped, *good.generation.completions[1:]))
    assert "not the one" in unlike_source(msgspec.structs.replace(good, generation=made), value)
    assert not content_agrees(msgspec.structs.replace(good, generation=made))


@given(st.integers(0, 100))
def test_what_we_wrote_ourselves_needs_no_look_at_its_source(number: int) -> None:
    assert content_agrees(sound(number)) and unlike_source(sound(number), encode_event(sound(number).generation)) == ""


def test_a_record_that_another_version_wrote_agrees_by_its_bytes_though_not_by_our_encoding() -> None:
    current = (GOLDEN / "generation-1.json").read_bytes().strip()
    older = {key: value for key, value in json.loads(current).items() if key != "made_at_ms"}
    spaced = json.dumps(json.loads(current), indent=1).encode()
    for value, canonical in ((current, True), (json.dumps(older).encode(), False), (spaced, False)):
        made = decode(value)
        assert isinstance(made, Generation)
        event = msgspec.structs.replace(sound(), generation=made, content_sha256=content_sha256(value))
        assert unlike_source(event, value) == ""
        assert content_agrees(event) == canonical


def test_refusals_need_no_torch() -> None:
    code = "import sys, streams.refusals; sys.exit('torch' in sys.modules or 'kafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
