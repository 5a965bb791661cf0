"""A stream in simulated time: real admission and real batches, between generators and environments of any speed.

One number draws everything: how many partitions and generators, how long each answer takes, which requests are given
up. So a test can look at thousands of streams a minute.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count

import msgspec

from learner.admission import Admission
from learner.batches import BatchAssembler, BatchSettings
from streams.events import Completion, Generation, Outcome, PolicyRef, Position, Request, Reward, Sampling

COMPLETION = Completion(text="", token_ids=(1,), logprobs=(-0.1,), finish="stop")
SCORED = (Outcome(status="scored", valid=True, reward=0.0), Outcome(status="scored", valid=True, reward=1.0))
FAILED = (Outcome(status="failed", valid=False, error="down"),) * 2
LOOK_SECONDS = 0.1  # How often who has nothing to do looks again.
UPDATES = 40


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream is like.

    generators: each owns the partitions of its number modulo theirs. generate_seconds: of one chunk, by generator.
    score_seconds: of one group, by partition. publish_seconds: between two requests of a partition, 0: all at once.
    shares: of the partitions in the traffic. buried, failed, other: shares of requests that are dead-lettered, of
    groups that fail, and of requests of another split. crashes: updates after which the learner dies unannounced.
    """

    batch: BatchSettings
    chunk: int
    generators: int
    generate_seconds: tuple[float, ...]
    score_seconds: tuple[float, ...]
    publish_seconds: float
    shares: tuple[float, ...]
    update_seconds: float
    buried: float = 0.0
    failed: float = 0.0
    other: float = 0.0
    crashes: tuple[int, ...] = ()


class Outcomes(msgspec.Struct, kw_only=True):
    """What became of the groups; staleness: of each that was trained, in steps."""

    updates: int = 0
    trained: list[str] = []
    expired: list[str] = []
    failed: list[str] = []
    staleness: list[int] = []
    short: int = 0
    unanswered: int = 0


def draw(chance: random.Random) -> Stream:
    """Return some stream."""
    partitions = chance.choice([1, 1, 2, 3, 4, 8])
    generators = chance.randint(1, partitions)
    groups = chance.choice([1, 2, 4, 8, 16])
    slowest = chance.choice([0.05, 0.5, 5.0])
    shares = [1.0] * partitions if chance.random() < 0.6 else [chance.random() ** 3 + 0.01 for _ in range(partitions)]
    return Stream(
        batch=BatchSettings(groups=groups, staleness_max=chance.choice([0, 0, 1, 1, 2, 4]), wait_seconds=5.0),
        chunk=chance.choice([1, groups, 2 * groups]),
        generators=generators,
        generate_seconds=tuple(chance.uniform(0.01, slowest) for _ in range(generators)),
        score_seconds=tuple(chance.uniform(0.001, slowest) for _ in range(partitions)),
        publish_seconds=chance.choice([0.0, 0.0, 0.2, 3.0]),
        shares=tuple(shares),
        update_seconds=chance.choice([0.01, 0.5, 3.0]),
        buried=chance.choice([0.0, 0.0, 0.02, 0.3]),
        failed=chance.choice([0.0, 0.1]),
        other=chance.choice([0.0, 0.0, 0.3]),
        crashes=tuple(chance.sample(range(1, UPDATES), chance.choice([0, 0, 0, 3]))),
    )


def simulate(stream: Stream, chance: random.Random) -> Outcomes:
    """Let the stream run until `UPDATES` updates or the end of its traffic, and return what became of its groups.

    Raises AssertionError if it stands still before that.
    """
    return _Simulation(stream, chance).run()


