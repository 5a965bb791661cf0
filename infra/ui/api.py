"""The requests of the pages: each handler reads one request, asks a ledger, and answers in JSON, CSV or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import re
import time
from collections.abc import Hashable
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from infra.monitoring.exposition import CONTENT_TYPE
from infra.monitoring.scraping import LoopMetrics
from infra.ui.answers import LEDGERS, TEXT_MAX, WrongAsked, json_answer, read_body, run_of
from infra.ui.catalogue import grades, titles
from infra.ui.guarding import HEADERS
from infra.ui.ledgers import Ledgers, UnknownRun
from infra.ui.searching import SERVER
from infra.ui.telling import LOOK_AGAIN_SECONDS, LOOK_SECONDS, Telling
from storage.errors import StorageError
from storage.questions.asking import LedgerAnswer
from storage.questions.examples import read_group, with_catalogue
from storage.questions.overview import BESIDE, HeldOut, measure_health
from storage.questions.question import Question, saved_questions
from storage.questions.stream import Cursor, ends, read_cursor, show_cursor, within
from storage.questions.words import WORDS
from storage.reports.report import read_evaluations
from storage.reports.result import held_out_result
from streams.errors import SettingsError

ENDING: web.AppKey[asyncio.Event] = web.AppKey("ending", asyncio.Event)
TELLING: web.AppKey[Telling] = web.AppKey("telling", Telling)
METRICS: web.AppKey[LoopMetrics] = web.AppKey("metrics", LoopMetrics)

DEFAULTS: dict[str, object] = {
    "step": -1,
    "query": "",
    "sort": "",
    "client": "",
    "from_low": 0,
    "from_high": 0,
    "to_low": 0,
    "to_high": 0,
}
TOTAL = "in_all"
WHOLE = re.compile(r"-?[0-9]{1,11}")
BEAT_SECONDS = 10.0
SORTS = ("", "best", "worst", "spread", "flat")


async def runs(request: web.Request) -> web.Response:
    """Answer with the runs of the home."""
    return json_answer({"runs": request.app[LEDGERS].runs()})


async def page(request: web.Request) -> web.Response:
    """Answer with the saved questions of a page."""
    name = request.match_info["page"]
    found = [each for each in saved_questions().values() if name in ("all", each.page)]
    return json_answer({"questions": [_described(each) for each in found], "words": WORDS})


async def answer(request: web.Request) -> web.Response:
    """Answer a saved question for a run, as JSON, or as CSV under `.csv`."""
    name = request.match_info["name"]
    question = saved_questions().get(name.removesuffix(".csv"))
    if question is None:
        raise web.HTTPNotFound(text=f"expected a saved question, got {name[:100]!r}: see /api/page/all")
    began = time.perf_counter()
    run, given = run_of(request), _parameters(request, question)
    ledgers = request.app[LEDGERS]
    if name.endswith(".csv"):
        found, _ = without_total(await ledgers.ask(run, question.sql, given))
        return web.Response(
            text=_csv(found),
            content_type="text/csv",
            headers={"content-disposition": f'attachment; filename="{run}-{question.name}.csv"'},
        )
    rested = await ledgers.rested(
        run, (question.name, *sorted(given.items())), partial(ledgers.ask, run, question.sql, given)
    )
    return _answered(request, run, rested.answer, began, rest=rested.rest)


async def sql(request: web.Request) -> web.Response:
    """Answer one SELECT that somebody has written."""
    body = await read_body(request)
    run, text = body.get("run"), body.get("sql")
    if not isinstance(run, str) or not isinstance(text, str):
        raise WrongAsked('expected a JSON object such as {"run": "demo", "sql": "SELECT 1"}')
    given = body.get("parameters", {})
    if not isinstance(given, dict):
        raise WrongAsked(f"parameters: expected an object of names and values, got {type(given).__name__}")
    began = time.perf_counter()
    found = await request.app[LEDGERS].ask_free(run, text, given)
    return _answered(request, run, found, began)


async def overview(request: web.Request) -> web.Response:
    """Answer whether the loop learns, is healthy, and what limits it."""
    run = run_of(request)
    ledgers = request.app[LEDGERS]
    beside = {
        name: (await ledgers.rested(run, (name,), partial(ledgers.ask, run, saved_questions()[name].sql))).answer
        for name in BESIDE
    }
    held_out = await asyncio.to_thread(_held_out, ledgers, run)
    found = await ledgers.rested(
        run,
        ("overview", held_out),
        partial(ledgers.work, run, lambda cursor: measure_health(cursor, beside, held_out)),
    )
    return json_answer({"health": found.answer, "rest": found.rest, "state": ledgers.source(run).state})


def _held_out(ledgers: Ledgers, run: str) -> HeldOut | None:
    with contextlib.suppress(StorageError):  # The page says what is wrong with an evaluation in its own place.
        return held_out_result(read_evaluations(ledgers.app.home.run(run)))
    return None


async def evaluations(request: web.Request) -> web.Response:
    """Answer with the evaluations in a run's folder: held-out queries, with intervals."""
    ledgers, run = request.app[LEDGERS], run_of(request)
    ledgers.source(run)
    found = await asyncio.to_thread(read_evaluations, ledgers.app.home.run(run))
    return json_answer(
        {
            "evaluations": [
                {
                    "name": name,
                    "queries": each.queries,
                    "baseline": each.baseline,
                    "confidence": each.settings.confidence,
                    "measures": each.measures,
                    "runs": [msgspec.structs.replace(row, per_query={}) for row in each.runs],
                    "note": each.believed.line if each.believed else "",
                }
                for name, each in found.items()
            ]
        }
    )


