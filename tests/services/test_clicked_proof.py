"""The proof of rewards from clicks: sound ones are computed again bit for bit, and every change to one shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from search_env.environments import shuffled
from search_env.serving.choosing import RAW
from storage.ledger import LEDGER
from storage.log import open_log
from storage.verification.clicked import ClicksRead, ClickTerms, click_findings
from streams.codec import encode_event
from streams.events import ClickEvidence, Event, Position, Reward
from streams.records import Received
from streams.topics import topic_name
from streams.traffic_events import ImpressionOutcome
from streams.utility import UtilitySettings
from tests.finished_run import store
from tests.unit.test_clicked_environment import FOUR, SETTINGS, Clock, FakeOutcomes, People, environment, group, words

Outcomes = list[ImpressionOutcome]


@pytest.fixture
def made(tmp_path: Path) -> tuple[list[Reward], Outcomes]:
    """Give two groups' rewards, and the outcomes that they came from, with a bot's and a late one among them."""
    outcomes = FakeOutcomes()
    people = People(outcomes)
    here = environment(outcomes, tmp_path, Clock())
    here.open([group(0, *FOUR[:2], words(), FOUR[3], "no list"), group(1, words("cup"), words("tea"))])
    people.see("g0.0", "a", "b", times=3)
    people.see("g0.1", "a", times=2)
    people.see("g0.3", times=2)
    people.see(RAW, "a", bot="too_fast")
    people.see(RAW, times=2)
    rewards = here.closed()
    people.see("g0.1", "a", "b", times=3)  # Late: the group has closed.
    people.see("g1.0", "b", of="g1", times=2)
    people.see("g1.1", of="g1", times=2)
    people.see(RAW, "a", of="g1", times=3)
    rewards += here.closed()
    assert len(rewards) == 2
    return rewards, outcomes.log


def records(run: str, kind: str, events: Sequence[Event]) -> list[Received]:
    return [
        Received(
            position=Position(topic=topic_name(run, kind), partition=0, offset=offset),
            timestamp_ms=1,
            key=b"k",
            value=encode_event(event),
            headers=(),
        )
        for offset, event in enumerate(events)
    ]


def prove(folder: Path, rewards: list[Reward], outcomes: Outcomes | None, *, settings: object = SETTINGS) -> ClicksRead:
    """Store both logs, and prove the rewards as if an update had taken every group."""
    ours, live = folder / "ours", folder / "live"
    ours.mkdir()
    store(ours, records("ours", "rewards", rewards))
    if outcomes is not None:
        live.mkdir()
        store(live, records("live", "impression-outcomes", outcomes))
    assert (ours / LEDGER).exists()
    terms = ClickTerms(settings=settings, utility=UtilitySettings(), folder=live)  # type: ignore[arg-type]
    with open_log(ours) as log:
        log.connection.execute("CREATE TEMP TABLE taken (group_id VARCHAR, fate VARCHAR)")
        log.connection.executemany(
            "INSERT INTO taken VALUES (?, 'trained')",
            [[group] for group in sorted({each.group_id for each in rewards})],
        )
        return click_findings(log, "ours", terms)


def test_sound_rewards_are_computed_again_bit_for_bit(made: tuple[list[Reward], Outcomes], tmp_path: Path) -> None:
    read = prove(tmp_path, *made)
    assert (read.findings, read.checked, read.unseen) == ([], 2, "")


def test_rewards_of_the_control_are_the_same_numbers_in_another_order(
    made: tuple[list[Reward], Outcomes], tmp_path: Path
) -> None:
    rewards, outcomes = made
    read = prove(tmp_path, [shuffled(each) for each in rewards], outcomes)
    assert (read.findings, read.checked) == ([], 2)


def _of_g0(outcomes: Outcomes, change: Callable[[ImpressionOutcome], ImpressionOutcome]) -> Outcomes:
    return [change(outcomes[0]), *outcomes[1:]]


@pytest.mark.parametrize(
    "change",
    [
        lambda outcome: msgspec.structs.replace(outcome, actions=outcome.actions[:1]),
        lambda outcome: msgspec.structs.replace(outcome, bot="too_fast"),
        lambda outcome: msgspec.structs.replace(outcome, final=False),
        lambda outcome: msgspec.structs.replace(
            outcome, impression=msgspec.structs.replace(outcome.impression, policy="g0.1")
        ),
        lambda outcome: msgspec.structs.replace(
            outcome, impression=msgspec.structs.replace(outcome.impression, impression_id="another")
        ),
    ],
    ids=["a click less", "a bot's", "not final", "another candidate", "another impression"],
)
def test_an_outcome_that_was_changed_after_the_reward_shows(
    change: Callable[[ImpressionOutcome], ImpressionOutcome], made: tuple[list[Reward], Outcomes], tmp_path: Path
) -> None:
    rewards, outcomes = made
    (finding,) = prove(tmp_path, rewards, _of_g0(outcomes, change)).findings
    assert (finding.rule, finding.where) == ("rewards follow from clicks", "ours.rewards[0]@0")


def _first(reward: Reward, /, **changes: object) -> Reward:
    outcomes = (msgspec.structs.replace(reward.outcomes[0], **changes), *reward.outcomes[1:])
    return msgspec.structs.replace(reward, outcomes=outcomes)


def _evidence(reward: Reward, **changes: object) -> Reward:
    assert isinstance(reward.clicks, ClickEvidence)
    return msgspec.structs.replace(reward, clicks=msgspec.structs.replace(reward.clicks, **changes))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda reward: _first(reward, reward=0.9), "its rewards are"),
        (lambda reward: _first(reward, components={"valid": 1.0}), "has the parts"),
        (lambda reward: _evidence(reward, counted=8), "it counted 8 impressions"),
        (lambda reward: _evidence(reward, sha256="0" * 64), "or others"),
        (lambda reward: _evidence(reward, ranges={0: (0, 13)}), "it counted 9 impressions"),
        (lambda reward: _evidence(reward, ranges={0: (1, 10)}), "it counted 9 impressions"),
        (lambda reward: _evidence(reward, live="elsewhere"), "names outcomes of 'elsewhere'"),
        (lambda reward: msgspec.structs.replace(reward, clicks=msgspec.UNSET), "names no outcomes"),
        (lambda reward: msgspec.structs.replace(reward, index="i-2"), "it counted 9 impressions"),
    ],
    ids=["number", "parts", "count", "hash", "late clicks", "fewer", "another run", "no evidence", "another index"],
)
def test_a_reward_that_its_outcomes_do_not_give_shows(
    change: Callable[[Reward], Reward], what: str, made: tuple[list[Reward], Outcomes], tmp_path: Path
) -> None:
    rewards, outcomes = made
    (finding,) = prove(tmp_path, [change(rewards[0]), rewards[1]], outcomes).findings
    assert finding.rule == "rewards follow from clicks" and what in finding.what


def test_a_candidate_that_was_scored_before_enough_people_came_shows(
    made: tuple[list[Reward], Outcomes], tmp_path: Path
) -> None:
    stricter = msgspec.structs.replace(SETTINGS, impressions_min=3)
    found = prove(tmp_path, *made, settings=stricter).findings
    assert found and all("is scored, but was seen by" in finding.what for finding in found)


def test_what_is_not_there_is_not_checked_and_said(made: tuple[list[Reward], Outcomes], tmp_path: Path) -> None:
    read = prove(tmp_path, made[0], None)
    assert (read.findings, read.checked) == ([], 0) and "holds no log of the live run" in read.unseen


def test_outcomes_that_the_live_runs_ledger_lacks_are_not_checked_and_said(
    made: tuple[list[Reward], Outcomes], tmp_path: Path
) -> None:
    rewards, outcomes = made
    read = prove(tmp_path, rewards, outcomes[:12])
    assert (read.findings, read.checked) == ([], 1) and "the outcomes behind 1 rewards" in read.unseen
