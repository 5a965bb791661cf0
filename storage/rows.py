"""Events as the ledger's rows, in Arrow columns: pure functions, and the sink's hot path.

A group of eight candidates is one row in `rewards` and eight rows in `outcomes`. Every column is one comprehension over
all events of a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import fsum
from typing import Any, TypeVar, get_args

import msgspec
import pyarrow as pa

from storage.columns import (
    NUMBERS,
    POSITIONS,
    Built,
    Columns,
    booleans,
    floats,
    headers,
    hits,
    integers,
    maps,
    places,
    repeat,
    run_of,
    runs_of,
    string_lists,
    strings,
    structs,
)
from storage.entries import Entry, dead_letter
from storage.traffic_rows import decisions, feedback, impression_outcomes, impressions, user_actions
from streams.codec import content_sha256
from streams.events import DeadLetter, DevScore, Event, Generation, PolicyVersion, Request, Reward, Update, fates_of
from streams.records import Received
from streams.serving_events import Decision
from streams.traffic_events import Feedback, Impression, ImpressionOutcome, UserAction

Tables = dict[str, pa.Table]  # table name → rows
T = TypeVar("T")

UNDECODABLE = "undecodable"


def build_tables(entries: Sequence[Entry], *, raw: bool = True) -> Tables:
    """Return the rows of these records, by table; a table without rows is left out.

    raw: False leaves out the records as they came.
    A record without an event gives a row in `records` and one in `dead_letters`, stage "sink".
    Raises pa.ArrowException, OverflowError or UnicodeError if a value fits into no column (`sound` finds the entry).
    """
    built = [("records", _records(entries))] if raw else []
    kinds: dict[type[Event], list[Entry]] = {}
    for entry in entries:
        if entry.event is not None:
            kinds.setdefault(type(entry.event), []).append(entry)
    for kind, members in kinds.items():
        records, events = [entry.record for entry in members], [entry.event for entry in members]
        built += [build(records, events) for build in _BUILDERS[kind]]
    if undecodable := [entry for entry in entries if entry.event is None]:
        built.append(
            _dead_letters([entry.record for entry in undecodable], [dead_letter(entry) for entry in undecodable])
        )
    tables: Tables = {}
    for name, columns in built:
        rows = pa.table(columns)
        if rows.num_rows:
            tables[name] = pa.concat_tables([tables[name], rows]) if name in tables else rows
    return tables


def sound(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries, and mark those whose values fit into no column as undecodable (a number beyond 64 bits …)."""
    checked = []
    for entry in entries:
        try:
            build_tables([entry])
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            entry = Entry(entry.record, None, f"a value fits into no column: {error}")
        checked.append(entry)
    return checked


def _records(entries: Sequence[Entry]) -> Columns:
    records = [entry.record for entry in entries]
    return places(records) | {
        "kind": strings(_kind(entry.event) for entry in entries),
        "key": pa.array([record.key for record in records], pa.binary()),
        "value": pa.array([record.value for record in records], pa.binary()),
        "headers": headers([record.headers for record in records]),
    }


def _kind(event: Event | None) -> str:
    return UNDECODABLE if event is None else _KINDS[type(event)]


_KINDS: dict[type[Event], str] = {kind: str(kind.__struct_config__.tag) for kind in get_args(Event)}


def _requests(records: list[Received], events: list[Request]) -> Built:
    return "requests", places(records) | {
        "run": runs_of(records),
        "request_id": strings(e.request_id for e in events),
        "query_id": strings(e.query_id for e in events),
        "query": strings(e.query for e in events),
        "index": strings(e.index for e in events),
        "split": strings(e.split for e in events),
        "context_terms": string_lists([e.context.terms for e in events]),
        "context_attributes": string_lists([e.context.attributes for e in events]),
        "context_neighbours": string_lists([e.context.neighbours for e in events]),
        "context_documents": integers(e.context.documents for e in events),
        "product_id": strings([None if e.product is msgspec.UNSET else e.product.document_id for e in events]),
        "made_at_ms": integers(e.made_at_ms for e in events),
    }


