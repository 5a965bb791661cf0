"""Groups that wait for people: opened, counted, closed, ended, opened again after a crash; answered in order."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from search_env.environments import Inputs, ShuffledWaitingRewards, WaitingEnvironment
from search_env.leser.clicked import CLOCKS_MS, ClickedEnvironment
from search_env.leser.expansions import ExpansionSettings
from search_env.serving.candidates import OpenGroup, OpenGroups, offer, read_open_groups, with_candidates
from search_env.serving.choosing import RAW
from search_env.waiting import AnswerQueue
from streams.click_rewards import ClickRewardSettings, ids_sha256
from streams.codec import content_sha256, encode_event
from streams.events import ClickEvidence, Completion, Generation, PolicyRef, Position, Request, Reward, Sampling
from streams.records import Received
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from streams.utility import UtilitySettings

SETTINGS = ClickRewardSettings(impressions_min=2, wait_seconds=100)
MADE_MS = 10_000_000


class FakeOutcomes:
    """A live run's outcomes in one partition; `written` says when each was written."""

    def __init__(self) -> None:
        self.log: list[ImpressionOutcome] = []
        self.written: list[int] = []
        self.at = 0

    def write(self, *outcomes: ImpressionOutcome, at_ms: int = MADE_MS) -> None:
        self.log += outcomes
        self.written += [at_ms] * len(outcomes)

    def since(self, at_ms: int) -> dict[int, int]:
        first = next((place for place, at in enumerate(self.written) if at >= at_ms), len(self.log))
        self.at = min(self.at, first)
        return {0: first}

    def read(self) -> list[tuple[Position, ImpressionOutcome]]:
        found = [(Position(topic="o", partition=0, offset=at), self.log[at]) for at in range(self.at, len(self.log))]
        self.at = len(self.log)
        return found

    def read_to(self) -> dict[int, int]:
        return {0: self.at}


class Clock:
    def __init__(self) -> None:
        self.now = MADE_MS

    def __call__(self) -> int:
        return self.now


def group(number: int, *texts: str, query: str = "mug", partition: int = 0) -> tuple[Generation, Position, str]:
    event = Generation(
        group_id=f"g{number}",
        request=Request(request_id=f"r{number}", run="run", query_id="q", query=query, index="i-1"),
        source=Position(topic="requests", partition=partition, offset=number),
        policy=PolicyRef(lineage="a", step=3, sha256="s"),
        tokenizer_sha256="t",
        prompt_sha256="p",
        sampling=Sampling(candidates=len(texts), temperature=0.9, tokens_max=16),
        prompt_token_ids=(1, 2),
        completions=tuple(Completion(text=text, token_ids=(1,), logprobs=(-1.0,), finish="stop") for text in texts),
        made_at_ms=MADE_MS,
    )
    place = Position(topic="generations", partition=partition, offset=number)
    return event, place, content_sha256(encode_event(event))


def words(*expansions: str) -> str:
    return f"<answer>{msgspec.json.encode(list(expansions)).decode()}</answer>"


class People:
    """Writes outcomes with new ids and clients."""

    def __init__(self, outcomes: FakeOutcomes) -> None:
        self._outcomes = outcomes
        self._number = 0

    def see(self, policy: str, *clicks: str, of: str = "g0", times: int = 1, **changes: object) -> None:
        offered = dict.fromkeys((RAW, f"{of}.0", f"{of}.1", f"{of}.3"), 0.25)
        for _ in range(times):
            self._number += 1
            seen = Impression(
                impression_id=f"i{self._number}",
                query_id="q",
                query="mug",
                client=f"c{self._number}",
                shown=tuple(
                    Shown(document_id=of, rank=rank) for rank, of in enumerate(("a", "b", policy or "raw"), start=1)
                ),
                at_ms=MADE_MS,
                policy=policy,
                action_propensity=0.25,
                offered=offered,
                index="i-1",
            )
            actions = tuple(
                UserAction(
                    action_id=f"{self._number}{name}",
                    impression_id=seen.impression_id,
                    kind="click",
                    document_id=name,
                    at_ms=MADE_MS,
                )
                for name in clicks
            )
            done = ImpressionOutcome(impression=seen, actions=actions, final=True)
            self._outcomes.write(msgspec.structs.replace(done, **changes))


def environment(
    outcomes: FakeOutcomes, folder: Path, clock: Clock, settings: ClickRewardSettings = SETTINGS
) -> ClickedEnvironment:
    return ClickedEnvironment(
        outcomes,
        folder,
        run="run",
        index="i-1",
        settings=settings,
        utility=UtilitySettings(),
        expansions=ExpansionSettings(),
        clock_ms=clock,
    )


FOUR = (words("cup"), words("tea"), words("cup"), words("oak"))


