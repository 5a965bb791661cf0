"""Rewards from clicks: each that trained is computed again from the outcomes that it names.

The outcomes lie in another run's log, the live run's, which is opened beside. Only final outcomes count that no bot's
mark keeps out, within the offsets that the reward names; so a click that came after them, or whose record has changed,
gives other numbers. The formula is `streams.click_rewards`, which the environment uses, too. What is proved is the
input and the arithmetic. The texts were parsed by the environment, which nobody repeats here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from storage.log import Log
from storage.verification.account import Finding, place
from storage.verification.asking import SHOWN, shortened
from storage.verification.opening import open_for_proof
from storage.verification.segments import kept_records
from streams.click_rewards import (
    RAW,
    ClickRewardSettings,
    ClickTally,
    choices_of_group,
    click_reward,
    ids_sha256,
)
from streams.codec import decode
from streams.errors import EventError
from streams.events import ClickEvidence, Position, Reward
from streams.ids import is_candidate_choice
from streams.topics import topic_name
from streams.traffic_events import ImpressionOutcome
from streams.utility import UtilitySettings

RULE = "rewards follow from clicks"
SHUFFLED = "shuffled-"

ByChoice = dict[str, list[tuple[int, int, ImpressionOutcome]]]
"""Outcomes by each candidate that was offered, with partition and offset."""


class ClickTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a run whose rewards are clicks. folder: of its live run."""

    settings: ClickRewardSettings
    utility: UtilitySettings
    folder: Path