def _generations(records: list[Received], events: list[Generation]) -> Built:
    requests = [e.request for e in events]
    return "generations", places(records) | {
        "run": runs_of(records),
        "group_id": strings(e.group_id for e in events),
        "request_id": strings(r.request_id for r in requests),
        "query_id": strings(r.query_id for r in requests),
        "query": strings(r.query for r in requests),
        "index": strings(r.index for r in requests),
        "split": strings(r.split for r in requests),
        **_source(events),
        **_policy([e.policy for e in events]),
        "tokenizer_sha256": strings(e.tokenizer_sha256 for e in events),
        "prompt_sha256": strings(e.prompt_sha256 for e in events),
        "candidates": integers(len(e.completions) for e in events),
        "temperature": floats(e.sampling.temperature for e in events),
        "tokens_max": integers(e.sampling.tokens_max for e in events),
        "no_repeat": booleans(e.sampling.no_repeat for e in events),
        "prompt_tokens": integers(len(e.prompt_token_ids) for e in events),
        "made_at_ms": integers(e.made_at_ms for e in events),
    }


def _candidates(records: list[Received], events: list[Generation]) -> Built:
    counts = [len(e.completions) for e in events]
    completions = [c for e in events for c in e.completions]
    groups = {
        "run": runs_of(records),
        "group_id": strings(e.group_id for e in events),
    }
    return "candidates", repeat(places(records) | groups, counts) | {
        "candidate": integers(chain.from_iterable(map(range, counts))),
        "text": strings(c.text for c in completions),
        "finish": strings(c.finish for c in completions),
        "tokens": integers(len(c.token_ids) for c in completions),
        "logprob_sum": floats(fsum(c.logprobs) for c in completions),
    }


def _rewards(records: list[Received], events: list[Reward]) -> Built:
    requests = [e.generation.request for e in events]
    return "rewards", places(records) | {
        "run": runs_of(records),
        "group_id": strings(e.group_id for e in events),
        "request_id": strings(r.request_id for r in requests),
        "query_id": strings(r.query_id for r in requests),
        "query": strings(r.query for r in requests),
        "split": strings(r.split for r in requests),
        **_source(events),
        "content_sha256": strings(e.content_sha256 for e in events),
        **_policy([e.generation.policy for e in events]),
        "index": strings(e.index for e in events),
        "relevance_model": strings(e.relevance_model for e in events),
        "reward_sha256": strings(e.reward_sha256 for e in events),
        "search_body": strings(e.search_body for e in events),
        "raw_hits": hits([e.raw_hits for e in events]),
        "made_at_ms": integers(e.made_at_ms for e in events),
    }


def _outcomes(records: list[Received], events: list[Reward]) -> Built:
    counts = [len(e.outcomes) for e in events]
    outcomes = [o for e in events for o in e.outcomes]
    texts = [
        e.generation.completions[index].text if index < len(e.generation.completions) else None
        for e in events
        for index in range(len(e.outcomes))
    ]
    groups = {
        "run": runs_of(records),
        "group_id": strings(e.group_id for e in events),
    }
    return "outcomes", repeat(places(records) | groups, counts) | {
        "candidate": integers(chain.from_iterable(map(range, counts))),
        "status": strings([o.status for o in outcomes]),
        "valid": booleans([o.valid for o in outcomes]),
        "expansions": string_lists([o.expansions for o in outcomes]),
        "reward": floats([o.reward for o in outcomes]),
        "components": maps([o.components for o in outcomes], NUMBERS),
        "hits": hits([o.hits for o in outcomes]),
        "error": strings([o.error for o in outcomes]),
        "text": strings(texts),
        "summary": strings([None if o.summary is msgspec.UNSET else o.summary for o in outcomes]),
    }


def _updates(records: list[Received], events: list[Update]) -> Built:
    return "updates", places(records) | {
        "run": runs_of(records),
        **_policy([e.policy for e in events]),
        **_policy([e.parent for e in events], parent=True),
        "positions": maps([e.positions for e in events], POSITIONS),
        "requests_consumed": maps([e.requests_consumed for e in events], POSITIONS),
        "metrics": maps([e.metrics for e in events], NUMBERS),
        "made_at_ms": integers(e.made_at_ms for e in events),
        "record_sha256": strings(content_sha256(record.value or b"") for record in records),
        "parent_update_sha256": strings(_said(e.parent_update_sha256) for e in events),
        "parent_manifest_sha256": strings(_said(e.parent_manifest_sha256) for e in events),
    }


