"""Rewards of a group's candidates from what people did with their results.

    r_c = format_bonus + clip( U_c − U_raw )        a candidate whose results people saw
    r_c = format_bonus                              a candidate without expansions: its results are the raw ones
    r_c = 0                                         an answer in the wrong format

U_c is the mean utility of the impressions that showed candidate c, and U_raw that of the raw results in the same time.
A server drew which of them an impression shows, and logged the probability. So the mean is self-normalized inverse
propensity weighting (SNIPS: Swaminathan and Joachims, "The Self-Normalized Estimator for Counterfactual Learning",
NeurIPS 2015, equation 9): U_c = Σ u / p ÷ Σ 1 / p. The draw alone takes out what differs between the searches of two
candidates: people, times, and all bias that both lists meet alike.

The bias of ranks is another matter, and has its own weight (`position`). People look at the first results most, so a
click says less about a document at the top than at the bottom. Under the position-based model (Craswell et al., WSDM
2008), P(click at rank k) = θ_k · α.

| position | an action at rank k is worth | U_c estimates |
|---|---|---|
| "seen" | what it is worth | what people do with the list: Σ θ_k · α_k. No model of examination is needed |
| "dcg" | that, divided by θ_k, times 1 / log2(1 + k) | the list's DCG, Σ α_k / log2(1 + k) |

The second is the estimator of a rank-weighted measure from clicks (Agarwal et al., "A General Framework for
Counterfactual Learning-to-Rank", SIGIR 2019). 1 / θ_k without a weight of the rank would estimate Σ α_k, which is the
same for every order of the same documents. So this module never takes the bias out without it.

"seen" is the default, because a wrong θ does harm. For simulated people who examine ranks as in an eye-tracking study,
θ_k = 1 / k gave the better of two orders the smaller reward: −.076, with a standard error of .031 over 40 groups of 150
searches. With the right θ, "dcg" told the two orders apart in 95 % of 400 groups, and "seen" in 68 %. θ is a setting,
so the numbers can be computed again from the event.

*Same results.* Two choices that showed the same results are one: their impressions are counted together, so their
rewards are equal, and chance alone never tells them apart. With words that change nothing among the results that people
see, a choice is one with the raw results, and its gain is exactly 0. A group of equal rewards moves no policy. Where we
differ: SNIPS knows names of actions alone.

*One person.* The impressions of one client for one choice are one draw: its mean. A client with more than
`client_share_max` of a group's impressions does not count at all. No client weighs more than `WEIGHT_RATIO_MAX` times
the median client. Where we differ: SNIPS counts each impression, with any weight.

Everything is pure and exact in its order: sums are rounded once (`math.fsum`), so the same impressions give the same
numbers, bit for bit, in whatever order they came.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

from streams.descriptions import describe
from streams.errors import SettingsError
from streams.ids import candidate_choice
from streams.traffic_events import ImpressionOutcome
from streams.utility import UtilitySettings, best_actions

RAW = ""
"""The choice of the raw results."""

SUM_TOLERANCE = 1e-6
NORMAL_95 = 1.959964
CLIENTS_MIN = 5  # Below this number of people no interval is believed, however narrow.
WEIGHT_RATIO_MAX = 4.0  # Of a client's weight to the median: no logged probability makes one person weigh more.
REPEATED_MIN = 3  # A client with fewer impressions is never too large a share.


class ClickRewardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for rewards that come from people's clicks."""

    live: Annotated[str, describe("Run of the live traffic: people see the candidates on its servers.")] = "live"
    impressions_min: Annotated[
        int,
        msgspec.Meta(ge=2, le=1_000_000),
        describe(
            "Impressions by different clients after which a candidate's results were seen often enough; the raw "
            "results need as many. More make a reward surer and later."
        ),
    ] = 50
    interval_max: Annotated[
        float,
        msgspec.Meta(ge=0),
        describe("Width of a 95 % interval of the utility that is also enough, instead of impressions_min. 0: never."),
    ] = 0.0
    wait_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=100 * 86_400),
        describe(
            "Time after which a group ends all the same. Candidates that were not seen often enough are `failed`. An "
            "impression counts when its outcome is final, after join.window_ms and join.lateness_ms."
        ),
    ] = 7 * 86_400.0
    open_max: Annotated[
        int, msgspec.Meta(ge=1, le=10_000), describe("Groups of one environment that wait for people at once.")
    ] = 256
    clip: Annotated[
        float,
        msgspec.Meta(gt=0, le=100),
        describe("Largest gain or loss over the raw results that a reward shows. It bounds what a fraud can do."),
    ] = 1.0
    format_bonus: Annotated[
        float, msgspec.Meta(ge=0, le=1), describe("Reward of every valid answer; an invalid one has 0.")
    ] = 0.2
    position: Annotated[
        Literal["seen", "dcg"],
        describe(
            'Weight of ranks: "seen" takes actions as they are; "dcg" divides each by the examination of its rank '
            "and multiplies it by DCG's discount."
        ),
    ] = "seen"
    examination: Annotated[
        tuple[float, ...],
        describe(
            "Examination of ranks 1, 2, … for position dcg; deeper ranks are as the last. The default comes from an "
            "eye-tracking study (Joachims et al., SIGIR 2005): fit your own, because a wrong one does harm."
        ),
    ] = (0.68, 0.61, 0.48, 0.34, 0.28, 0.2, 0.11, 0.1, 0.08, 0.06)
    same_results: Annotated[
        Literal["one", "apart"],
        describe(
            'Count of candidates that showed the same results: "one" counts their impressions together, so their '
            'rewards are equal; "apart" lets chance tell them apart.'
        ),
    ] = "one"
    client_share_max: Annotated[
        float,
        msgspec.Meta(gt=0, le=1),
        describe("Share of a group's impressions beyond which none of a client's count."),
    ] = 0.1

    def __post_init__(self) -> None:
        """Raise SettingsError if an examination is no probability."""
        if not self.examination or not all(0 < each <= 1 for each in self.examination):
            raise SettingsError(f"examination: expected probabilities above 0, at most 1, got {self.examination}")