def test_a_group_is_offered_counted_and_closed_and_its_reward_names_what_counted(tmp_path: Path) -> None:
    outcomes, clock = FakeOutcomes(), Clock()
    people = People(outcomes)
    made = environment(outcomes, tmp_path, clock)
    assert isinstance(made, WaitingEnvironment)
    given = group(0, *FOUR[:2], words(), FOUR[3], "no list", FOUR[0])
    made.open([given])
    (offered,) = read_open_groups(tmp_path)
    assert offered.choices == {"g0.0": ("cup",), "g0.1": ("tea",), "g0.3": ("oak",)}
    assert made.closed() == [] and made.open_groups == 1
    people.see("g0.0", "a", "b", times=2)
    people.see("g0.1", "a", times=2)
    people.see("g0.3", times=2)
    people.see(RAW, "a", bot="too_fast")
    people.see(RAW, "a")
    assert made.closed() == []
    people.see(RAW)
    (reward,) = made.closed()
    assert [outcome.reward for outcome in reward.outcomes] == pytest.approx([1.2, 0.7, 0.2, -0.3, 0.0, 1.2])
    assert [outcome.valid for outcome in reward.outcomes] == [True] * 4 + [False, True]
    assert (reward.source, reward.group_id, reward.content_sha256) == (given[1], "g0", given[2])
    assert reward.clicks == ClickEvidence(
        live="live", ranges={0: (0, 9)}, counted=8, sha256=ids_sha256(f"i{n}" for n in (1, 2, 3, 4, 5, 6, 8, 9))
    )
    assert read_open_groups(tmp_path) == [] and made.open_groups == 0
    assert made.closed() == []


def test_an_outcome_after_the_closing_changes_nothing(tmp_path: Path) -> None:
    outcomes, clock = FakeOutcomes(), Clock()
    people = People(outcomes)
    made = environment(outcomes, tmp_path, clock)
    made.open([group(0, words("cup"), words())])
    people.see("g0.0", times=2)
    people.see(RAW, times=2)
    (before,) = made.closed()
    people.see("g0.0", "a", "b", times=50)
    assert made.closed() == []
    again = environment(outcomes, tmp_path, clock)
    again.open([group(0, words("cup"), words())])
    (late,) = again.closed()
    assert late != before, "which is why the first reward in the log counts"


def test_when_its_time_is_over_a_candidate_that_few_people_saw_fails_and_has_no_reward(tmp_path: Path) -> None:
    outcomes, clock = FakeOutcomes(), Clock()
    people = People(outcomes)
    made = environment(outcomes, tmp_path, clock)
    made.open([group(0, *FOUR[:2], words(), FOUR[3], "no list")])
    people.see("g0.0", "a", times=3)
    people.see("g0.1", "a", times=1)
    people.see(RAW, times=3)
    clock.now += 99_999
    assert made.closed() == []
    clock.now += 1
    (reward,) = made.closed()
    assert [outcome.status for outcome in reward.outcomes] == ["scored", "failed", "scored", "failed", "scored"]
    assert [outcome.reward for outcome in reward.outcomes] == pytest.approx([1.2, None, 0.2, None, 0.0])
    assert "its results were seen by 1 people in time, expected 2" in reward.outcomes[1].error
    made.open([group(1, words("cup"))])
    clock.now += 100_000
    (nobody,) = made.closed()
    assert [outcome.status for outcome in nobody.outcomes] == ["failed"]


def test_a_group_without_anything_to_show_closes_at_once_and_asks_nobody(tmp_path: Path) -> None:
    made = environment(FakeOutcomes(), tmp_path, Clock())
    (reward,) = made.score_many([group(0, "rubbish", words(), "<answer>")])
    assert [outcome.reward for outcome in reward.outcomes] == [0.0, 0.2, 0.0]
    assert not list(tmp_path.rglob("*.json"))


def test_after_a_crash_the_same_groups_are_open_with_the_time_and_the_people_that_they_had(tmp_path: Path) -> None:
    outcomes, clock = FakeOutcomes(), Clock()
    people = People(outcomes)
    first = environment(outcomes, tmp_path, clock)
    groups = [group(0, words("cup"), words()), group(1, words("tea"), words())]
    first.open(groups)
    people.see("g0.0", "a", times=2)
    people.see(RAW, times=1)
    assert first.closed() == []
    clock.now += 60_000
    second = environment(outcomes, tmp_path, clock)  # The first was killed.
    outcomes.at = len(outcomes.log)
    second.open([groups[1]])
    assert second.closed() == []
    second.open([groups[0]])
    people.see(RAW, times=1)
    (reward,) = second.closed()
    assert reward.group_id == "g0" and reward.clicks.counted == 4  # type: ignore[union-attr]
    assert reward.outcomes[0].reward == pytest.approx(1.2)
    clock.now += 40_000
    (ended,) = second.closed()
    assert ended.group_id == "g1", "its time goes on where it was"


def test_what_lies_before_a_group_was_written_is_not_read_for_it(tmp_path: Path) -> None:
    outcomes, clock = FakeOutcomes(), Clock()
    outcomes.write(*[outcome_of_another() for _ in range(5)], at_ms=MADE_MS - CLOCKS_MS - 1)
    made = environment(outcomes, tmp_path, clock)
    made.open([group(0, words("cup"))])
    people = People(outcomes)
    people.see("g0.0", times=2)
    people.see(RAW, times=2)
    (reward,) = made.closed()
    assert reward.clicks.ranges == {0: (5, 9)}  # type: ignore[union-attr]


