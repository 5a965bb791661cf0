"""Held-out queries one by one: what the policy's row of each evaluation changed, the largest losses and gains first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
from aiohttp import web

from infra.ui.answers import LEDGERS, json_answer, run_of
from infra.ui.ledgers import Ledgers
from storage.evaluation.tables import Evaluation
from storage.reports.report import read_evaluations
from storage.reports.result import headline_measure, learned_row
from streams.errors import SettingsError

SHOWN = 200


class ChangedQuery(msgspec.Struct, frozen=True, kw_only=True):
    """One query with its value under the baseline and under the policy. text: as far as the index's folder knows it."""

    query_id: str
    text: str
    before: float
    after: float
    change: float


class ChangedQueries(msgspec.Struct, frozen=True, kw_only=True):
    """The queries of one evaluation. in_all: how many there are; better, worse: how many changed that way."""

    name: str
    measure: str
    baseline: str
    row: str
    in_all: int
    better: int
    worse: int
    queries: list[ChangedQuery]


class _Query(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="_id")
    text: str


async def evaluated(request: web.Request) -> web.Response:
    """Answer with the queries of the evaluations in a run's folder that were kept with their values by query."""
    ledgers, run = request.app[LEDGERS], run_of(request)
    ledgers.source(run)
    return json_answer({"evaluated": await asyncio.to_thread(_evaluated, ledgers, run)})


def changed_queries(name: str, evaluation: Evaluation) -> ChangedQueries | None:
    """Return what the policy changed by the headline's measure; None without both rows, or without values by query."""
    measure, row = headline_measure(evaluation), learned_row(evaluation)
    baseline = next((each for each in evaluation.runs if each.name == evaluation.baseline), None)
    if measure is None or row is None or baseline is None:
        return None
    before, after = baseline.per_query.get(measure, {}), row.per_query.get(measure, {})
    found = [
        ChangedQuery(query_id=query, text="", before=old, after=new, change=new - old)
        for query, new in after.items()
        if (old := before.get(query)) is not None
    ]
    if not found:
        return None
    found.sort(key=lambda each: (-abs(each.change), each.query_id))
    return ChangedQueries(
        name=name,
        measure=measure,
        baseline=baseline.name,
        row=row.name,
        in_all=len(found),
        better=sum(each.change > 0 for each in found),
        worse=sum(each.change < 0 for each in found),
        queries=found[:SHOWN],
    )


def _evaluated(ledgers: Ledgers, run: str) -> list[ChangedQueries]:
    evaluations = read_evaluations(ledgers.app.home.run(run))
    found = [each for name, one in evaluations.items() if (each := changed_queries(name, one))]
    texts = _texts(ledgers, run, {query.query_id for each in found for query in each.queries})
    return [
        msgspec.structs.replace(
            each, queries=[msgspec.structs.replace(one, text=texts.get(one.query_id, "")) for one in each.queries]
        )
        for each in found
    ]


def _texts(ledgers: Ledgers, run: str, wanted: set[str]) -> dict[str, str]:
    """Return the texts of queries that the folder of the run's index knows."""
    index = next((line.index for line in ledgers.runs() if line.run == run), "")
    if not index or not wanted:
        return {}
    with contextlib.suppress(SettingsError, OSError):
        return _read_texts(sorted(ledgers.app.home.index(index).intents.glob("queries.*.jsonl")), wanted)
    return {}


def _read_texts(paths: Iterable[Path], wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    decoder = msgspec.json.Decoder(_Query)
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                if len(found) == len(wanted):
                    return found
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                    query = decoder.decode(line)
                    if query.id in wanted:
                        found[query.id] = query.text
    return found
