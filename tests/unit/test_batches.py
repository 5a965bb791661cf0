"""Batches are a pure function of the rewards log, and no group teaches twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from learner.admission import Admission
from learner.batches import BatchAssembler, BatchSettings
from streams.events import Completion, Generation, Outcome, PolicyRef, Position, Request, Reward, Sampling

SETTINGS = BatchSettings(groups=2, staleness_max=1)


def reward(number: int, *, step: int = 0, scored: int = 2, split: str = "train") -> Reward:
    outcomes = tuple(
        Outcome(status="scored", valid=True, reward=float(index))
        if index < scored
        else Outcome(status="failed", valid=False, error="down")
        for index in range(2)
    )
    completion = Completion(text="", token_ids=(1,), logprobs=(-0.1,), finish="stop")
    return Reward(
        group_id=f"group-{number}",
        generation=Generation(
            group_id=f"group-{number}",
            request=Request(request_id=str(number), run="r", query_id="q", query="x", index="i-1", split=split),
            source=Position(topic="r.requests", partition=0, offset=number),
            policy=PolicyRef(lineage="1-a", step=step, sha256=""),
            tokenizer_sha256="",
            prompt_sha256="",
            sampling=Sampling(candidates=2, temperature=0.9, tokens_max=4),
            prompt_token_ids=(1,),
            completions=(completion, completion),
        ),
        source=Position(topic="r.generations", partition=0, offset=number),
        content_sha256="",
        outcomes=outcomes,
        index="i-1",
        relevance_model="m",
        reward_sha256="",
    )


def at(offset: int) -> Position:
    return Position(topic="r.rewards", partition=0, offset=offset)


def assembler(settings: BatchSettings = SETTINGS, recent: tuple[str, ...] = ()) -> BatchAssembler:
    return BatchAssembler(settings, positions={}, requests_consumed={}, recent_groups=recent)


def test_a_batch_is_the_next_groups_of_the_log() -> None:
    waiting = assembler()
    for number in range(3):
        waiting.add(at(number), reward(number))
    assert waiting.full
    batch = waiting.take(step=0)
    assert [r.group_id for r in batch.fresh] == ["group-0", "group-1"]
    assert batch.positions == {0: 2}
    assert batch.requests_consumed == {0: 2}
    assert not waiting.full
    assert waiting.recent_groups == ("group-0", "group-1")


def test_a_group_that_comes_twice_is_taken_once() -> None:
    waiting = assembler(recent=("group-9",))
    for offset, number in enumerate([0, 0, 9, 1, 0]):
        waiting.add(at(offset), reward(number))
    batch = waiting.take(step=0)
    assert [r.group_id for r in batch.fresh] == ["group-0", "group-1"]
    assert batch.positions == {0: 4}


def test_failed_and_expired_groups_take_their_place_and_teach_nothing() -> None:
    waiting = assembler(BatchSettings(groups=4, staleness_max=1))
    waiting.add(at(0), reward(0, step=3))
    waiting.add(at(1), reward(1, step=3, scored=1))
    waiting.add(at(2), reward(2, step=1))
    waiting.add(at(3), reward(3, step=2))
    batch = waiting.take(step=3)
    assert [r.group_id for r in batch.fresh] == ["group-0", "group-3"]
    assert batch.failed == ("group-1",)
    assert batch.expired == ("group-2",)


def test_only_training_requests_reach_the_learner() -> None:
    waiting = assembler()
    waiting.add(at(0), reward(0, split="test"))
    assert waiting.waiting == 0


def test_what_was_no_reward_still_moves_the_position() -> None:
    waiting = assembler()
    waiting.add(at(0), None)
    waiting.add(at(1), reward(0))
    waiting.add(at(2), reward(1))
    assert waiting.take(step=0).positions == {0: 3}


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(0, 59))
def test_stopping_anywhere_and_going_on_gives_the_same_batches(numbers: list[int], cut: int) -> None:
    settings = BatchSettings(groups=3, staleness_max=1)

    def batches(waiting: BatchAssembler, start: int) -> list[tuple[str, ...]]:
        found = []
        for offset, number in list(enumerate(numbers))[start:]:
            waiting.add(at(offset), reward(number))
            if waiting.full:
                found.append(tuple(r.group_id for r in waiting.take(step=0).fresh))
        return found

    whole = batches(assembler(settings), 0)
    first = assembler(settings)
    done, position, consumed, recent = [], {0: 0}, {}, ()
    for offset, number in list(enumerate(numbers))[:cut]:
        first.add(at(offset), reward(number))
        if first.full:
            batch = first.take(step=0)
            done.append(tuple(r.group_id for r in batch.fresh))
            position, consumed, recent = batch.positions, batch.requests_consumed, first.recent_groups
    resumed = BatchAssembler(settings, positions=position, requests_consumed=consumed, recent_groups=recent)
    assert done + batches(resumed, position[0]) == whole


@settings(max_examples=30)
@given(again=st.integers(0, 300), resumed=st.integers(0, 300))
def test_a_forgotten_group_that_is_written_anew_by_the_newest_policy_teaches_nothing(again: int, resumed: int) -> None:
    """Kafka forgets a group's offsets: an old request may be answered again, under the same id, as fresh as can be."""
    limits = BatchSettings(groups=4, staleness_max=0, remembered_groups=64)
    waiting = assembler(limits)
    taken: list[str] = []
    step = 0
    for offset, number in enumerate([*range(300), again, *range(300, 304)]):
        waiting.add(at(offset), reward(number, step=step))
        if waiting.full:
            batch = waiting.take(step=step)
            step += 1
            taken += [each.group_id for each in batch.fresh]
            if number >= resumed:
                resumed = 10**9
                waiting = BatchAssembler(
                    limits,
                    positions=batch.positions,
                    requests_consumed=batch.requests_consumed,
                    recent_groups=batch.recent_groups,
                    low_water=batch.low_water,
                )
    assert len(taken) == len(set(taken))
    assert len(taken) >= 296


