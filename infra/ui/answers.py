"""What the pages' handlers share: the ledgers, a request's run and body, answers in JSON, and errors as sentences."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from infra.ui.ledgers import Ledgers, UnknownRun
from infra.ui.searching import SearchTrouble
from storage.errors import StorageError
from storage.questions.asking import Refusal
from streams.errors import SettingsError

LEDGERS: web.AppKey[Ledgers] = web.AppKey("ledgers", Ledgers)

TEXT_MAX = 10_000
BODY_MAX = 64 * 1024


class WrongAsked(Exception):
    """A request that cannot be answered as it is."""


@web.middleware
async def explain_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Turn a failure into JSON that says what was expected, what came, and what to do."""
    try:
        found: web.StreamResponse = await handler(request)
        return found
    except (WrongAsked, Refusal) as error:
        return json_answer({"error": str(error)}, status=400)
    except UnknownRun as error:
        return json_answer({"error": str(error)}, status=404)
    except SearchTrouble as error:
        return json_answer({"error": str(error)}, status=error.status)
    except (StorageError, SettingsError) as error:
        return json_answer({"error": str(error)}, status=503)
    except web.HTTPRedirection:
        raise
    except web.HTTPException as error:
        return json_answer({"error": error.text or error.reason}, status=error.status)


def run_of(request: web.Request) -> str:
    """Return the name of the run that a request asks about; "" if it names none."""
    return request.query.get("run", "")


async def read_body(request: web.Request) -> dict[str, Any]:
    """Return a request's body, a JSON object. Raises WrongAsked for another one, or one that is too large."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > BODY_MAX:
            raise WrongAsked(f"expected a body of at most {BODY_MAX:,} bytes, got more")
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WrongAsked(f"expected a JSON object, got {str(error)[:200]}") from None


def json_answer(value: Any, *, status: int = 200) -> web.Response:
    """Return a value as JSON; a number that is infinite or none becomes null."""
    return web.Response(body=msgspec.json.encode(value, enc_hook=str), status=status, content_type="application/json")
