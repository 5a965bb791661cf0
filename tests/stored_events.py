"""Events for the tests and the benchmark of storage: made from a number, always the same for the same one."""

from __future__ import annotations

import random
from collections.abc import Iterable

from streams.codec import content_sha256, encode_event
from streams.events import (
    Completion,
    Context,
    DevScore,
    DevSet,
    Event,
    Generation,
    Hit,
    Outcome,
    PolicyRef,
    PolicyVersion,
    Position,
    Request,
    Reward,
    Sampling,
    Update,
)
from streams.ids import group_id
from streams.records import Received
from streams.serving_events import Decision
from streams.topics import BY_EVENT, topic_name, version_name
from streams.traffic_events import Action, Feedback, Impression, ImpressionOutcome, Shown, UserAction

RUN = "test"
GROUP = 8
PROMPT_TOKENS = 60
ANSWER_TOKENS = 12
HITS = 10


def policy(step: int, *, lineage: str = "a") -> PolicyRef:
    return PolicyRef(lineage=lineage, step=step, sha256=f"{step:064x}")


def request(number: int) -> Request:
    chance = random.Random(f"request {number}")
    return Request(
        request_id=f"request-{number}",
        run=RUN,
        query_id=f"q{number % 7}",
        query="wireless noise cancelling headphones",
        index="shop-1",
        context=Context(
            terms=tuple(f"term{chance.randrange(999)}" for _ in range(14)),
            attributes=tuple(f"colour {chance.randrange(99)}" for _ in range(5)),
            documents=10,
        ),
        made_at_ms=1_700_000_000_000 + number,
    )


def generation(number: int, *, step: int = 0, retry: int = 0) -> Generation:
    """The group for request `number`; retry: what a generator that was killed writes for it the next time."""
    chance = random.Random(f"generation {number} {retry}")
    source = Position(topic=topic_name(RUN, "requests"), partition=0, offset=number)
    return Generation(
        group_id=group_id(RUN, source),
        request=request(number),
        source=source,
        policy=policy(step),
        tokenizer_sha256="e" * 64,
        prompt_sha256="d" * 64,
        sampling=Sampling(candidates=GROUP, temperature=0.9, tokens_max=32),
        prompt_token_ids=tuple(chance.randrange(3000) for _ in range(PROMPT_TOKENS)),
        completions=tuple(
            Completion(
                text=f'<answer>["over ear {chance.randrange(99)}", "anc headset"]</answer>',
                token_ids=tuple(chance.randrange(3000) for _ in range(ANSWER_TOKENS)),
                logprobs=tuple(-3 * chance.random() for _ in range(ANSWER_TOKENS)),
                finish="stop",
            )
            for _ in range(GROUP)
        ),
        made_at_ms=1_700_000_001_000 + number,
    )


def reward(number: int, *, step: int = 0, retry: int = 0, source_offset: int | None = None) -> Reward:
    chance = random.Random(f"reward {number} {retry}")
    group = generation(number, step=step, retry=retry)
    offset = number if source_offset is None else source_offset
    return Reward(
        group_id=group.group_id,
        generation=group,
        source=Position(topic=topic_name(RUN, "generations"), partition=0, offset=offset),
        content_sha256=content_sha256(encode_event(group)),
        outcomes=tuple(outcome(chance) for _ in range(GROUP)),
        index="shop-1",
        relevance_model="gbdt-1",
        reward_sha256="b" * 64,
        raw_hits=hits(chance),
        search_body='{"query":{"bool":{"should":[{"match":{"contents":{"query":"$query"}}}]}}}',
        made_at_ms=1_700_000_002_000 + number,
    )


def outcome(chance: random.Random) -> Outcome:
    return Outcome(
        status="scored",
        valid=True,
        expansions=("over ear", "anc headset"),
        reward=chance.random(),
        components={"relevance": chance.random(), "size": chance.random()},
        hits=hits(chance),
    )


def hits(chance: random.Random) -> tuple[Hit, ...]:
    return tuple(
        Hit(document_id=str(chance.randrange(10**6)), rank=rank, score=20 * chance.random())
        for rank in range(1, HITS + 1)
    )


