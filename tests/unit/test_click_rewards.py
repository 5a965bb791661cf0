"""Rewards from clicks: what counts, when a group closes, what a reward is, and how little one person can do."""

from __future__ import annotations

import math
import random
from itertools import permutations

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from search_env.clicks.published import EYE_TRACKED
from search_env.clicks.users import SimulatedUsers
from streams.click_rewards import (
    RAW,
    ClickRewardSettings,
    ClickTally,
    choices_of_group,
    click_reward,
    draw_of,
    seen_group,
)
from streams.ids import candidate_choice, is_candidate_choice
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from streams.utility import UtilitySettings

Floats = npt.NDArray[np.float64]
UTILITY = UtilitySettings()
SETTINGS = ClickRewardSettings(impressions_min=10, same_results="apart")
INDEX = "shop-1"
ONE = candidate_choice("g", 0)
TWO = candidate_choice("g", 1)
OFFERED = {RAW: 0.5, ONE: 0.25, TWO: 0.25}


def outcome(
    number: int, policy: str, *clicks: str, client: str | None = None, kind: str = "click", **changes: object
) -> ImpressionOutcome:
    """Return a person's final outcome on documents a, b and c."""
    seen = Impression(
        impression_id=f"i{number}",
        query_id="q",
        query="mug",
        client=f"c{number}" if client is None else client,
        shown=tuple(Shown(document_id=name, rank=rank) for rank, name in enumerate("abc", start=1)),
        at_ms=1_000 + number,
        policy=policy,
        action_propensity=OFFERED.get(policy),
        offered=OFFERED,
        index=INDEX,
    )
    actions = tuple(
        UserAction(
            action_id=f"{number}-{name}", impression_id=f"i{number}", kind=kind, document_id=name, at_ms=2_000 + number
        )
        for name in clicks
    )
    result = ImpressionOutcome(impression=seen, actions=actions, final=True)
    for name, value in changes.items():
        inner = name in Impression.__struct_fields__
        result = (
            msgspec.structs.replace(result, impression=msgspec.structs.replace(result.impression, **{name: value}))
            if inner
            else msgspec.structs.replace(result, **{name: value})
        )
    return result


def tally(*outcomes: ImpressionOutcome, settings: ClickRewardSettings = SETTINGS) -> ClickTally:
    made = ClickTally([ONE, TWO], index=INDEX, settings=settings, utility=UTILITY)
    for each in outcomes:
        made.add(each)
    return made


def test_a_reward_worked_by_hand() -> None:
    counted = tally(
        outcome(0, ONE, "a", "b"),
        outcome(1, ONE),
        outcome(2, RAW, "a"),
        outcome(3, RAW),
        outcome(4, RAW),
        outcome(5, RAW),
    ).seen()
    reward, parts = click_reward(counted.by_choice[ONE], counted.by_choice[RAW], SETTINGS)
    assert (parts["utility"], parts["raw_utility"]) == (1.0, 0.25)
    assert reward == SETTINGS.format_bonus + 0.75
    assert (parts["impressions"], parts["clicks"], parts["propensity_mass"]) == (2, 2, 8)
    assert counted.by_choice[TWO].impressions == 0
    assert counted.counted == ("i0", "i1", "i2", "i3", "i4", "i5")