class Draw(NamedTuple):
    """One impression that counts.

    utility: of its actions. clicks: number of documents with an action. shown: ids of the documents, in order of rank.
    """

    impression_id: str
    client: str
    choice: str
    propensity: float
    utility: float
    clicks: int
    shown: tuple[str, ...] = ()


class SeenChoice(NamedTuple):
    """People's acts on one choice's results.

    width: of the 95 % interval of the utility. mass: Σ 1 / propensity.
    """

    impressions: int
    clients: int
    clicks: int
    utility: float
    width: float
    mass: float

    def is_enough(self, settings: ClickRewardSettings) -> bool:
        """Return whether the choice was seen often enough, or its interval is narrow."""
        narrow = 0 < self.width <= settings.interval_max and self.clients >= CLIENTS_MIN
        return self.clients >= settings.impressions_min or narrow


class SeenGroup(NamedTuple):
    """People's acts on a group's results. counted: ids of the impressions that counted. left_out: by too often."""

    by_choice: Mapping[str, SeenChoice]
    counted: tuple[str, ...]
    left_out: int

    def is_closed(self, settings: ClickRewardSettings) -> bool:
        """Return whether every choice, and the raw results, were seen often enough."""
        return all(seen.is_enough(settings) for seen in self.by_choice.values())


NOTHING_SEEN = SeenChoice(impressions=0, clients=0, clicks=0, utility=0.0, width=0.0, mass=0.0)