def update(step: int, groups: Iterable[int], *, lineage: str = "a", parent: PolicyRef | None = None) -> Update:
    """The update that gave the policy of this step; parent: default is the step before in the same lineage."""
    return Update(
        run=RUN,
        policy=policy(step, lineage=lineage),
        parent=parent or policy(step - 1, lineage=lineage),
        trained=tuple(generation(number).group_id for number in groups),
        positions={0: step * 4},
        requests_consumed={0: step * 4},
        metrics={"loss": 0.1 * step, "entropy": 1.5},
        made_at_ms=1_700_000_003_000 + step,
    )


def version(step: int, *, lineage: str = "a", status: str = "published", of: Update | None = None) -> PolicyVersion:
    """Return an announcement; of: the update that made the version."""
    ref = policy(step, lineage=lineage)
    parent = policy(step - 1, lineage=lineage) if step else None
    return PolicyVersion(
        run=RUN,
        policy=ref,
        parent=of.parent if of else parent,
        path=f"checkpoints/{version_name(ref)}",
        status=status,
        requests_consumed=of.requests_consumed if of else {},
    )


def dev_score(step: int) -> DevScore:
    found = DevSet(name="dev", queries=300, measures={"nDCG@10": 0.25, "R@100": 0.5})
    return DevScore(
        run=RUN, policy=policy(step), index="shop-1", measure="nDCG@10", value=0.25, sets=(found,), made_at_ms=1
    )


def feedback(number: int) -> Feedback:
    return Feedback(
        feedback_id=f"shop:{number}",
        query_id=f"q{number}",
        query="headphones",
        application="shop",
        shown=(Shown(document_id="d1", rank=1), Shown(document_id="d2", rank=2)),
        actions=(Action(kind="click", document_id="d2", rank=2),),
        at_ms=1_700_000_004_000 + number,
    )


def impression(number: int) -> Impression:
    return Impression(
        impression_id=f"i{number}",
        query_id=f"q{number}",
        query="headphones",
        application="shop",
        client="c1",
        shown=(Shown(document_id="d1", rank=1), Shown(document_id="d2", rank=2)),
        at_ms=1_700_000_004_000 + number,
        policy="1-abcdef-000002",
        action_propensity=0.8,
        offered={"": 0.2, "1-abcdef-000002": 0.8},
        index="shop-1",
        made_at_ms=1,
    )


def user_action(number: int) -> UserAction:
    return UserAction(
        action_id=f"a{number}",
        impression_id=f"i{number}",
        kind="click",
        document_id="d2",
        at_ms=1_700_000_005_000 + number,
        made_at_ms=2,
    )


def impression_outcome(number: int, *, final: bool = True) -> ImpressionOutcome:
    return ImpressionOutcome(impression=impression(number), actions=(user_action(number),), final=final, made_at_ms=3)


def decision(number: int) -> Decision:
    return Decision(
        decision_id=f"x{number}",
        version="1-abcdef-000002",
        kind="advance",
        share=0.05,
        reason="no harm was seen",
        evidence={"difference": 0.01, "treated": 900.0},
        at_ms=1_700_000_006_000 + number,
        made_at_ms=4,
    )


def record(event: Event, offset: int, *, partition: int = 0) -> Received:
    """The event as it lies in its topic."""
    topic = BY_EVENT[type(event)]
    return raw_record(topic.kind, offset, encode_event(event), partition=partition, key=topic.key(event).encode())


def raw_record(
    kind: str, offset: int, value: bytes | None, *, partition: int = 0, key: bytes | None = b"key"
) -> Received:
    """Any bytes as a record of a topic of the run."""
    return Received(
        position=Position(topic=topic_name(RUN, kind), partition=partition, offset=offset),
        timestamp_ms=1_700_000_009_000 + offset,
        key=key,
        value=value,
        headers=(("trace", b"\x00\xff"),),
    )


def small_run(groups: int = 12, *, batch: int = 4) -> list[Received]:
    """Every record of a short run: requests, generations and rewards of each group, an update after every batch."""
    records = [record(version(0), 0)]
    for number in range(groups):
        step = number // batch
        records += [
            record(request(number), number),
            record(generation(number, step=step), number),
            record(reward(number, step=step), number),
        ]
        if number % batch == batch - 1:
            made = update(step + 1, range(number - batch + 1, number + 1))
            records += [record(made, step), record(version(step + 1, of=made), step + 1)]
    return records