async def group(request: web.Request) -> web.Response:
    """Answer with one group, through all its stages."""
    ledgers, run = request.app[LEDGERS], run_of(request)
    name = request.query.get("group", "")[:TEXT_MAX]
    found = await ledgers.work(run, lambda cursor: read_group(cursor, name))
    shown = [*found.raw, *(hit for each in found.candidates for hit in each.results)]
    known = await titles(ledgers.app, found.index, (hit.document_id for hit in shown))
    judged = {}
    with contextlib.suppress(SettingsError):  # A name in the log that no index of this home could have.
        intents = ledgers.app.home.index(found.index.rpartition("-")[0] or found.index).intents
        judged = await asyncio.to_thread(grades, intents, found.split, found.query_id) if shown else {}
    return json_answer(with_catalogue(found, known, judged))


async def _end_of_log(response: web.StreamResponse, ledgers: Ledgers, run: str) -> Cursor:
    """Return the cursor at the end of a run's log, when it is read so far; what lies before it is no news."""
    source = ledgers.source(run)
    found = await ledgers.work(run, ends)
    told = ""
    while not source.caught_up:
        if source.state != told:
            told = source.state
            await _send(response, "state", {"live": source.live, "state": told}, "")
        await asyncio.sleep(LOOK_SECONDS)
        found = await ledgers.work(run, ends)
    return found


async def search(request: web.Request) -> web.Response:
    """Answer with raw and helped results of a query, as a running server gives them."""
    query = request.query.get("query", "")
    if not query.strip() or len(query) > TEXT_MAX:
        raise WrongAsked(f"query: expected a text of 1 to {TEXT_MAX:,} characters, got {len(query):,}")
    found = await request.app[SERVER].both(query)
    ledgers = request.app[LEDGERS]
    known = await titles(ledgers.app, found["index"], (hit["document_id"] for hit in found["raw"] + found["helped"]))
    for hit in found["raw"] + found["helped"]:
        hit["title"] = known.get(hit["document_id"], "")
    return json_answer(found)


async def click(request: web.Request) -> web.Response:
    """Send a click on a result of the Search page to the server, as a feedback event."""
    body = await read_body(request)
    query_id, document_id = body.get("query_id"), body.get("document_id")
    if not isinstance(query_id, str) or not isinstance(document_id, str):
        raise WrongAsked('expected a JSON object such as {"query_id": "…", "document_id": "p1"}')
    await request.app[SERVER].click(query_id, document_id)
    return json_answer({"sent": True})


