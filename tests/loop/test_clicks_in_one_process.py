"""A policy that knows nothing learns what simulated people want, from their clicks alone; its control does not."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.runs.loop import run_loop
from learner.batches import BatchSettings
from learner.generation import GenerationSettings
from learner.learning import LearnerSettings
from learner.prompts import tokenize_request
from learner.updates import UpdateSettings
from search_env.clicks.published import EYE_TRACKED
from search_env.clicks.users import SimulatedUsers
from search_env.environments import Environment, Inputs, ShuffledWaitingRewards
from search_env.leser.clicked import ClickedEnvironment
from search_env.serving.candidates import Words, read_open_groups, with_candidates
from search_env.serving.choosing import RAW, choose
from storage.evaluation.measures import measure_run
from streams.events import Position, Reward
from streams.requests import RequestSequence
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from tests.services.clicked_world import settings_for, untaught_run

QUERIES = ["mug", "red", "green"]
TITLES = {
    f"p{n}": f"{c} {k}"
    for n, (c, k) in enumerate((c, k) for c in ("red", "blue", "green") for k in ("mug", "cup", "lamp"))
}
WANTED = {"p2": 4, "p5": 4, "p8": 4}  # Lamps, whatever people ask for.
UPDATES, QUARTER = 32, 8


def found_by(query: str, words: Words) -> list[str]:
    """Return the six best documents: those with most of the words, the query's first."""

    def matches(title: str) -> float:
        return sum(word in title.split() for word in words) + 1.5 * (query in title.split())

    return sorted((name for name in TITLES if matches(TITLES[name])), key=lambda name: (-matches(TITLES[name]), name))[
        :6
    ]


def quality(query: str, words: Words) -> float:
    """Return the hidden nDCG@10 of a text's results."""
    run = {"q": {name: float(-rank) for rank, name in enumerate(found_by(query, words))}}
    return measure_run(run, {"q": WANTED}, ("nDCG@10",))["nDCG@10"]["q"] if run["q"] else 0.0


class SimulatedLog:
    """Outcomes of people who come whenever somebody looks; a tenth of them is one client who clicks everything."""

    def __init__(self, folder: Path, index: str, seed: int) -> None:
        self._folder, self._index = folder, index
        self._random = random.Random(seed)
        self._users = SimulatedUsers(EYE_TRACKED, {"q": WANTED}, seed)
        self._at = 0

    def since(self, at_ms: int) -> dict[int, int]:
        return {0: self._at}

    def read_to(self) -> dict[int, int]:
        return {0: self._at}

    def read(self) -> list[tuple[Position, ImpressionOutcome]]:
        found = []
        for group in read_open_groups(self._folder):
            offered = with_candidates({RAW: 1.0}, group.choices, share=1.0)
            for _ in range(40):
                outcome = self._search(group.query, group.choices, offered)
                found.append((Position(topic="o", partition=0, offset=self._at), outcome))
                self._at += 1
        return found

    def _search(self, query: str, choices: dict[str, Words], offered: dict[str, float]) -> ImpressionOutcome:
        name = f"i{self._at}"
        drawn = choose(f"{name} {self._random.random()}", offered)
        shown = found_by(query, choices.get(drawn.policy, ()))
        is_fraud = self._random.random() < 0.1
        clicked = shown if is_fraud else self._users.clicks("q", shown)
        seen = Impression(
            impression_id=name,
            query_id=name,
            query=query,
            client="fraud" if is_fraud else name,
            shown=tuple(Shown(document_id=each, rank=rank) for rank, each in enumerate(shown, start=1)),
            at_ms=1,
            policy=drawn.policy,
            action_propensity=drawn.propensity,
            offered=drawn.offered,
            index=self._index,
        )
        actions = tuple(
            UserAction(action_id=f"{name}-{each}", impression_id=name, kind="click", document_id=each, at_ms=2)
            for each in clicked
        )
        return ImpressionOutcome(impression=seen, actions=actions, final=True)


class Watched:
    """An environment that notes the hidden quality of every text that it scores."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.qualities: list[float] = []

    def score_many(self, inputs: Inputs) -> list[Reward]:
        rewards = self._environment.score_many(inputs)
        self.qualities.append(
            sum(
                quality(reward.generation.request.query, outcome.expansions) / len(reward.outcomes) / len(rewards)
                for reward in rewards
                for outcome in reward.outcomes
            )
        )
        return rewards

    def failed_many(self, inputs: Inputs, *, error: str) -> list[Reward]:
        return self._environment.failed_many(inputs, error=error)


def learned(home: Path, *, seed: int, shuffle: bool, updates: int = UPDATES) -> tuple[float, float]:
    """Return the mean hidden quality of the texts of the first and of the last quarter of a run's updates."""
    settings: Settings = msgspec.structs.replace(
        settings_for("live", impressions_min=8),
        generation=GenerationSettings(candidates=8, tokens_max=4, temperature=1.0),
        batch=BatchSettings(groups=4, staleness_max=0),
        learner=LearnerSettings(update=UpdateSettings(learning_rate=3e-3)),
    )
    app = App(Home(home), settings=settings)
    name = f"run-{seed}-{int(shuffle)}"
    prepared = untaught_run(app, name, index="shop", version="shop-1", queries=QUERIES, updates=updates)
    live = app.home.run("live")
    clicked = ClickedEnvironment(
        SimulatedLog(live, "shop-1", seed),
        live,
        run=name,
        index="shop-1",
        settings=settings.leser.clicks,
        utility=settings.utility,
        expansions=settings.leser.expansions,
    )
    watched = Watched(ShuffledWaitingRewards(clicked) if shuffle else clicked)
    sequence = RequestSequence(prepared.asked, run=name, seed=seed)
    for _ in run_loop(
        [sequence[number] for number in range(updates * settings.batch.groups)],
        run=name,
        run_dir=app.home.run(name),
        environment=watched,
        generation=settings.generation,
        encode_prompt=partial(tokenize_request, settings=settings.prompts),
        batch=settings.batch,
        learner=settings.learner,
        seed=seed,
    ):
        pass
    quarter = updates // 4
    return sum(watched.qualities[:quarter]) / quarter, sum(watched.qualities[-quarter:]) / quarter


@pytest.mark.parametrize("seed", [0])
def test_texts_get_better_by_clicks_alone_and_not_by_shuffled_ones(seed: int, tmp_path: Path) -> None:
    first, last = learned(tmp_path, seed=seed, shuffle=False)
    _, control = learned(tmp_path, seed=seed, shuffle=True)
    assert last > first + 0.1
    assert last > control + 0.1


if __name__ == "__main__":
    import sys
    import tempfile

    for number in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            for shuffled in (False, True):
                print(
                    number, "shuffled" if shuffled else "clicks", *learned(Path(folder), seed=number, shuffle=shuffled)
                )
