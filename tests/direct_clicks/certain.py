"""Rewards without chance: what the product's rewards would be if everybody came. They tell what the noise costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from search_env.clicks.models import PositionBased
from search_env.clicks.published import EYE_TRACKED
from search_env.clicks.users import attractions
from search_env.engine.searching import ExpandedQuery
from search_env.environments import Inputs, Rejected, ScoringEnvironment
from search_env.leser.clicked import outcomes_of
from search_env.leser.expansions import ExpansionSettings, ParsedExpansions, choices_of, parse_expansions
from streams.click_rewards import RAW, ClickRewardSettings, Draw, SeenChoice, SeenGroup, choices_of_group, draw_of
from streams.events import Generation, Reward
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from streams.utility import UtilitySettings
from tests.direct_clicks.crowd import Lists
from tests.drift.people import SHOWN

MODEL = EYE_TRACKED.model
INDEX = "one"
Doubles = npt.NDArray[np.float64]


class CertainEnvironment(ScoringEnvironment):
    """Rewards each text by the clicks that its results would get in expectation, weighted by the product."""

    def __init__(
        self,
        lists: Lists,
        grades: Mapping[str, Mapping[str, int]],
        *,
        settings: ClickRewardSettings,
        utility: UtilitySettings,
        expansions: ExpansionSettings,
    ) -> None:
        """grades: the hidden relevance, {query text: {document id: grade}}."""
        super().__init__(index=lists.searcher.index, relevance_model="everybody", reward_sha256="")
        self._lists, self._grades, self._settings, self._expansions = lists, grades, settings, expansions
        self._highest = max((grade for row in grades.values() for grade in row.values()), default=1)
        assert isinstance(MODEL, PositionBased)
        self._worth = np.array(MODEL.examination[:SHOWN]) * worth_by_rank(settings, utility)

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return the rewards of groups."""
        made = []
        for each in inputs:
            generation = each[0]
            query, texts = generation.request.query, self._parsed(generation)
            said = [None if isinstance(text, Rejected) else text.expansions for text in texts]
            names = choices_of_group(generation.group_id, said)
            words: dict[str, tuple[str, ...]] = {RAW: ()}
            words |= {name: of for name, of in zip(names, said, strict=True) if name is not None and of is not None}
            found = self._lists.of([ExpandedQuery(query, of) for of in words.values()])
            seen = SeenGroup({name: self.seen(query, ids) for name, ids in zip(words, found, strict=True)}, (), 0)
            made.append(self.reward(each, outcomes_of(texts, names, seen, self._settings)))
        return made

    def readable(self, generation: Generation) -> list[bool]:
        """Return, for each candidate, whether it is in the format."""
        return [isinstance(text, ParsedExpansions) for text in self._parsed(generation)]

    def seen(self, query: str, ids: Sequence[str]) -> SeenChoice:
        """Return what everybody would do with a list."""
        people = self._settings.impressions_min
        drawn = (
            attractions(EYE_TRACKED, self._grades.get(query, {}), ids, highest=self._highest) if ids else np.zeros(0)
        )
        worth = float(drawn @ self._worth[: len(ids)])
        return SeenChoice(impressions=people, clients=people, clicks=0, utility=worth, width=0.0, mass=float(people))

    def _parsed(self, generation: Generation) -> list[ParsedExpansions | Rejected]:
        choices = choices_of(generation.request.context)
        return [parse_expansions(each.text, self._expansions, choices) for each in generation.completions]


def worth_by_rank(
    settings: ClickRewardSettings, utility: UtilitySettings
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return [10] what a click at each rank is worth, by the product's own function."""
    shown = tuple(Shown(document_id=f"d{rank}", rank=rank) for rank in range(1, SHOWN + 1))
    found = []
    for each in shown:
        seen = Impression(
            impression_id="i",
            query_id="q",
            query="q",
            shown=shown,
            at_ms=1,
            action_propensity=1.0,
            offered={RAW: 1.0},
            index=INDEX,
        )
        click = UserAction(action_id="a", impression_id="i", kind="click", document_id=each.document_id, at_ms=1)
        outcome = ImpressionOutcome(impression=seen, actions=(click,), final=True)
        drawn = draw_of(outcome, index=INDEX, settings=settings, utility=utility)
        assert isinstance(drawn, Draw)
        found.append(drawn.utility)
    return np.array(found)
