"""The settings of the server."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from streams.descriptions import describe
from streams.secrets import GuardedSettings, SecretText


class ServeSettings(GuardedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `searchloop serve`."""

    host: Annotated[str, describe("Address that the server listens on. Another one than loopback needs a token.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535), describe("Port of the server. 0 takes a free one.")] = 8600
    token: Annotated[
        SecretText,
        describe("Token that each request must carry, as `Authorization: Bearer TOKEN`. Empty: none is asked for."),
    ] = ""
    token_file: Annotated[str, describe("Path of a file that holds token, which then stays empty.")] = ""
    origins: Annotated[
        tuple[str, ...],
        describe(
            'Web origins whose pages may send events, such as "https://shop.example". Empty: only the server\'s own.'
        ),
    ] = ()
    metrics: Annotated[
        Literal["token", "open", "off"],
        describe("Who may read `/metrics`: token (whoever has the server's token), open (everybody), or off (nobody)."),
    ] = "token"
    pages: Annotated[
        bool,
        describe(
            "True answers the pages of `searchloop ui` under /ui/ too, to whoever has `ui.token`, which must be "
            "set and differ from `serve.token`. Keep it false on a server that people reach."
        ),
    ] = False
    tail_budget_ms: Annotated[
        int,
        msgspec.Meta(ge=0, le=10_000),
        describe(
            "Time that a query without a ready answer may wait for the policy. After it, the raw query serves, and the "
            "answer is kept for the next time."
        ),
    ] = 200
    tail_waiting_max: Annotated[
        int, msgspec.Meta(ge=1, le=1_000), describe("Queries that may wait for the policy at once; more are raw.")
    ] = 16
    tail_kept: Annotated[
        int, msgspec.Meta(ge=1, le=10_000_000), describe("Answers of the policy that are kept in memory.")
    ] = 100_000
    search_timeout_ms: Annotated[
        int, msgspec.Meta(ge=1, le=60_000), describe("Time that Elasticsearch may take for one search.")
    ] = 2_000
    reload_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=3_600),
        describe("Time between two looks for a new policy version and for new answers."),
    ] = 2.0
    epsilon: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe("Share of the searches whose results are drawn evenly among all choices. 0 explores nothing."),
    ] = 0.1
    candidates_share: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe(
            "Share of the searches for a query with open groups that are drawn evenly among raw results and the "
            "groups' candidates, to learn from (`leser.rewards`). 0 shows none. During a ramp none are shown."
        ),
    ] = 0.1
    ungated: Annotated[
        bool,
        describe(
            "True serves every version that has an answer, with no gate, by the two settings below: for simulations "
            "and tests. False serves a version only after `searchloop promote` has admitted it."
        ),
    ] = False
    temperature: Annotated[
        float,
        msgspec.Meta(gt=0, le=100),
        describe("With ungated: softness of the choice between raw and helped results."),
    ] = 1.0
    preference: Annotated[
        float,
        msgspec.Meta(ge=-100, le=100),
        describe("With ungated: score of a policy version's results in that choice; raw results have 0."),
    ] = 2.0
    interleave: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe(
            "Share of the searches that show two rankings as one, to compare them: raw results and versions with an "
            "answer, by pairs. `searchloop compare` shows which one people prefer."
        ),
    ] = 0.0
    size_max: Annotated[int, msgspec.Meta(ge=1, le=1_000), describe("Largest number of results of one search.")] = 100
    body_kib_max: Annotated[int, msgspec.Meta(ge=1, le=65_536), describe("Largest size of a request's body.")] = 1_024
    events_max: Annotated[int, msgspec.Meta(ge=1, le=100_000), describe("Largest number of events in one request.")] = (
        1_000
    )
    read_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=600), describe("Time that a client may take to send a request.")
    ] = 5.0
    drain_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=600), describe("Time that requests under way get when the server stops.")
    ] = 10.0
    spool_mib_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=1_000_000),
        describe("Largest size of the events that wait on disk while Kafka is away. Beyond it, events are refused."),
    ] = 1_024
    spool_sync: Annotated[
        bool, describe("True waits for the disk at each event, so that a power cut loses none. It is slower.")
    ] = False
    shadow: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe("Share of the searches that are also requests of split live: scored by the run, never shown."),
    ] = 0.0
