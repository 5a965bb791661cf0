"""The loop as a simulation: requests are granted, answered, scored and learned from, by the product's own rules.

The rules are those of the code. `learner.admission.Admission` itself grants. A worker owns partitions, takes what they
hold, up to its limit, and hands all of it on when it is done with all of it. The learner takes a batch in the order of
the grants. What is assumed instead is written in `Plant`.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

import msgspec
import simpy

from learner.admission import Admission

ENDLESS = 1 << 40  # `train` publishes requests faster than they are granted.


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """The time that a stage takes for n groups at once: base + each · n, times a random factor of mean 1.

    spread: coefficient of variation of that factor, which is log-normal.
    """

    base: float
    each: float
    spread: float = 0.0

    def seconds(self, groups: int, chance: random.Random) -> float:
        """Draw the time for so many groups."""
        mean = self.base + self.each * groups
        if not self.spread:
            return mean
        sigma = math.sqrt(math.log1p(self.spread**2))
        return mean * chance.lognormvariate(-(sigma**2) / 2, sigma)


class Plant(msgspec.Struct, frozen=True, kw_only=True):
    """One run on a cluster.

    groups, staleness_max: of `[batch]`. chunk: groups that a generator writes at once, at most; 0: a batch.
    records_max: groups that an environment takes at once, at most (`delivery.records_max`).
    generate, score, learn: times of one worker. engine: Elasticsearch's time of one core for a group, with
    `engine_cores` of them; an environment waits for it. hop: from the end of one stage until the next one sees the
    records. Assumed: brokers and network are never full, no worker dies, and all groups cost the same on average.
    """

    partitions: int
    generators: int
    environments: int
    groups: int
    staleness_max: int
    generate: Service
    score: Service
    learn: Service
    engine: float = 0.0
    engine_cores: int = 1
    hop: float = 0.005
    chunk: int = 0
    records_max: int = 64


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did: groups a second, how busy each stage was (0 to 1, mean over its workers), and versions behind."""

    groups_per_second: float
    updates: int
    busy: dict[str, float]
    staleness_mean: float
    staleness_max: int

    @property
    def bottleneck(self) -> str:
        """Return the busiest stage; "the limit of requests in flight" if none is busy for nine tenths of the time."""
        stage = max(self.busy, key=lambda name: self.busy[name])
        return stage if self.busy[stage] >= 0.9 else "requests in flight"