def _update_groups(records: list[Received], events: list[Update]) -> Built:
    fates = [[(g, fate, why) for fate, of in fates_of(e).items() for g, why in of.items()] for e in events]
    counts = [len(taken) for taken in fates]
    steps = {
        "run": runs_of(records),
        "lineage": strings(e.policy.lineage for e in events),
        "step": integers(e.policy.step for e in events),
        "parent_lineage": strings(e.parent.lineage for e in events),
        "parent_step": integers(e.parent.step for e in events),
    }
    return "update_groups", repeat(places(records) | steps, counts) | {
        "group_id": strings(group for taken in fates for group, _, _ in taken),
        "fate": strings(fate for taken in fates for _, fate, _ in taken),
        "reason": strings(why or None for taken in fates for _, _, why in taken),
    }


def _policy_versions(records: list[Received], events: list[PolicyVersion]) -> Built:
    epochs = [epoch_of(e, record) for record, e in zip(records, events, strict=True)]
    return "policy_versions", places(records) | {
        "run": runs_of(records),
        **_policy([e.policy for e in events]),
        **_policy([e.parent for e in events], parent=True),
        "path": strings(e.path for e in events),
        "status": strings(e.status for e in events),
        "requests_consumed": maps([e.requests_consumed for e in events], POSITIONS),
        "made_at_ms": integers(e.made_at_ms for e in events),
        "manifest_sha256": strings(_said(e.manifest_sha256) for e in events),
        "requests_admitted": maps([_said(e.requests_admitted) for e in events], POSITIONS),
        "epoch": integers(epoch for epoch, _ in epochs),
        "holder": strings(holder for _, holder in epochs),
    }


def epoch_of(event: PolicyVersion, record: Received) -> tuple[int | None, str | None]:
    """Return an announcement's epoch and holder; none for one of another run, which begins no epoch in this one."""
    own = event.run == run_of(record.position.topic)
    return (_said(event.epoch), _said(event.holder)) if own else (None, None)


def _dev_scores(records: list[Received], events: list[DevScore]) -> Built:
    return "dev_scores", places(records) | {
        "run": runs_of(records),
        **_policy([e.policy for e in events]),
        "index": strings(e.index for e in events),
        "measure": strings(e.measure for e in events),
        "value": floats(e.value for e in events),
        "sets": structs([e.sets for e in events], {"name": pa.string(), "queries": pa.int64(), "measures": NUMBERS}),
        "made_at_ms": integers(e.made_at_ms for e in events),
    }


def _dead_letters(records: list[Received], events: list[DeadLetter]) -> Built:
    return "dead_letters", places(records) | {
        "run": runs_of(records),
        **_source(events),
        "stage": strings(e.stage for e in events),
        "error": strings(e.error for e in events),
        "attempts": integers(e.attempts for e in events),
        "key": pa.array([e.key for e in events], pa.binary()),
        "value": pa.array([e.value for e in events], pa.binary()),
        "headers": headers([e.headers for e in events]),
        "made_at_ms": integers(e.made_at_ms for e in events),
    }


def _said(value: T | msgspec.UnsetType) -> T | None:
    return None if isinstance(value, msgspec.UnsetType) else value


def _source(events: Sequence[Generation | Reward | DeadLetter]) -> Columns:
    return {
        "source_topic": strings(e.source.topic for e in events),
        "source_partition": integers(e.source.partition for e in events),
        "source_offset": integers(e.source.offset for e in events),
    }


def _policy(policies: Sequence[Any], *, parent: bool = False) -> Columns:
    names = ("parent_lineage", "parent_step", "parent_sha256") if parent else ("lineage", "step", "weights_sha256")
    return {
        names[0]: strings(p.lineage if p else None for p in policies),
        names[1]: integers(p.step if p else None for p in policies),
        names[2]: strings(p.sha256 if p else None for p in policies),
    }


_BUILDERS: dict[type[Event], tuple[Callable[[list[Received], Any], Built], ...]] = {
    Request: (_requests,),
    Generation: (_generations, _candidates),
    Reward: (_rewards, _outcomes),
    Update: (_updates, _update_groups),
    PolicyVersion: (_policy_versions,),
    DevScore: (_dev_scores,),
    Feedback: (feedback,),
    Impression: (impressions,),
    UserAction: (user_actions,),
    Decision: (decisions,),
    ImpressionOutcome: (impression_outcomes,),
    DeadLetter: (_dead_letters,),
}