def outcome_of_another() -> ImpressionOutcome:
    seen = Impression(impression_id="x", query_id="q", query="oak", at_ms=1)
    return ImpressionOutcome(impression=seen, actions=(), final=True)


def test_a_group_of_a_lost_partition_is_dropped_and_stays_offered_for_its_next_owner(tmp_path: Path) -> None:
    made = environment(FakeOutcomes(), tmp_path, Clock())
    made.open([group(0, words("cup")), group(1, words("tea"), partition=1)])
    made.drop(lambda source: source.partition == 1)
    assert made.open_groups == 1
    assert len(read_open_groups(tmp_path)) == 2


def test_files_whose_time_is_over_are_cleared_by_their_own_run_alone(tmp_path: Path) -> None:
    past = OpenGroup(
        group_id="p", run="run", query="mug", index="i-1", choices={"p.0": ("cup",)}, since_ms=0, until_ms=1
    )
    offer(tmp_path, past)
    offer(tmp_path, msgspec.structs.replace(past, group_id="o", run="other", choices={"o.0": ("cup",)}))
    environment(FakeOutcomes(), tmp_path, Clock())
    assert [each.group_id for each in read_open_groups(tmp_path)] == ["o"]
    assert OpenGroups(read_open_groups(tmp_path), index="i-1").of("mug", at_ms=2) == {}


def test_servers_find_the_open_groups_of_a_query_by_its_words_on_their_index(tmp_path: Path) -> None:
    open_now = OpenGroup(
        group_id="g", run="run", query="Red  Mug", index="i-1", choices={"g.0": ("cup",)}, since_ms=0, until_ms=9
    )
    offer(tmp_path, open_now)
    found = OpenGroups(read_open_groups(tmp_path), index="i-1")
    assert found.of("red mug", at_ms=8) == {"g.0": ("cup",)} and found.of("mug", at_ms=8) == {}
    assert len(OpenGroups(read_open_groups(tmp_path), index="i-2")) == 0
    (tmp_path / "candidates" / "g.json").write_bytes(b"{")
    assert read_open_groups(tmp_path) == []


def test_candidates_get_at_least_their_floor_and_the_others_keep_their_proportions() -> None:
    offered = with_candidates({RAW: 0.25, "v-1": 0.75}, ["g.0", "g.1"], share=0.3)
    assert sum(offered.values()) == pytest.approx(1)
    assert offered["g.0"] == offered["g.1"] == pytest.approx(0.1)
    assert offered["v-1"] == pytest.approx(0.7 * 0.75) and offered[RAW] == pytest.approx(0.7 * 0.25 + 0.1)
    assert with_candidates({RAW: 1.0}, [], share=0.3) == {RAW: 1.0}
    assert with_candidates({RAW: 1.0}, ["g.0"], share=0.0) == {RAW: 1.0}


def record(partition: int, offset: int) -> Received:
    place = Position(topic="generations", partition=partition, offset=offset)
    return Received(position=place, timestamp_ms=0, key=None, value=b"", headers=())


def answered(inputs: Inputs, folder: Path) -> list[Reward]:
    return environment(FakeOutcomes(), folder, Clock()).failed_many(inputs, error="x")


def test_rewards_leave_in_the_order_of_their_partition_however_groups_close(tmp_path: Path) -> None:
    queue = AnswerQueue()
    records = [record(0, 0), record(0, 1), record(1, 0), record(0, 2)]
    assert all(map(queue.add, records)) and not queue.add(records[1])
    first, second, third = answered([group(0, "x"), group(1, "x"), group(2, "x")], tmp_path)
    queue.answer([second])
    assert queue.ready() == []
    other = msgspec.structs.replace(first, source=records[2].position)
    queue.answer([other])
    assert queue.ready() == [(records[2], other)]
    queue.answer([first])
    assert queue.ready() == [(records[0], first), (records[1], second)]
    queue.skip(records[3])
    assert queue.ready() == [(records[3], None)] and len(queue) == 0
    queue.add(record(0, 3))
    queue.drop([0])
    queue.answer([third])
    assert queue.ready() == [] and queue.partitions == set()


def test_a_control_shuffles_the_rewards_of_waiting_groups_too(tmp_path: Path) -> None:
    outcomes = FakeOutcomes()
    made = ShuffledWaitingRewards(environment(outcomes, tmp_path, Clock()))
    assert isinstance(made, WaitingEnvironment)
    made.open([group(0, words("cup"), words(), "no list")])
    people = People(outcomes)
    people.see("g0.0", "a", times=2)
    people.see(RAW, times=2)
    (reward,) = made.closed()
    assert sorted(outcome.reward or 0.0 for outcome in reward.outcomes) == pytest.approx([0.0, 0.2, 1.2])
    assert reward.reward_sha256.startswith("shuffled-") and reward.clicks.counted == 4  # type: ignore[union-attr]
    assert (made.room, made.open_groups, made.counted) == (256, 0, 4)