async def stream(request: web.Request) -> web.StreamResponse:
    """Answer with what happens in a run from now on, or from the last event that the page got."""
    ledgers, run = request.app[LEDGERS], run_of(request)
    source = ledgers.source(run)
    cursor = read_cursor(request.headers.get("last-event-id", "") or request.query.get("from", ""))
    response = web.StreamResponse(headers={**HEADERS, "content-type": "text/event-stream"})
    await response.prepare(request)
    seen: Hashable = None
    told: tuple[bool, str] | None = (source.live, source.state)
    beat = asked = time.monotonic()
    ending = request.app[ENDING]
    fits, telling = cursor is None, request.app[TELLING]
    try:
        if cursor is None:
            cursor = await _end_of_log(response, ledgers, run)
        await _send(response, "state", {"live": source.live, "state": source.state}, show_cursor(cursor))
        while not ending.is_set():
            now = time.monotonic()
            # To ask a run that goes on, now and then, shows whether it has ended meanwhile.
            if (contents := telling.contents(ledgers, run)) != seen or (
                source.live and now - asked >= LOOK_AGAIN_SECONDS
            ):
                asked, seen = now, contents
                if not fits:
                    end = await ledgers.work(run, ends)
                    fits = source.caught_up and not source.state
                    if fits and (begun := within(cursor, end)) != cursor:
                        cursor, told = begun, None  # The page learns its new cursor at once.
                for each in await telling.news(ledgers, run, cursor):
                    cursor = each.cursor
                    await _send(response, each.kind, {"rows": each.rows}, show_cursor(cursor))
                    beat = now
            if (state := (source.live, source.state)) != told:
                told = state
                await _send(response, "state", {"live": state[0], "state": state[1]}, show_cursor(cursor))
            if now - beat > BEAT_SECONDS:
                await response.write(b": alive\n\n")
                beat = now
                ledgers.source(run)  # Whoever listens uses the copy.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), LOOK_SECONDS)
    except (ConnectionError, asyncio.CancelledError):
        pass  # The page is closed.
    except (UnknownRun, StorageError) as error:  # The stream has begun, so an answer of its own would be noise in it.
        with contextlib.suppress(ConnectionError):
            await _send(response, "state", {"live": False, "state": str(error)}, show_cursor(cursor or {}))
    return response


async def metrics(request: web.Request) -> web.Response:
    """Answer with the metrics of the home's runs, in Prometheus' text format."""
    text = await asyncio.to_thread(request.app[METRICS].text)
    return web.Response(body=text, headers={"content-type": CONTENT_TYPE})


async def health(request: web.Request) -> web.Response:
    """Answer whether the process lives."""
    return web.Response(text="alive\n")


def _answered(request: web.Request, run: str, found: LedgerAnswer, began: float, *, rest: float = 0.0) -> web.Response:
    found, in_all = without_total(found)
    return json_answer(
        {
            "in_all": in_all,
            "columns": found.columns,
            "rows": found.rows,
            "cut": found.cut,
            "rest": round(rest, 1),
            "state": request.app[LEDGERS].source(run).state,
            "milliseconds": round(1000 * (time.perf_counter() - began), 1),
        }
    )


def without_total(found: LedgerAnswer) -> tuple[LedgerAnswer, int | None]:
    """Return an answer without its column `in_all`, and that column's value: how many rows there are without a limit.

    None if the question has no such column, or no row.
    """
    if TOTAL not in found.columns:
        return found, None
    place = found.columns.index(TOTAL)
    kept = msgspec.structs.replace(
        found,
        columns=found.columns[:place] + found.columns[place + 1 :],
        rows=tuple(row[:place] + row[place + 1 :] for row in found.rows),
    )
    return kept, int(found.rows[0][place]) if found.rows else None


def _described(question: Question) -> dict[str, Any]:
    return {**msgspec.to_builtins(question), "parameters": sorted(question.parameters)}


def _parameters(request: web.Request, question: Question) -> dict[str, object]:
    """Return the values for a question's parameters. Raises WrongAsked for one that is of another kind."""
    given: dict[str, object] = {}
    for name in question.parameters:
        default, text = DEFAULTS[name], request.query.get(name)
        if text is None:
            given[name] = default
        elif isinstance(default, str):
            given[name] = text[:TEXT_MAX]
        else:
            if WHOLE.fullmatch(text) is None:
                raise WrongAsked(f"{name}: expected a whole number, got {text[:40]!r}")
            given[name] = int(text)
    if given.get("sort", "") not in SORTS:
        raise WrongAsked(f"sort: expected one of {', '.join(SORTS[1:])}, got {str(given['sort'])[:40]!r}")
    return given


def _csv(found: LedgerAnswer) -> str:
    """Return an answer as CSV. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(found.columns)
    writer.writerows([_cell(value) for value in row] for row in found.rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    begins = isinstance(value, str) and (value[:1] in ("\t", "\r", "\n") or value.lstrip()[:1] in ("=", "+", "-", "@"))
    return f"'{value}" if begins else value


async def _send(response: web.StreamResponse, kind: str, data: Any, cursor: str) -> None:
    body = msgspec.json.encode(data, enc_hook=str).decode()
    await response.write(f"event: {kind}\nid: {cursor}\ndata: {body}\n\n".encode())
