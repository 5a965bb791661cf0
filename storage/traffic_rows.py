"""Impressions and actions of people as the ledger's rows: see `rows`."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from storage.columns import (
    NUMBERS,
    TEXTS,
    Built,
    Columns,
    booleans,
    floats,
    integers,
    maps,
    places,
    runs_of,
    string_lists,
    strings,
    structs,
)
from streams.records import Received
from streams.serving_events import Decision
from streams.traffic_events import Feedback, Impression, ImpressionOutcome, UserAction


def feedback(records: list[Received], events: list[Feedback]) -> Built:
    return "feedback", places(records) | {
        "run": runs_of(records),
        "feedback_id": strings(e.feedback_id for e in events),
        "query_id": strings(e.query_id for e in events),
        "query": strings(e.query for e in events),
        "application": strings(e.application for e in events),
        "client": strings(e.client for e in events),
        "session": strings(e.session for e in events),
        "shown": structs([e.shown for e in events], {"document_id": pa.string(), "rank": pa.int64()}),
        "actions": structs(
            [e.actions for e in events],
            {"kind": pa.string(), "document_id": pa.string(), "rank": pa.int64(), "at_ms": pa.int64()},
        ),
        "at_ms": integers(e.at_ms for e in events),
        "made_at_ms": integers(e.made_at_ms for e in events),
    }


def impressions(records: list[Received], events: list[Impression]) -> Built:
    return "impressions", places(records) | {
        "run": runs_of(records),
        **_seen(events),
        "session": strings(e.session for e in events),
        "offered": maps([e.offered for e in events], NUMBERS),
        "index": strings(e.index for e in events),
        "made_at_ms": integers(e.made_at_ms for e in events),
        "teams": string_lists([e.teams or () for e in events]),
        "routes": maps([e.routes or {} for e in events], TEXTS),
    }


def user_actions(records: list[Received], events: list[UserAction]) -> Built:
    return "user_actions", places(records) | {
        "run": runs_of(records),
        "action_id": strings(e.action_id for e in events),
        "impression_id": strings(e.impression_id for e in events),
        "kind": strings(e.kind for e in events),
        "document_id": strings(e.document_id for e in events),
        "at_ms": integers(e.at_ms for e in events),
        "made_at_ms": integers(e.made_at_ms for e in events),
    }


def impression_outcomes(records: list[Received], events: list[ImpressionOutcome]) -> Built:
    return "impression_outcomes", places(records) | {
        "run": runs_of(records),
        **_seen([e.impression for e in events]),
        "actions": structs(
            [e.actions for e in events],
            {"action_id": pa.string(), "kind": pa.string(), "document_id": pa.string(), "at_ms": pa.int64()},
        ),
        "final": booleans(e.final for e in events),
        "bot": strings(e.bot or "" for e in events),
        "made_at_ms": integers(e.made_at_ms for e in events),
    }


def decisions(records: list[Received], events: list[Decision]) -> Built:
    return "decisions", places(records) | {
        "run": runs_of(records),
        "decision_id": strings(e.decision_id for e in events),
        "version": strings(e.version for e in events),
        "kind": strings(e.kind for e in events),
        "share": floats(e.share for e in events),
        "reason": strings(e.reason for e in events),
        "evidence": maps([e.evidence for e in events], NUMBERS),
        "by": strings(e.by for e in events),
        "at_ms": integers(e.at_ms for e in events),
        "made_at_ms": integers(e.made_at_ms for e in events),
    }


def _seen(impressions: Sequence[Impression]) -> Columns:
    return {
        "impression_id": strings(e.impression_id for e in impressions),
        "query_id": strings(e.query_id for e in impressions),
        "query": strings(e.query for e in impressions),
        "application": strings(e.application for e in impressions),
        "client": strings(e.client for e in impressions),
        "shown": structs([e.shown for e in impressions], {"document_id": pa.string(), "rank": pa.int64()}),
        "at_ms": integers(e.at_ms for e in impressions),
        "policy": strings(e.policy for e in impressions),
        "action_propensity": floats(e.action_propensity for e in impressions),
    }