class _Simulation:
    def __init__(self, stream: Stream, chance: random.Random) -> None:
        self.stream = stream
        self.chance = chance
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        partitions = range(len(stream.shares))
        total = (UPDATES + 4) * stream.batch.groups
        self.requests = {p: max(1, round(total * stream.shares[p] / sum(stream.shares))) for p in partitions}
        self.committed = dict.fromkeys(partitions, 0)  # What the generators have answered or buried.
        self.generated = {p: list[tuple[int, int]]() for p in partitions}  # (offset, step) in the log's order.
        self.rewards = {p: list[Reward]() for p in partitions}
        self.scoring = dict.fromkeys(partitions, False)
        self.scored = dict.fromkeys(partitions, 0)
        self.step = 0
        self.announced = 0, {}  # type: tuple[int, dict[int, int]]
        self.grants: list[dict[int, int]] = []
        self.seen: dict[int, dict[int, int]] = {}
        self.memory = BatchAssembler(stream.batch, positions={}, requests_consumed={}, recent_groups=()).take(step=0)
        self.outcomes = Outcomes()
        self.crashes = set(stream.crashes)
        self.resume()

    def published(self) -> dict[int, int]:
        every = self.stream.publish_seconds
        return {p: n if every == 0 else min(n, int(self.now / every) + 1) for p, n in self.requests.items()}

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), what))

    def run(self) -> Outcomes:
        for number in range(self.stream.generators):
            self.at(0.0, lambda number=number: self.generate(number))  # type: ignore[misc]
        self.at(0.0, self.learn)
        silent_since, before = 0.0, None
        while self.events and self.outcomes.updates < UPDATES:
            self.now, _, what = heapq.heappop(self.events)
            what()
            state = (self.outcomes.updates, sum(self.committed.values()), sum(map(len, self.rewards.values())))
            silent_since = self.now if state != before else silent_since
            before = state
            if self.committed == self.requests and not self.assembler.waiting and not self.admission.owed:
                break
            assert self.now - silent_since < 200, f"the stream stands still at {self.now:.0f} s: {state}"
        self.outcomes.unanswered = sum(self.requests.values()) - sum(self.committed.values())
        return self.outcomes

    # --- generators ---

    def generate(self, number: int) -> None:
        step, grants = self.announced
        mine = [p for p in self.requests if p % self.stream.generators == number]
        taken = []
        for p in mine:
            for offset in range(self.committed[p], grants.get(p, 0)):
                if len(taken) < self.stream.chunk:
                    taken.append((p, offset))
        if not taken:
            self.at(LOOK_SECONDS, lambda: self.generate(number))
            return
        self.at(self.stream.generate_seconds[number], lambda: self.write(number, taken, step))

    def write(self, number: int, taken: list[tuple[int, int]], step: int) -> None:
        for p, offset in taken:
            if random.Random(f"{p}/{offset}/buried").random() >= self.stream.buried:
                self.generated[p].append((offset, step))
                self.score(p)
            self.committed[p] = offset + 1
        self.generate(number)

    # --- environments, one group after the other in each partition ---

    def score(self, p: int) -> None:
        if self.scoring[p] or self.scored[p] == len(self.generated[p]):
            return
        self.scoring[p] = True
        self.at(self.stream.score_seconds[p] * self.chance.uniform(0.5, 2), lambda: self.answer(p))

    def answer(self, p: int) -> None:
        offset, step = self.generated[p][self.scored[p]]
        self.rewards[p].append(self.reward(p, offset, step))
        self.scored[p] += 1
        self.scoring[p] = False
        self.score(p)

    def reward(self, p: int, offset: int, step: int) -> Reward:
        drawn = random.Random(f"{p}/{offset}/drawn").random()
        group = f"{p}/{offset}"
        split = "live" if random.Random(f"{group}/split").random() < self.stream.other else "train"
        return Reward(
            group_id=group,
            generation=Generation(
                group_id=group,
                request=Request(request_id=group, run="r", query_id="q", query="x", index="i-1", split=split),
                source=Position(topic="r.requests", partition=p, offset=offset),
                policy=PolicyRef(lineage="1-a", step=step, sha256=""),
                tokenizer_sha256="",
                prompt_sha256="",
                sampling=Sampling(candidates=2, temperature=0.9, tokens_max=4),
                prompt_token_ids=(1,),
                completions=(COMPLETION, COMPLETION),
            ),
            source=Position(topic="r.generations", partition=p, offset=self.scored[p]),
            content_sha256="",
            outcomes=FAILED if drawn < self.stream.failed else SCORED,
            index="i-1",
            relevance_model="m",
            reward_sha256="",
        )

    # --- the learner, as `run_learner` has it ---

    def resume(self) -> None:
        """Begin a life: from the last checkpoint, and from what was announced."""
        memory = self.memory
        self.admission = Admission(used=memory.requests_consumed, announced=self.grants)
        self.assembler = BatchAssembler(
            self.stream.batch,
            positions=memory.positions,
            requests_consumed=memory.requests_consumed,
            recent_groups=memory.recent_groups,
            low_water=memory.low_water,
            admission=self.admission,
        )
        self.read_to = {p: memory.positions.get(p, 0) for p in self.requests}
        self.last_reward = self.now
        self.announce()

    def announce(self) -> None:
        ahead = min(self.stream.batch.groups_ahead_max, (UPDATES - self.step) * self.stream.batch.groups)
        self.admission.grant(self.published(), groups_max=ahead - self.assembler.waiting)
        self.grants.append(self.admission.granted)
        self.announced = self.step, self.admission.granted

    def learn(self) -> None:
        if not self.assembler.full and not self.read():
            if self.now - self.last_reward > 2.0:
                self.settle()
            self.announce()
        overdue = self.assembler.dry and self.now - self.last_reward > self.stream.batch.wait_seconds
        if not (self.assembler.full or overdue):
            self.at(LOOK_SECONDS, self.learn)
            return
        batch = self.assembler.take(step=self.step)
        self.at(self.stream.update_seconds, lambda: self.learned(batch))

    def learned(self, batch: object) -> None:
        self.memory = batch  # type: ignore[assignment]
        made = self.memory
        self.outcomes.trained += [each.group_id for each in made.fresh]
        self.outcomes.staleness += [self.step - each.generation.policy.step for each in made.fresh]
        self.outcomes.expired += made.expired
        self.outcomes.failed += made.failed
        taken = len(made.fresh) + len(made.expired) + len(made.failed)
        self.outcomes.short += taken < self.stream.batch.groups
        self.outcomes.updates += 1
        self.step += 1
        if self.outcomes.updates in self.crashes:
            self.resume()  # It dies between the checkpoint and the announcement.
        else:
            self.announce()
        self.at(0.0, self.learn)

    def read(self) -> bool:
        any_read = False
        for p in self.chance.sample(sorted(self.rewards), len(self.rewards)):
            # A poll brings what one partition holds, before it looks at the next.
            for reward in self.rewards[p][self.read_to[p] :]:
                self.assembler.add(Position(topic="r.rewards", partition=p, offset=self.read_to[p]), reward)
                self.read_to[p] += 1
                any_read = True
            if any_read:
                self.last_reward = self.now
                break
        return any_read

    def settle(self) -> None:
        """As `streams.flow.RunFlow.over` finds it out."""
        for p in self.requests:
            if self.scored[p] == len(self.generated[p]) and self.read_to[p] == len(self.rewards[p]):
                self.admission.end(p, self.committed[p])