class ClickTally:
    """Counts what people did with one group's results. The first final outcome of an impression decides."""

    def __init__(
        self, choices: Iterable[str], *, index: str, settings: ClickRewardSettings, utility: UtilitySettings
    ) -> None:
        """choices: the group's, without the raw results. index: the index version that must have been searched."""
        self.choices = frozenset(choices)
        self._index = index
        self._settings = settings
        self._utility = utility
        self._draws: dict[str, Draw | None] = {}
        self._seen: SeenGroup | None = None

    def add(self, outcome: ImpressionOutcome) -> bool:
        """Take an outcome and return whether it counts; one at whose search the group was not offered never does."""
        impression = outcome.impression
        if not outcome.final or impression.impression_id in self._draws or self.choices.isdisjoint(impression.offered):
            return False
        draw = draw_of(outcome, index=self._index, settings=self._settings, utility=self._utility)
        counts = isinstance(draw, Draw) and (draw.choice == RAW or draw.choice in self.choices)
        self._draws[impression.impression_id] = draw if isinstance(draw, Draw) and counts else None
        if counts:
            self._seen = None
        return counts

    def seen(self) -> SeenGroup:
        """Return what people did so far."""
        if self._seen is None:
            draws = [draw for draw in self._draws.values() if draw is not None]
            self._seen = seen_group(draws, self.choices, self._settings)
        return self._seen


def choices_of_group(group: str, expansions: Sequence[tuple[str, ...] | None]) -> list[str | None]:
    """Return the choice that each candidate's results are shown as: candidates with the same expansions share one.

    expansions: of each candidate; None for an answer in the wrong format, which has no choice.
    """
    first: dict[tuple[str, ...], str] = {(): RAW}
    names: list[str | None] = []
    for index, words in enumerate(expansions):
        names.append(None if words is None else first.setdefault(words, candidate_choice(group, index)))
    return names


def draw_of(
    outcome: ImpressionOutcome, *, index: str, settings: ClickRewardSettings, utility: UtilitySettings
) -> Draw | str:
    """Return an impression as a draw, or the reason why it may not count for any reward.

    Only a final outcome without a bot's mark counts, of one whole list with a sound propensity, on the group's index.
    """
    seen = outcome.impression
    if reason := _trouble(outcome, index):
        return reason
    ranks = {shown.document_id: shown.rank for shown in seen.shown}
    best = best_actions(((action.kind, action.document_id) for action in outcome.actions), utility)
    if strange := next((name for name in best if name not in ranks), None):
        return f"an action on {strange[:80]!r}, which was not shown"
    worth = math.fsum(value * _rank_weight(ranks[name], settings) for name, value in best.items())
    if not math.isfinite(worth):
        return f"a utility of {worth}"
    assert seen.action_propensity is not None
    return Draw(
        impression_id=seen.impression_id,
        client=seen.client or seen.session or seen.impression_id,
        choice=seen.policy,
        propensity=seen.action_propensity,
        utility=min(worth, utility.most),
        clicks=sum(value > 0 for value in best.values()),
        shown=tuple(sorted(ranks, key=lambda name: (ranks[name], name))),
    )


def seen_group(draws: Iterable[Draw], choices: Iterable[str], settings: ClickRewardSettings) -> SeenGroup:
    """Return what people did with each of a group's choices.

    draws: of impressions at which the group's choices were offered, one an impression. choices: the group's choices;
    the raw results are added.
    """
    names = {RAW, *choices}
    ours = [draw for draw in draws if draw.choice in names]
    often = Counter(draw.client for draw in ours)
    limit = max(settings.client_share_max * len(ours), REPEATED_MIN)
    kept = sorted(draw for draw in ours if often[draw.client] <= limit)
    by_choice: dict[str, list[Draw]] = {name: [] for name in sorted(names)}
    for draw in kept:
        by_choice[draw.choice].append(draw)
    counted_as: dict[str, str | tuple[str, ...]] = {name: name for name in by_choice}
    if settings.same_results == "one":
        counted_as = {name: _results(of) or name for name, of in by_choice.items()}
    together: dict[str | tuple[str, ...], list[Draw]] = defaultdict(list)
    for name, of in by_choice.items():
        together[counted_as[name]] += of
    seen = {key: _seen_choice(of, settings) for key, of in together.items()}
    return SeenGroup(
        by_choice={name: seen[counted_as[name]] for name in by_choice},
        counted=tuple(draw.impression_id for draw in kept),
        left_out=len(ours) - len(kept),
    )


