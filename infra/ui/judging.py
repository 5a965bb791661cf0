"""Judging in random order: two unnamed lists of one query, and the choice of a person as events of the server's log.

The page keeps a choice until the server has it, and may send it again: a judgment's id is made with its pair, so the
log counts it once. The id also tosses the sides (`storage.online.judgments`), so nothing here has to be remembered.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import msgspec
from aiohttp import web

from infra.ui.answers import LEDGERS, TEXT_MAX, WrongAsked, json_answer, read_body, run_of
from infra.ui.catalogue import titles
from infra.ui.ledgers import Ledgers, UnknownRun
from infra.ui.resting import Rested
from infra.ui.searching import JUDGED_SIZE, NO_SERVER, SERVER
from storage.errors import StorageError
from storage.online.judgments import Judged, Side, read_judgments, verdict_of, version_is_left
from storage.questions.asking import ask
from streams.traffic_events import JUDGING

QUERIES_AT_ONCE = 200
VERSION_MAX = 200
# Queries of people, and of training where nobody has searched yet. A seed gives each visit an order of its own.
QUERIES = f"""SELECT query FROM (
    SELECT DISTINCT query FROM (
        SELECT query FROM impressions WHERE coalesce(application, '') <> '{JUDGING}' UNION ALL SELECT query FROM rewards
    ) WHERE coalesce(query, '') <> ''
) ORDER BY hash(query, $seed) LIMIT $most"""


DECIDED = "SELECT version FROM first_decisions WHERE run = $run ORDER BY at_ms DESC, record_offset DESC LIMIT 1"


class GivenJudgment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A judgment as the page sends it. left, right: document ids of the two lists, as they were shown."""

    judgment: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    query: Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_MAX)]
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=VERSION_MAX)]
    side: Side
    left: Annotated[list[str], msgspec.Meta(max_length=JUDGED_SIZE)]
    right: Annotated[list[str], msgspec.Meta(max_length=JUDGED_SIZE)]


async def judging(request: web.Request) -> web.Response:
    """Answer with queries to judge, in random order, and with the judgments so far.

    run: the server's, whose log gets the judgments. Queries that are judged for this version do not come again.
    Without a server there is no version, and `why` says what to set.
    """
    ledgers, run = request.app[LEDGERS], run_of(request)
    ledgers.source(run)
    if not request.app[SERVER].named:
        return json_answer({"run": "", "version": "", "why": NO_SERVER, "queries": [], "judged": [], "rest": 0})
    ready = await request.app[SERVER].ready()
    live = str(ready.get("run") or "")
    version = ready.get("policy") or await _decided(ledgers, live)
    judged = await _judgments(ledgers, live)
    done = {query for each in judged.answer if each.version == version for query in each.queries}
    found = [query for query in await _queries(ledgers, dict.fromkeys((live, run))) if query not in done]
    tallies = [msgspec.structs.replace(each, queries=[]) for each in judged.answer]
    return json_answer({"run": live, "version": version, "queries": found, "judged": tallies, "rest": judged.rest})


async def pair(request: web.Request) -> web.Response:
    """Answer with the two lists of a query, unnamed, and the id of their judgment."""
    query, version = request.query.get("query", ""), request.query.get("version", "")
    if not query.strip() or len(query) > TEXT_MAX or not version:
        raise WrongAsked(f"expected a query of 1 to {TEXT_MAX:,} characters and a version, got {query[:60]!r}")
    ledgers, server = request.app[LEDGERS], request.app[SERVER]
    raw, helped = await server.both_unlogged(query, version)
    index = str((await server.ready()).get("index") or "")
    known = await titles(ledgers.app, index, {*raw, *helped})
    judgment = secrets.token_hex(16)
    left, right = (helped, raw) if version_is_left(judgment) else (raw, helped)
    return json_answer(
        {
            "judgment": judgment,
            "query": query,
            "version": version,
            "same": raw == helped or not raw or not helped,
            "left": [{"document_id": name, "title": known.get(name, "")} for name in left],
            "right": [{"document_id": name, "title": known.get(name, "")} for name in right],
        }
    )


async def judge(request: web.Request) -> web.Response:
    """Send a judgment to the server's log. It may be sent again: the first one counts."""
    try:
        given = msgspec.convert(await read_body(request), GivenJudgment)
    except msgspec.ValidationError as error:
        raise WrongAsked(f"expected a judgment with judgment, query, version, side, left and right: {error}") from None
    if not given.left or not given.right or given.left == given.right:
        raise WrongAsked("expected two lists with results that differ, got an empty one, or one list twice")
    await request.app[SERVER].send(events_of(given))
    return json_answer({"sent": given.judgment})


def events_of(given: GivenJudgment) -> list[dict[str, Any]]:
    """Return a judgment as UBI: a query for each list, and the verdict as an action on the version's list."""
    left = version_is_left(given.judgment)
    helped, raw = (given.left, given.right) if left else (given.right, given.left)
    common = {"application": JUDGING}
    queries = [
        {
            "user_query": given.query,
            "query_id": f"{given.judgment}.{name}",
            "query_attributes": {"policy": policy},
            "query_response_hit_ids": hits,
            **common,
        }
        for name, policy, hits in (("version", given.version, helped), ("raw", "", raw))
    ]
    verdict = {
        "action_name": verdict_of(given.judgment, given.side),
        "query_id": f"{given.judgment}.version",
        "event_attributes": {"event_id": given.judgment, "object": {"object_id": helped[0]}},
        **common,
    }
    return [*queries, verdict]


async def _judgments(ledgers: Ledgers, run: str) -> Rested:
    def found() -> list[Judged]:
        with ledgers.log(ledgers.app.home.run(run)) as log:
            return read_judgments(log, run)

    try:
        return await ledgers.rested(run, "judgments", lambda: ledgers.apart(found))
    except (UnknownRun, StorageError):
        return Rested([], 0.0)


async def _decided(ledgers: Ledgers, run: str) -> str:
    """Return the version that was decided on last in a run, whose answers may be ready; "" without a decision."""
    try:
        ledgers.source(run)
        rows = (await ledgers.work(run, lambda cursor: ask(cursor, DECIDED, {"run": run}))).rows
    except (UnknownRun, StorageError):
        return ""
    return str(rows[0][0]) if rows else ""


async def _queries(ledgers: Ledgers, runs: dict[str, None]) -> list[str]:
    found: dict[str, None] = {}
    given = {"seed": secrets.randbelow(2**31), "most": QUERIES_AT_ONCE}
    for run in runs:
        try:
            ledgers.source(run)
            rows = (await ledgers.work(run, lambda cursor: ask(cursor, QUERIES, given))).rows
        except (UnknownRun, StorageError):  # The server's log may lie in another home, or hold nothing yet.
            continue
        found |= dict.fromkeys(row[0] for row in rows)
    return list(found)
