"""One group of candidates through all stages: its request, texts, results, rewards, and what the learner made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import msgspec

from storage.questions.asking import Refusal, ask

Place = dict[str, Any]


class ShownResult(msgspec.Struct, frozen=True, kw_only=True):
    """One result. was: its rank among the raw results, None if they lack it. move: "gained", "up", "down" or "same".

    title, grade: as far as the catalogue knows them.
    """

    document_id: str
    rank: int
    score: float | None
    was: int | None
    move: str
    title: str = ""
    grade: int | None = None


class ShownCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """One text of a group. lost: raw results that its own lack. advantage: its reward minus the group's mean."""

    candidate: int
    text: str
    status: str
    valid: bool | None
    reward: float | None
    advantage: float | None
    parts: dict[str, float]
    expansions: tuple[str, ...]
    summary: str
    error: str
    tokens: int | None
    results: tuple[ShownResult, ...]
    lost: tuple[str, ...]


class ShownGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group and its way. fate: what the learner made of it, in a sentence. stages: each with its record's place.

    index: the version of the index that was searched. split: the set that the query belongs to.
    """

    group_id: str
    query: str
    query_id: str
    step: int | None
    lineage: str
    index: str
    split: str
    context: dict[str, Any]
    raw: tuple[ShownResult, ...]
    candidates: tuple[ShownCandidate, ...]
    fate: str
    stages: tuple[Place, ...]


FATES = {
    "trained": "It gave a gradient to version {step}.",
    "flat": "It gave no gradient: all its rewards are equal, so no candidate is better than another.",
    "expired": "It gave no gradient: its policy was too many versions behind the learner (batch.staleness_max).",
    "failed": "It gave no gradient: its candidates could not be scored.",
    "rejected": "It gave no gradient: the learner refused it ({reason}).",
    "disputed": "It gave no gradient: its log-probabilities do not match the version that it names ({reason}).",
}
NOT_YET = "No update has taken it yet."
UNSCORED = "No reward has come yet."

GENERATION = "SELECT * FROM first_generations WHERE group_id = $group"
REWARD = "SELECT * FROM first_rewards WHERE group_id = $group"
REQUEST = "SELECT * FROM requests WHERE request_id = $request ORDER BY record_offset LIMIT 1"
TEXTS = """SELECT coalesce(o.candidate, c.candidate) AS candidate, coalesce(o.text, c.text) AS text, o.status, o.valid,
    o.reward, o.components, o.expansions, o.summary, o.hits, o.error, c.tokens
FROM (SELECT * FROM first_candidates WHERE group_id = $group) c
FULL JOIN (SELECT * FROM first_outcomes WHERE group_id = $group) o USING (candidate) ORDER BY candidate"""
FATE = """SELECT g.fate, g.reason, g.step, g.lineage, u.topic, u."partition", u.record_offset, u.made_at_ms,
    u.record_time_ms