def click_reward(choice: SeenChoice, raw: SeenChoice, settings: ClickRewardSettings) -> tuple[float, dict[str, float]]:
    """Return a candidate's reward and its parts. choice: of its results; `raw` itself for one without expansions."""
    gain = choice.utility - raw.utility
    clipped = max(-settings.clip, min(gain, settings.clip))
    parts = {
        "valid": 1.0,
        "gain": gain,
        "utility": choice.utility,
        "raw_utility": raw.utility,
        "impressions": float(choice.impressions),
        "clients": float(choice.clients),
        "clicks": float(choice.clicks),
        "raw_impressions": float(raw.impressions),
        "interval_width": choice.width,
        "propensity_mass": choice.mass,
    }
    return settings.format_bonus + clipped, parts


def ids_sha256(ids: Iterable[str]) -> str:
    """Return the hash of impression ids: sorted, each with a line's end."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(ids)).encode()).hexdigest()


def _results(draws: Sequence[Draw]) -> tuple[str, ...] | None:
    """Return the results that a choice showed: the longest page, if every other page is its beginning; else None."""
    pages = {draw.shown for draw in draws}
    longest = max(pages, key=len, default=())
    return longest if longest and all(longest[: len(page)] == page for page in pages) else None


def _seen_choice(draws: Sequence[Draw], settings: ClickRewardSettings) -> SeenChoice:
    """Return the figures of one choice. Each client is one draw, with the mean weight of its impressions.

    The interval is normal, with the variance of a ratio of weighted sums over clients. Two further draws, one clip
    above and one below the mean, keep it wide while few people have come: ten people without a click are not certain
    (after Agresti and Coull, The American Statistician 1998, who add draws to a proportion).
    """
    if not draws:
        return NOTHING_SEEN
    by_client: dict[str, list[Draw]] = defaultdict(list)
    for draw in draws:
        by_client[draw.client].append(draw)
    weights, values = [], []
    for of in by_client.values():
        mass = math.fsum(1 / draw.propensity for draw in of)
        weights.append(mass / len(of))
        values.append(math.fsum(draw.utility / draw.propensity for draw in of) / mass)
    limit = WEIGHT_RATIO_MAX * statistics.median(weights)
    weights = [min(weight, limit) for weight in weights]
    total = math.fsum(weights)
    mean = math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / total
    added = total / len(weights)
    squares = math.fsum((weight * (value - mean)) ** 2 for weight, value in zip(weights, values, strict=True))
    variance = (squares + 2 * (added * settings.clip) ** 2) / (total + 2 * added) ** 2
    return SeenChoice(
        impressions=len(draws),
        clients=len(by_client),
        clicks=sum(draw.clicks for draw in draws),
        utility=mean,
        width=2 * NORMAL_95 * math.sqrt(variance),
        mass=math.fsum(1 / draw.propensity for draw in draws),
    )


def _rank_weight(rank: int, settings: ClickRewardSettings) -> float:
    if settings.position == "seen":
        return 1.0
    if rank < 1:
        return math.inf
    examined = settings.examination[min(rank, len(settings.examination)) - 1]
    return settings.examination[0] / examined / math.log2(1 + rank)


def _trouble(outcome: ImpressionOutcome, index: str) -> str:
    seen = outcome.impression
    if not outcome.final:
        return "its outcome is not final"
    if outcome.bot:
        return "it is a bot's"
    if seen.teams:
        return "its list is interleaved"
    if seen.index != index:
        return f"it searched {seen.index[:80]!r}, not {index!r}"
    propensity = seen.action_propensity
    if propensity is None or not 0 < propensity <= 1:
        return f"expected a propensity in (0, 1], got {propensity}"
    if not all(0 <= each <= 1 for each in seen.offered.values()):  # NaN is refused, too.
        return "the probability of a choice is outside [0, 1]"
    if abs(math.fsum(seen.offered.values()) - 1) > SUM_TOLERANCE:
        return "the probabilities of its choices do not sum to 1"
    if abs(seen.offered.get(seen.policy, 0.0) - propensity) > SUM_TOLERANCE:
        return "its propensity differs from that of its choice"
    return ""