class ClicksRead(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the proof. checked: rewards that were computed again. unseen: why others were not; "" if none."""

    findings: list[Finding]
    checked: int
    unseen: str


def click_findings(log: Log, run: str, terms: ClickTerms) -> ClicksRead:
    """Compute every reward again that an update used. Needs the temporary table `taken`."""
    rewards = list(_used(log, run))
    findings = [
        Finding(rule=RULE, where=_where(at), what=f"group {reward.group_id} trained, but names no outcomes of people")
        for at, reward in rewards
        if not isinstance(reward.clicks, ClickEvidence)
    ]
    named = [(at, reward) for at, reward in rewards if isinstance(reward.clicks, ClickEvidence)]
    if not named:
        return ClicksRead(findings=findings, checked=0, unseen="")
    foreign = [(at, each) for at, each in named if _evidence(each).live != terms.settings.live]
    findings += [
        Finding(
            rule=RULE,
            where=_where(at),
            what=f"group {each.group_id} names outcomes of {_evidence(each).live[:80]!r}, the run has those of "
            f"{terms.settings.live!r}",
        )
        for at, each in foreign
    ]
    named = [item for item in named if item not in foreign]
    live, _, _ = open_for_proof(terms.folder) if terms.folder.is_dir() else (None, [], [])
    if live is None:
        unseen = f"the outcomes behind {len(named):,} rewards: {terms.folder} holds no log of the live run"
        return ClicksRead(findings=findings, checked=0, unseen=unseen)
    with live:
        stored = _stored(live, terms.settings.live)
        whole = [item for item in named if _is_stored(_evidence(item[1]), stored)]
        outcomes = _outcomes(live, terms.settings.live, [_evidence(reward) for _, reward in whole])
    found = [
        Finding(rule=RULE, where=_where(at), what=f"group {reward.group_id}: {reason}")
        for at, reward in whole
        if (reason := _difference(reward, outcomes, terms))
    ]
    unseen = ""
    if late := len(named) - len(whole):
        unseen = f"the outcomes behind {late:,} rewards: the ledger of {terms.settings.live} has not stored them all"
    findings += shortened(RULE, found[:SHOWN], len(found) - SHOWN if len(found) > SHOWN else 0)
    return ClicksRead(findings=findings, checked=len(whole), unseen=unseen)


def _used(log: Log, run: str) -> Iterator[tuple[Position, Reward]]:
    """Yield the first reward of each group that gave a gradient, or had no spread to give one."""
    rows = log.rows("SELECT DISTINCT group_id FROM taken WHERE fate IN ('trained', 'flat', 'disputed')")
    wanted = {row["group_id"] for row in rows}
    for partition in _partitions(log, topic_name(run, "rewards")):
        for record in kept_records(log, (topic_name(run, "rewards"), partition), 0, []):
            event = _decoded(record.value)
            if isinstance(event, Reward) and event.group_id in wanted:
                wanted.discard(event.group_id)
                yield record.position, event


def _difference(reward: Reward, outcomes: ByChoice, terms: ClickTerms) -> str:
    """Return how a reward differs from what its outcomes give, "" if it does not."""
    evidence, settings = _evidence(reward), terms.settings
    names = choices_of_group(reward.group_id, [each.expansions if each.valid else None for each in reward.outcomes])
    choices = {name for name in names if name}
    tally = ClickTally(choices, index=reward.index, settings=settings, utility=terms.utility)
    near = {(partition, offset): outcome for name in choices for partition, offset, outcome in outcomes.get(name, ())}
    for (partition, offset), people in sorted(near.items(), key=lambda item: item[0]):
        first, end = evidence.ranges.get(partition, (0, 0))
        if first <= offset < end:
            tally.add(people)
    seen = tally.seen()
    if (len(seen.counted), ids_sha256(seen.counted)) != (evidence.counted, evidence.sha256):
        return f"it counted {evidence.counted:,} impressions, the live run's log gives {len(seen.counted):,}, or others"
    expected: list[float] = []
    for index, (outcome, name) in enumerate(zip(reward.outcomes, names, strict=True)):
        if outcome.status != "scored":
            continue
        number, parts = 0.0, {"valid": 0.0}
        if name is not None:
            choice, raw = seen.by_choice[name], seen.by_choice[RAW]
            if choices and not (choice.is_enough(settings) and raw.is_enough(settings)):
                return f"candidate {index} is scored, but was seen by {choice.clients} people, raw by {raw.clients}"
            number, parts = click_reward(choice, raw, settings)
        if outcome.components != parts:
            return f"candidate {index} has the parts {outcome.components}, its outcomes give {parts}"
        expected.append(number)
    got = [outcome.reward or 0.0 for outcome in reward.outcomes if outcome.status == "scored"]
    if reward.reward_sha256.startswith(SHUFFLED):
        got, expected = sorted(got), sorted(expected)
    return f"its rewards are {got}, its outcomes give {expected}" if got != expected else ""


def _outcomes(live: Log, name: str, evidence: list[ClickEvidence]) -> ByChoice:
    """Return the outcomes in the ranges of all rewards, by candidate."""
    found: ByChoice = defaultdict(list)
    topic = topic_name(name, "impression-outcomes")
    ranges: dict[int, tuple[int, int]] = {}
    for each in evidence:
        for partition, (first, end) in each.ranges.items():
            low, high = ranges.get(partition, (first, end))
            ranges[partition] = (min(low, first), max(high, end))
    for partition, (first, end) in ranges.items():
        for record in kept_records(live, (topic, partition), first, []):
            if record.position.offset >= end:
                break
            event = _decoded(record.value)
            if isinstance(event, ImpressionOutcome):
                for choice in filter(is_candidate_choice, event.impression.offered):
                    found[choice].append((partition, record.position.offset, event))
    return found


def _stored(live: Log, name: str) -> dict[int, int]:
    rows = live.rows(
        "SELECT partition, next_offset FROM sink_offsets WHERE topic = ?", [topic_name(name, "impression-outcomes")]
    )
    return {row["partition"]: row["next_offset"] for row in rows}


def _is_stored(evidence: ClickEvidence, stored: dict[int, int]) -> bool:
    return all(end <= first or end <= stored.get(partition, 0) for partition, (first, end) in evidence.ranges.items())


def _partitions(log: Log, topic: str) -> list[int]:
    rows = log.rows("SELECT DISTINCT partition FROM sink_offsets WHERE topic = ? ORDER BY partition", [topic])
    return [row["partition"] for row in rows]


def _decoded(value: bytes | None) -> object:
    try:
        return decode(value)
    except EventError:
        return None


def _evidence(reward: Reward) -> ClickEvidence:
    assert isinstance(reward.clicks, ClickEvidence)
    return reward.clicks


def _where(at: Position) -> str:
    return place(at.topic, at.partition, at.offset)
