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

    weights_sha256: of the policy that wrote it. index: the version of the index that was searched. split: the set that
    the query belongs to.
    """

    group_id: str
    query: str
    query_id: str
    step: int | None
    lineage: str
    weights_sha256: str
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

# Each record is found by its id once, and what belongs to it by its place: the views would sort all groups for one.
GENERATION = """SELECT * FROM generations WHERE group_id = $group AND topic LIKE '%.generations'
ORDER BY source_offset, record_offset LIMIT 1"""
REWARD = """SELECT * FROM rewards WHERE group_id = $group AND topic LIKE '%.rewards'
ORDER BY source_offset, record_offset LIMIT 1"""
# The reward of a group's first generation is its first reward. Comparing a million numbers takes a tenth of the time of
# comparing a million names.
REWARD_OF = """SELECT * FROM rewards WHERE source_topic = $topic AND source_partition = $partition
    AND source_offset = $record_offset AND group_id = $group AND topic LIKE '%.rewards'
ORDER BY record_offset LIMIT 1"""
REQUEST = """SELECT * FROM requests WHERE topic = $topic AND "partition" = $partition AND record_offset = $record_offset
LIMIT 1"""
WRITTEN = """SELECT candidate, text, tokens FROM candidates
WHERE topic = $topic AND "partition" = $partition AND record_offset = $record_offset"""
JUDGED = """SELECT candidate, text, status, valid, reward, components, expansions, summary, hits, error FROM outcomes
WHERE topic = $topic AND "partition" = $partition AND record_offset = $record_offset"""
# What a killed learner had done beyond its checkpoint is done again from an earlier step, so a later update of no later
# step replaces it. An update that is announced twice replaces nothing.
FATE = """SELECT g.fate, g.reason, u.step, u.lineage, u.topic, u."partition", u.record_offset, u.made_at_ms,
    u.record_time_ms
FROM update_groups g JOIN counted_updates u USING (topic, "partition", record_offset)
WHERE g.group_id = $group AND NOT EXISTS (
    SELECT 1 FROM counted_updates v WHERE v.record_offset > u.record_offset AND v.step <= u.step
        AND (v.lineage, v.step, v.weights_sha256) <> (u.lineage, u.step, u.weights_sha256))
QUALIFY row_number() OVER (PARTITION BY u.lineage, u.step, u.weights_sha256 ORDER BY u.record_offset) = 1
ORDER BY u.step"""


def read_group(connection: duckdb.DuckDBPyConnection, group_id: str) -> ShownGroup:
    """Return a group with all its stages. Raises Refusal if the log holds none of this id."""
    given = {"group": group_id}
    generation = _first(connection, GENERATION, given)
    reward = _reward(connection, generation, given)
    head = reward or generation
    if not head:
        raise Refusal(f"expected the id of a group in this run's log, got {group_id[:100]!r}")
    request = _request(connection, generation)
    fates = ask(connection, FATE, given).dicts()
    texts = _texts(connection, generation, reward)
    raw = _hits(reward.get("raw_hits"))
    scored = [row["reward"] for row in texts if row["reward"] is not None]
    mean = sum(scored) / len(scored) if scored else None
    return ShownGroup(
        group_id=group_id,
        query=head["query"] or (request.get("query") or ""),
        query_id=head["query_id"] or "",
        step=head["step"],
        lineage=head["lineage"] or "",
        weights_sha256=head["weights_sha256"] or "",
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
        parts=dict(sorted(dict(row["components"] or ()).items())),
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


def _reward(connection: duckdb.DuckDBPyConnection, generation: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the first reward of a group, {} without one."""
    if generation:
        place = {name: generation[name] for name in ("topic", "partition", "record_offset")}
        if found := _first(connection, REWARD_OF, {**given, **place}):
            return found
    return _first(connection, REWARD, given)


def _request(connection: duckdb.DuckDBPyConnection, generation: dict[str, Any]) -> dict[str, Any]:
    """Return the request that a generation answers, {} without one."""
    if not generation:
        return {}
    names = ("topic", "partition", "record_offset")
    of = ("source_topic", "source_partition", "source_offset")
    return _first(connection, REQUEST, {name: generation[source] for name, source in zip(names, of, strict=True)})


def _texts(
    connection: duckdb.DuckDBPyConnection, generation: dict[str, Any], reward: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the candidates as they were written and judged; what one of both lacks is None."""
    empty = dict.fromkeys(
        ("text", "tokens", "status", "valid", "reward", "components", "expansions", "summary", "hits", "error")
    )
    found: dict[int, dict[str, Any]] = {}
    for record, sql in ((generation, WRITTEN), (reward, JUDGED)):
        if record:
            place = {name: record[name] for name in ("topic", "partition", "record_offset")}
            for row in ask(connection, sql, place).dicts():
                found[row["candidate"]] = {**found.get(row["candidate"], empty), **row}
    return [found[number] for number in sorted(found)]


def _hits(hits: list[dict[str, Any]] | None) -> list[tuple[str, int, float | None]]:
    return [(each["document_id"], each["rank"], each["score"]) for each in hits or ()]


def _first(connection: duckdb.DuckDBPyConnection, sql: str, given: dict[str, Any]) -> dict[str, Any]:
    rows = ask(connection, sql, given).dicts()
    return rows[0] if rows else {}