class Loop:
    """The state of a simulated run."""

    def __init__(self, plant: Plant, seed: int) -> None:
        self.plant, self.chance = plant, random.Random(seed)
        self.env = simpy.Environment()
        self.engine = simpy.Resource(self.env, capacity=plant.engine_cores)
        self.admission = Admission(used=dict.fromkeys(range(plant.partitions), 0))
        self.step = 0
        self.answered = dict.fromkeys(range(plant.partitions), 0)  # By generators.
        self.visible = dict.fromkeys(range(plant.partitions), 0)  # The grants that generators have seen.
        self.version_seen = 0
        self.generations: dict[int, deque[tuple[int, int, int]]] = defaultdict(deque)  # (partition, offset, version).
        self.rewards: list[tuple[int, int, int, int]] = []  # (round, partition, offset, version).
        self.sleepers: dict[tuple[str, int], simpy.Event] = {}
        self.busy: dict[str, float] = defaultdict(float)
        self.staleness: list[int] = []
        self.learned: list[float] = []

    def sleep(self, stage: str, number: int) -> simpy.Event:
        """Return the event for which a worker without work waits."""
        return self.sleepers.setdefault((stage, number), self.env.event())

    def wake(self, stage: str, number: int) -> None:
        """Wake a worker if it sleeps."""
        if sleeper := self.sleepers.pop((stage, number), None):
            sleeper.succeed()

    def grant(self) -> None:
        """Let the learner grant what there is room for; generators see it one hop later."""
        room = (self.plant.staleness_max + 1) * self.plant.groups - len(self.rewards)
        self.admission.grant(dict.fromkeys(range(self.plant.partitions), ENDLESS), groups_max=room)
        granted, step = self.admission.granted, self.step

        def see() -> Iterator[Any]:
            yield self.env.timeout(self.plant.hop)
            self.visible, self.version_seen = granted, step
            for number in range(self.plant.generators):
                self.wake("generator", number)

        self.env.process(see())

    def work(self, stage: str, service: Service, groups: int) -> Iterator[Any]:
        """Be busy for a stage's time for so many groups."""
        began = self.env.now
        yield self.env.timeout(service.seconds(groups, self.chance))
        self.busy[stage] += self.env.now - began

    def generator(self, number: int) -> Iterator[Any]:
        """Answer granted requests of the partitions of one generator."""
        plant = self.plant
        mine = range(number, plant.partitions, plant.generators)
        chunk = plant.chunk or plant.groups
        while True:
            taken: list[tuple[int, int]] = []
            while len(taken) < chunk:
                free = [each for each in mine if self.answered[each] < self.visible.get(each, 0)]
                if not free:
                    break
                for partition in free[: chunk - len(taken)]:
                    taken.append((partition, self.answered[partition]))
                    self.answered[partition] += 1
            if not taken:
                yield self.sleep("generator", number)
                continue
            version = self.version_seen
            yield from self.work("generator", plant.generate, len(taken))
            yield self.env.timeout(plant.hop)
            for partition, offset in taken:
                self.generations[partition].append((partition, offset, version))
            for partition, _ in taken:
                self.wake("environment", partition % plant.environments)

    def environment(self, number: int) -> Iterator[Any]:
        """Score the generations of the partitions of one environment."""
        plant = self.plant
        mine = range(number, plant.partitions, plant.environments)
        while True:
            taken: list[tuple[int, int, int]] = []
            for partition in mine:
                while self.generations[partition] and len(taken) < plant.records_max:
                    taken.append(self.generations[partition].popleft())
            if not taken:
                yield self.sleep("environment", number)
                continue
            began = self.env.now
            for _ in taken if plant.engine else ():
                with self.engine.request() as core:
                    yield core
                    yield self.env.timeout(plant.engine)
                    self.busy["engine"] += plant.engine
            yield self.env.timeout(plant.score.seconds(len(taken), self.chance))
            self.busy["environment"] += self.env.now - began
            yield self.env.timeout(plant.hop)
            for partition, offset, version in taken:
                self.rewards.append((self.admission.round_of(partition, offset), partition, offset, version))
                self.admission.arrive(partition, offset)
            self.wake("learner", 0)

    def learner(self) -> Iterator[Any]:
        """Learn from batches, in the order of the grants, and grant further requests."""
        self.grant()
        while True:
            owed = self.admission.round_owed()
            ready = [each for each in self.rewards if owed is None or each[0] <= owed]
            if len(ready) < self.plant.groups:
                yield self.sleep("learner", 0)
                continue
            batch = sorted(ready)[: self.plant.groups]
            for each in batch:
                self.rewards.remove(each)
            self.staleness += [self.step - version for _, _, _, version in batch]
            yield from self.work("learner", self.plant.learn, len(batch))
            self.step += 1
            self.learned.append(self.env.now)
            self.grant()


def simulate(plant: Plant, *, updates: int = 60, warm_up: int = 10, seed: int = 0) -> Outcome:
    """Run the loop for so many updates, and return what it did between the end of the warm-up and the end."""
    loop = Loop(plant, seed)
    for number in range(min(plant.generators, plant.partitions)):
        loop.env.process(loop.generator(number))
    for number in range(min(plant.environments, plant.partitions)):
        loop.env.process(loop.environment(number))
    loop.env.process(loop.learner())
    before: dict[str, float] = {}
    while len(loop.learned) < warm_up + updates:
        loop.env.step()
        if len(loop.learned) == warm_up and not before:
            before, loop.staleness = {"": 0.0, **loop.busy}, []
    seconds = loop.learned[-1] - loop.learned[warm_up - 1]
    workers = {
        "generator": plant.generators,
        "environment": plant.environments,
        "learner": 1,
        "engine": plant.engine_cores,
    }
    return Outcome(
        groups_per_second=updates * plant.groups / seconds,
        updates=updates,
        busy={
            stage: (loop.busy[stage] - before.get(stage, 0.0)) / seconds / workers[stage]
            for stage in workers
            if stage in loop.busy
        },
        staleness_mean=sum(loop.staleness) / len(loop.staleness),
        staleness_max=max(loop.staleness),
    )