FROM surviving_groups g JOIN surviving_updates u USING (topic, "partition", record_offset)
WHERE g.group_id = $group ORDER BY g.step"""


def read_group(connection: duckdb.DuckDBPyConnection, group_id: str) -> ShownGroup:
    """Return a group with all its stages. Raises Refusal if the log holds none of this id."""
    given = {"group": group_id}
    generation = _first(connection, GENERATION, given)
    reward = _first(connection, REWARD, given)
    head = reward or generation
    if not head:
        raise Refusal(f"expected the id of a group in this run's log, got {group_id[:100]!r}")
    request = _first(connection, REQUEST, {"request": head["request_id"]})
    fates = ask(connection, FATE, given).dicts()
    texts = ask(connection, TEXTS, given).dicts()
    raw = _hits(reward.get("raw_hits"))
    scored = [row["reward"] for row in texts if row["reward"] is not None]
    mean = sum(scored) / len(scored) if scored else None
    return ShownGroup(
        group_id=group_id,
        query=head["query"] or (request.get("query") or ""),
        query_id=head["query_id"] or "",
        step=head["step"],
        lineage=head["lineage"] or "",
        index=head["index"] or "",
        split=head["split"] or "",
        context={
            name.removeprefix("context_"): value
            for name, value in request.items()
            if (name.startswith("context_") or name == "product_id") and value
        },
        raw=tuple(ShownResult(document_id=d, rank=r, score=s, was=r, move="same") for d, r, s in raw),
        candidates=tuple(_candidate(row, raw, mean) for row in texts),
        fate=_fate(fates, rewarded=bool(reward)),
        stages=_stages(request, generation, reward, fates),
    )


def with_catalogue(group: ShownGroup, titles: Mapping[str, str], grades: Mapping[str, int]) -> ShownGroup:
    """Return the group with titles and grades in its results."""

    def known(results: tuple[ShownResult, ...]) -> tuple[ShownResult, ...]:
        return tuple(
            msgspec.structs.replace(each, title=titles.get(each.document_id, ""), grade=grades.get(each.document_id))
            for each in results
        )

    candidates = tuple(msgspec.structs.replace(each, results=known(each.results)) for each in group.candidates)
    return msgspec.structs.replace(group, raw=known(group.raw), candidates=candidates)


def _candidate(row: dict[str, Any], raw: list[tuple[str, int, float | None]], mean: float | None) -> ShownCandidate:
    ranks = {document: rank for document, rank, _ in raw}
    hits = _hits(row["hits"])
    found = {document for document, _, _ in hits}
    reward = row["reward"]
    return ShownCandidate(
        candidate=row["candidate"],
        text=row["text"] or "",
        status=row["status"] or "waiting",
        valid=row["valid"],
        reward=reward,
        advantage=reward - mean if reward is not None and mean is not None else None,
        parts=dict(sorted((row["components"] or {}).items())),
        expansions=tuple(row["expansions"] or ()),
        summary=row["summary"] or "",
        error=row["error"] or "",
        tokens=row["tokens"],
        results=tuple(
            ShownResult(document_id=d, rank=r, score=s, was=ranks.get(d), move=move_of(r, ranks.get(d)))
            for d, r, s in hits
        ),
        lost=tuple(document for document in ranks if document not in found) if hits else (),
    )


def move_of(rank: int, was: int | None) -> str:
    """Return how a result moved against the raw results, whose rank it had before."""
    if was is None:
        return "gained"
    return "same" if was == rank else "up" if rank < was else "down"


def _fate(fates: list[dict[str, Any]], *, rewarded: bool) -> str:
    if not rewarded:
        return UNSCORED
    if not fates:
        return NOT_YET
    row = next((each for each in fates if each["fate"] == "trained"), fates[0])
    said = FATES.get(row["fate"], f"The learner put it aside: {row['fate']}.")
    return said.format(step=row["step"], reason=row["reason"] or "no reason given")


def _stages(
    request: dict[str, Any], generation: dict[str, Any], reward: dict[str, Any], fates: list[dict[str, Any]]
) -> tuple[Place, ...]:
    rows = [("request", request), ("generation", generation), ("reward", reward), *(("update", row) for row in fates)]
    return tuple(
        {
            "stage": stage,
            "place": f"{row['topic'].rpartition('.')[2]}[{row['partition']}]@{row['record_offset']}",
            "made_at_ms": row.get("made_at_ms") or row["record_time_ms"],
            "step": row.get("step"),
        }
        for stage, row in rows
        if row
    )


def _hits(hits: list[dict[str, Any]] | None) -> list[tuple[str, int, float | None]]:
    return [(each["document_id"], each["rank"], each["score"]) for each in hits or ()]


def _first(connection: duckdb.DuckDBPyConnection, sql: str, given: dict[str, Any]) -> dict[str, Any]:
    rows = ask(connection, sql, given).dicts()
    return rows[0] if rows else {}