def test_a_carts_worth_counts_once_a_document_and_the_clip_bounds_the_reward() -> None:
    counted = tally(outcome(0, ONE, "a", "b", "c", kind="purchase"), outcome(1, RAW)).seen()
    reward, parts = click_reward(counted.by_choice[ONE], counted.by_choice[RAW], SETTINGS)
    assert parts["utility"] == UTILITY.most
    assert reward == SETTINGS.format_bonus + SETTINGS.clip
    worse, _ = click_reward(counted.by_choice[RAW], counted.by_choice[ONE], SETTINGS)
    assert worse == SETTINGS.format_bonus - SETTINGS.clip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"final": False}, "not final"),
        ({"bot": "too_fast"}, "bot"),
        ({"teams": ("", ONE, "")}, "interleaved"),
        ({"index": "shop-2"}, "searched 'shop-2'"),
        ({"action_propensity": None}, "propensity"),
        ({"action_propensity": 0.0}, "propensity"),
        ({"action_propensity": math.nan}, "propensity"),
        ({"action_propensity": 0.9}, "differs"),
        ({"offered": {**OFFERED, "other": 0.5}}, "sum to 1"),
        ({"shown": (Shown(document_id="b", rank=1),)}, "was not shown"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_an_outcome_that_may_not_count_counts_for_nothing(changes: dict[str, object], reason: str) -> None:
    bad = outcome(0, ONE, "a", **changes)
    said = draw_of(bad, index=INDEX, settings=SETTINGS, utility=UTILITY)
    assert isinstance(said, str) and reason in said
    made = tally(bad)
    assert made.seen().counted == ()
    # What is refused stays refused, when a copy without the mark comes later; a provisional outcome decides nothing.
    assert made.add(outcome(0, ONE, "a")) == ("final" in changes)


def test_the_first_outcome_of_an_impression_counts_and_a_copy_changes_nothing() -> None:
    once = tally(outcome(0, ONE, "a"), outcome(1, RAW))
    twice = tally(outcome(0, ONE, "a"), outcome(1, RAW), outcome(0, ONE), outcome(1, RAW, "a", "b"))
    assert once.seen() == twice.seen()


def test_raw_results_count_only_while_the_group_is_offered() -> None:
    elsewhere = outcome(0, RAW, "a", offered={RAW: 0.5, "h.0": 0.5})
    assert tally(elsewhere).seen().by_choice[RAW].impressions == 0
    assert (
        tally(outcome(1, "a1-000004", offered={RAW: 0.3, ONE: 0.4, "a1-000004": 0.3}, action_propensity=0.3))
        .seen()
        .counted
        == ()
    )


def test_any_order_of_arrival_gives_the_same_numbers_bit_for_bit() -> None:
    made = [outcome(n, (ONE, TWO, RAW)[n % 3], *"abc"[: n % 4], client=f"c{n // 2}") for n in range(6)]
    results = {repr(tally(*order).seen()) for order in permutations(made)}
    assert len(results) == 1


def test_a_group_closes_when_every_choice_was_seen_by_enough_people_and_not_before() -> None:
    made = ClickTally([ONE], index=INDEX, settings=SETTINGS, utility=UTILITY)
    number = 0
    for _ in range(SETTINGS.impressions_min):
        assert not made.seen().is_closed(SETTINGS)
        made.add(outcome(number, ONE))
        made.add(outcome(number + 1, RAW))
        number += 2
    assert made.seen().is_closed(SETTINGS)
    same = ClickTally([ONE], index=INDEX, settings=SETTINGS, utility=UTILITY)
    for number in range(200):
        same.add(outcome(number, (ONE, RAW)[number % 2], client=f"c{number % 8}"))
    assert not same.seen().is_closed(SETTINGS), "eight people are no more than eight draws"


def test_a_narrow_interval_is_enough_and_few_people_without_a_click_are_not_narrow() -> None:
    narrow = msgspec.structs.replace(SETTINGS, impressions_min=1_000, interval_max=0.5)
    few = tally(*(outcome(n, (ONE, TWO, RAW)[n % 3]) for n in range(15)), settings=narrow)
    assert not few.seen().is_closed(narrow)
    many = tally(*(outcome(n, (ONE, TWO, RAW)[n % 3]) for n in range(90)), settings=narrow)
    assert many.seen().is_closed(narrow)
    never = msgspec.structs.replace(narrow, interval_max=0.0)
    assert not many.seen().is_closed(never)


def test_the_interval_covers_the_true_utility_about_as_often_as_it_says() -> None:
    random_ = np.random.default_rng(3)
    covered = 0
    trials = 600
    for trial in range(trials):
        draws = [outcome(n, ONE, *"a"[: int(random_.random() < 0.3)]) for n in range(60)]
        seen = tally(*draws).seen().by_choice[ONE]
        covered += abs(seen.utility - 0.3) <= seen.width / 2
        del trial
    assert 0.93 <= covered / trials <= 1


TOGETHER = msgspec.structs.replace(SETTINGS, same_results="one")


def page(documents: str) -> tuple[Shown, ...]:
    return tuple(Shown(document_id=name, rank=rank) for rank, name in enumerate(documents, start=1))


def test_choices_that_showed_the_same_results_are_one_and_their_rewards_are_equal() -> None:
    # ONE shows the raw results, so six clicks in sixteen searches are those of both; TWO shows another order.
    people = [
        *(outcome(n, ONE, *"a"[: int(n < 5)]) for n in range(8)),
        *(outcome(n, RAW, *"a"[: int(n < 11)]) for n in range(10, 18)),
        *(outcome(n, TWO, *"a"[: int(n < 28)], shown=page("bac")) for n in range(20, 30)),
    ]
    seen = tally(*people, settings=TOGETHER).seen().by_choice
    assert seen[ONE] == seen[RAW] and seen[ONE].clients == 16
    # By hand: five clicks of weight 4 and one of weight 2, over eight searches of weight 4 and eight of weight 2.
    assert seen[ONE].utility == pytest.approx((5 * 4 + 1 * 2) / (8 * 4 + 8 * 2))
    assert click_reward(seen[ONE], seen[RAW], TOGETHER)[0] == TOGETHER.format_bonus
    assert seen[TWO].clients == 10 and seen[TWO].utility == pytest.approx(0.8)
    apart = tally(*people).seen().by_choice
    assert apart[ONE].utility == pytest.approx(5 / 8) and apart[RAW].utility == pytest.approx(1 / 8)
    assert [seen[ONE].is_enough(TOGETHER), apart[ONE].is_enough(SETTINGS)] == [True, False], "16 people, and 8"


def test_pages_of_one_list_are_the_same_results_and_other_lists_are_not() -> None:
    short = [*(outcome(n, ONE, shown=page("ab")) for n in range(4)), *(outcome(n, ONE) for n in range(4, 8))]
    raw = [outcome(n, RAW) for n in range(10, 18)]
    seen = tally(*short, *raw, settings=TOGETHER).seen().by_choice
    assert seen[ONE] == seen[RAW] and seen[ONE].impressions == 16
    changed = [*short, outcome(8, ONE, shown=page("cab"))]
    seen = tally(*changed, *raw, settings=TOGETHER).seen().by_choice
    assert (seen[ONE].impressions, seen[RAW].impressions) == (9, 8), "a choice with two lists is like no other"
    empty = [outcome(n, (ONE, TWO)[n % 2], shown=()) for n in range(8)]
    seen = tally(*empty, *raw, settings=TOGETHER).seen().by_choice
    assert [seen[name].impressions for name in (RAW, ONE, TWO)] == [8, 4, 4], "nothing shown says nothing"


def test_candidates_with_the_same_words_share_a_choice_and_no_words_are_the_raw_results() -> None:
    names = choices_of_group("g", [("cup",), (), None, ("cup",), ("tea", "cup")])
    assert names == ["g.0", RAW, None, "g.0", "g.4"]
    assert all(is_candidate_choice(name) for name in names if name)
    assert not is_candidate_choice("a1b2-000040") and not is_candidate_choice(RAW)


def simulated(settings: ClickRewardSettings, *, groups: int) -> tuple[Floats, Floats]:
    """Return the rewards [groups] of the best and of the second best order of the same documents.

    People of a position-based model from an eye-tracking study see one of three orders, 150 searches a group.
    """
    users = SimulatedUsers(EYE_TRACKED, {"q": {"a": 4, "b": 2}}, seed=11)
    lists = {RAW: "cdefgba", ONE: "abcdefg", TWO: "cabdefg"}
    chooser = random.Random(5)
    rewards: dict[str, list[float]] = {ONE: [], TWO: []}
    for group in range(groups):
        made = ClickTally([ONE, TWO], index=INDEX, settings=settings, utility=UTILITY)
        for number in range(150):
            policy = chooser.choices(list(OFFERED), weights=list(OFFERED.values()))[0]
            shown = tuple(Shown(document_id=name, rank=rank) for rank, name in enumerate(lists[policy], start=1))
            clicks = users.clicks("q", lists[policy])
            made.add(outcome(1_000 * group + number, policy, *clicks, shown=shown))
        seen = made.seen()
        for name, of in rewards.items():
            of.append(click_reward(seen.by_choice[name], seen.by_choice[RAW], settings)[1]["gain"])
    return np.array(rewards[ONE]), np.array(rewards[TWO])


@pytest.mark.parametrize("position", ["seen", "dcg"])
def test_the_better_list_has_the_larger_reward_in_expectation_under_each_weight_of_ranks(position: str) -> None:
    """Clicks divided by the examination of their rank alone would be equal for all orders, in expectation."""
    best, second = simulated(ClickRewardSettings(position=position), groups=40)  # type: ignore[arg-type]
    assert np.mean(best - second) > 3 * np.std(best - second) / math.sqrt(len(best))
    assert np.mean(second) > 3 * np.std(second) / math.sqrt(len(second))


def test_a_client_that_clicks_all_it_gets_from_one_candidate_moves_a_reward_by_one_persons_share() -> None:
    """Five in a hundred impressions are one client's, who buys everything that candidate one shows."""
    honest = [outcome(n, (ONE, TWO, RAW)[n % 3], *"a"[: n % 5 == 0]) for n in range(285)]
    fraud = [outcome(1_000 + n, ONE, "a", "b", "c", client="fraud", kind="purchase") for n in range(15)]
    wide = msgspec.structs.replace(SETTINGS, client_share_max=0.1)

    def reward(*outcomes: ImpressionOutcome, settings: ClickRewardSettings) -> float:
        seen = tally(*outcomes, settings=settings).seen()
        return click_reward(seen.by_choice[ONE], seen.by_choice[RAW], settings)[0]

    clean, moved = reward(*honest, settings=wide), reward(*honest, *fraud, settings=wide)
    assert 0 < moved - clean <= UTILITY.most / 96, "one person of 96, at most the largest worth of one impression"
    # Beyond its share the client does not count at all.
    strict = msgspec.structs.replace(SETTINGS, client_share_max=0.04)
    assert reward(*honest, *fraud, settings=strict) == clean


def test_no_logged_probability_makes_one_person_weigh_more_than_four() -> None:
    honest = [outcome(n, (ONE, RAW)[n % 2]) for n in range(40)]
    tiny = 1e-9
    forged = outcome(99, ONE, "a", offered={RAW: 1 - tiny, ONE: tiny}, action_propensity=tiny)
    seen = tally(*honest, forged).seen().by_choice[ONE]
    assert seen.utility == pytest.approx(4 / 24)


def test_twenty_groups_by_seeded_people_have_equal_numbers_from_generator_and_list() -> None:
    draws = [
        draw
        for n in range(30)
        if not isinstance(draw := draw_of(outcome(n, ONE, "a"), index=INDEX, settings=SETTINGS, utility=UTILITY), str)
    ]
    assert seen_group(iter(draws), [ONE], SETTINGS) == seen_group(draws, [ONE], SETTINGS)


if __name__ == "__main__":  # The figures in `streams/click_rewards.py`.
    guessed = ClickRewardSettings(position="dcg", examination=tuple(1 / rank for rank in range(1, 11)))
    for name, kind in (("seen", ClickRewardSettings()), ("dcg", ClickRewardSettings(position="dcg")), ("1/k", guessed)):
        first, other = simulated(kind, groups=400)
        error = np.std(first - other) / 20
        print(f"{name}: {np.mean(first - other):+.3f} ± {error:.3f}, right in {np.mean(first > other):.0%} of groups")
