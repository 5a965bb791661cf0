"""The settings of the pages."""

from __future__ import annotations

from typing import Annotated

import msgspec

from streams.descriptions import describe
from streams.secrets import GuardedSettings, SecretText


class UiSettings(GuardedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `searchloop ui`."""

    host: Annotated[
        str, describe("Address that the pages listen on. Put your own gateway with TLS in front of any but loopback.")
    ] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535), describe("Port of the pages. 0 takes a free one.")] = 8700
    token: Annotated[
        SecretText, describe("Token that opens the pages. Empty: a new one at each start, in the printed address.")
    ] = ""
    token_file: Annotated[str, describe("Path of a file that holds token, which then stays empty.")] = ""
    names: Annotated[
        tuple[str, ...],
        describe(
            'Host names under which the pages may be asked for, such as "loop.example", beside loopback and host.'
        ),
    ] = ()
    server: Annotated[
        str, describe("Address of a running `searchloop serve`, which answers the Search page. Empty: no Search page.")
    ] = ""
    server_token: Annotated[SecretText, describe("Token of that server, if it asks for one.")] = ""
    server_token_file: Annotated[str, describe("Path of a file that holds server_token, which then stays empty.")] = ""
    rows_max: Annotated[
        int, msgspec.Meta(ge=10, le=1_000_000), describe("Rows of one answer; an answer with more is cut and says so.")
    ] = 10_000
    seconds_max: Annotated[
        float, msgspec.Meta(gt=0, le=3_600), describe("Time after which a question to the ledger is stopped.")
    ] = 20.0
    share: Annotated[
        float,
        msgspec.Meta(gt=0, le=1),
        describe(
            "Share of one processor core that open pages and the copies of live runs may take over time. A smaller "
            "value refreshes charts less often. A page that is opened is answered at once all the same."
        ),
    ] = 0.03
    questions_at_once: Annotated[
        int, msgspec.Meta(ge=1, le=64), describe("Questions that run at once; further ones wait.")
    ] = 2