def owed_by_another_partition(round_of_the_other: int) -> BatchAssembler:
    """Two groups of partition 0 wait; partition 1 owes one that was granted in the given round, of rounds 1 to 3."""
    rounds: list[dict[int, int]] = [{0: 1}, {0: 2}, {0: 3}]
    rounds[round_of_the_other - 1] |= {1: 1}
    waiting = BatchAssembler(
        SETTINGS,
        positions={},
        requests_consumed={},
        recent_groups=(),
        admission=Admission(used={}, announced=rounds),
    )
    waiting.add(at(0), reward(0))
    waiting.add(at(1), reward(1))
    return waiting


def test_a_batch_waits_for_a_group_that_was_granted_earlier() -> None:
    assert not owed_by_another_partition(1).full
    assert owed_by_another_partition(2).full
    assert owed_by_another_partition(3).full


def test_nothing_is_dry_while_a_granted_request_may_still_be_answered() -> None:
    waiting = owed_by_another_partition(3)
    assert not waiting.dry
    waiting.add(at(2), reward(2))
    assert not waiting.dry
    waiting._admission.end(1, 1)
    assert waiting.dry


@settings(max_examples=20)
@given(groups=st.integers(64, 80), staleness=st.integers(0, 2), again=st.integers(0, 64 * 8))
def test_a_group_however_late_it_comes_again_gives_one_gradient(groups: int, staleness: int, again: int) -> None:
    """Also where a batch is larger than what is to be remembered."""
    waiting = assembler(BatchSettings(groups=groups, staleness_max=staleness, remembered_groups=64))
    fresh: list[str] = []
    for offset in range(groups * 8):
        number = 0 if offset == again else offset
        waiting.add(at(offset), reward(number, step=number // groups))
        if waiting.full:
            fresh += [r.group_id for r in waiting.take(step=len(fresh) // groups).fresh]
    assert fresh.count("group-0") <= 1
    assert len(fresh) == len(set(fresh))
