"""Examples of a run: one candidate's results beside those of the raw query, document by document."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from storage.log import Log

EXAMPLES = 12
TRIES = 4
EACH = 2  # Examples of each kind.
HITS = 10
TEXT_CHARACTERS_MAX = 4000
Kind = Literal["highest", "middle", "lowest"]
Numbers = dict[str, float]


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One query with the newest version's best candidate. found: documents that the raw query missed."""

    query: str
    expansions: tuple[str, ...]
    text: str
    reward: float
    found: int


class PlacedHit(msgspec.Struct, frozen=True, kw_only=True):
    """One document of a list. other_rank: its rank in the other list, None if that list lacks it."""

    document_id: str
    rank: int
    other_rank: int | None


class ComparedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate of the newest version: what it wrote, its reward, and the results before and after.

    kind: "highest" and "lowest" by reward, or "middle" (next to the median). No query comes twice in one kind. Answers
    in a wrong format, which change nothing, are examples only if there are no others; error then says what is wrong.
    group: lowest, mean and highest reward of its group. raw, helped: the first documents of the two lists; both are
    empty if the recipe searches nothing. product_id, summary: for a text about a product. gained, lost: documents that
    only the helped, only the raw list has.
    """

    kind: Kind
    lineage: str
    step: int
    query_id: str
    query: str
    group_id: str
    candidate: int
    text: str
    expansions: tuple[str, ...]
    valid: bool
    error: str
    product_id: str
    summary: str
    reward: float
    components: Numbers
    group: tuple[float, float, float]
    raw: tuple[PlacedHit, ...]
    helped: tuple[PlacedHit, ...]
    gained: int
    lost: int


def place_hits(raw: list[str], helped: list[str]) -> tuple[tuple[PlacedHit, ...], tuple[PlacedHit, ...]]:
    """Return two lists of documents, best first, each document with its rank in the other list.

    Only the first `HITS` are returned, but ranks beyond them are known. If a list names a document twice, its first
    place counts.
    """

    def ranks(documents: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for rank, document in enumerate(documents, start=1):
            found.setdefault(document, rank)
        return found

    before, after = ranks(raw), ranks(helped)

    def placed(own: dict[str, int], other: dict[str, int]) -> tuple[PlacedHit, ...]:
        return tuple(
            PlacedHit(document_id=document, rank=rank, other_rank=other.get(document))
            for document, rank in own.items()
            if rank <= HITS
        )

    return placed(before, after), placed(after, before)


def read_examples(log: Log, *, digits: int) -> tuple[Example, ...]:
    """Return the newest version's best candidate for each of the first queries."""
    if not _choose_newest(log, "true"):
        return ()
    rows = log.rows(
        f"""
        WITH best AS (
            SELECT run, group_id, candidate, query_id FROM newest_outcomes WHERE status = 'scored'
            QUALIFY row_number() OVER (PARTITION BY run, query_id ORDER BY reward DESC, group_id, candidate) = 1
            ORDER BY query_id, run LIMIT {EXAMPLES}
        )
        SELECT o.query, o.expansions, coalesce(o.text, '') AS text, o.reward,
            len(list_filter(list_transform(o.hits, lambda hit: hit.document_id),
                lambda id: NOT list_contains(list_transform(r.raw_hits, lambda hit: hit.document_id), id))) AS found
        FROM best b JOIN newest_outcomes o USING (run, group_id, candidate) JOIN newest_rewards r USING (run, group_id)
        ORDER BY b.query_id, run
        """
    )
    return tuple(
        Example(**row | {"reward": round(row["reward"], digits), "expansions": tuple(row["expansions"])})
        for row in rows
    )


def read_comparisons(log: Log, *, digits: int) -> tuple[ComparedAnswer, ...]:
    """Return examples of the newest version with a reward, the highest first. No candidate comes twice."""
    if not _choose_newest(log, "status = 'scored'"):
        return ()
    found: list[ComparedAnswer] = []
    seen: set[tuple[str, int]] = set()
    kinds: dict[Kind, str] = {
        "highest": "reward DESC",
        "lowest": "reward",
        "middle": "abs(reward - (SELECT median(reward) FROM newest))",
    }
    for kind, order in kinds.items():
        rows = [row for row in log.rows(_sql(order)) if (row["group_id"], row["candidate"]) not in seen]
        for row in rows[:EACH]:
            seen.add((row["group_id"], row["candidate"]))
            found.append(_comparison(kind, row, digits))
    place = {"highest": 0, "middle": 1, "lowest": 2}
    return tuple(sorted(found, key=lambda each: (place[each.kind], -each.reward, each.group_id, each.candidate)))


def _choose_newest(log: Log, which: str) -> bool:
    """Make `newest_rewards` and `newest_outcomes` of the newest step that has such an outcome; return whether one has.

    The few newest steps are tried one by one, since little is read for each. After them, the whole log is asked.
    """
    steps = log.rows(
        f"SELECT DISTINCT step FROM rewards WHERE topic LIKE '%.rewards' AND step IS NOT NULL "
        f"ORDER BY step DESC LIMIT {TRIES}"
    )
    if any(_choose(log, row["step"], which) for row in steps):
        return True
    if len(steps) < TRIES:
        return False
    (row,) = log.rows(
        "SELECT max(r.step) AS step FROM first_rewards r JOIN outcomes o USING (topic, partition, record_offset) "
        f"WHERE {which}"
    )
    return row["step"] is not None and _choose(log, row["step"], which)


def _choose(log: Log, step: int, which: str) -> bool:
    """Make both of one step; return whether it has such an outcome. A group counts by its first record alone."""
    log.connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE newest_places AS
        SELECT topic, partition, record_offset FROM (
            SELECT topic, partition, record_offset, run, group_id, source_offset, step FROM rewards
            WHERE topic LIKE '%.rewards' AND hash(run, group_id) IN (
                SELECT hash(run, group_id) FROM rewards WHERE step = {step})
            QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1
        ) WHERE step = {step}
        """
    )
    (ends,) = log.rows("SELECT min(record_offset) AS low, max(record_offset) AS high FROM newest_places")
    within = f"record_offset BETWEEN {ends['low'] or 0} AND {ends['high'] or 0}"
    log.connection.execute(
        f"""
        CREATE OR REPLACE TEMP VIEW newest_rewards AS
        SELECT * FROM rewards SEMI JOIN newest_places USING (topic, partition, record_offset) WHERE {within};
        CREATE OR REPLACE TEMP VIEW newest_outcomes AS
        SELECT o.*, r.query_id, r.query, r.split, r.lineage, r.step FROM outcomes o
        JOIN newest_rewards r USING (topic, partition, record_offset) WHERE {within}
        """
    )
    return bool(log.rows(f"SELECT 1 FROM newest_outcomes WHERE {which} LIMIT 1"))


def _sql(order: str) -> str:
    """Return the query for candidates in an order, one for each query; a few more than are shown."""
    return f"""
        WITH newest AS (
            SELECT run, group_id, candidate, query_id, reward, valid FROM newest_outcomes
            WHERE status = 'scored' AND isfinite(reward)
        ), picked AS (
            SELECT * FROM newest WHERE valid OR NOT (SELECT bool_or(valid) FROM newest)
            QUALIFY row_number() OVER (
                PARTITION BY coalesce(nullif(query_id, ''), group_id) ORDER BY {order}, group_id, candidate
            ) = 1
            ORDER BY {order}, group_id, candidate LIMIT {3 * EACH}
        ), spans AS (
            SELECT group_id, min(reward) AS low, avg(reward) AS mean, max(reward) AS high
            FROM newest WHERE group_id IN (SELECT group_id FROM picked) GROUP BY group_id
        )
        SELECT o.lineage, o.step, coalesce(o.query_id, '') AS query_id, coalesce(o.query, '') AS query, group_id,
            o.candidate, coalesce(o.text, '') AS text, coalesce(o.expansions, []) AS expansions,
            coalesce(o.valid, false) AS valid, coalesce(o.error, '') AS error,
            coalesce(o.summary, '') AS summary, coalesce(q.product_id, '') AS product_id,
            o.reward, o.components, low, mean, high,
            list_transform(r.raw_hits, lambda hit: hit.document_id) AS raw,
            list_transform(o.hits, lambda hit: hit.document_id) AS helped
        FROM picked p JOIN newest_outcomes o USING (run, group_id, candidate)
        JOIN newest_rewards r USING (run, group_id) JOIN spans USING (group_id)
        LEFT JOIN (
            SELECT DISTINCT ON (run, request_id) run, request_id, product_id FROM requests
            WHERE request_id IN (SELECT request_id FROM newest_rewards)
        ) q ON q.run = r.run AND q.request_id = r.request_id
        ORDER BY {order.replace("reward", "o.reward", 1)}, group_id, o.candidate
    """


def _comparison(kind: Kind, row: dict[str, Any], digits: int) -> ComparedAnswer:
    searched = row["valid"] and (row["raw"] or row["helped"])
    raw, helped = place_hits(row["raw"] or [], row["helped"] or []) if searched else ((), ())
    return ComparedAnswer(
        kind=kind,
        lineage=row["lineage"],
        step=row["step"],
        query_id=row["query_id"],
        query=row["query"][:TEXT_CHARACTERS_MAX],
        group_id=row["group_id"],
        candidate=row["candidate"],
        text=row["text"][:TEXT_CHARACTERS_MAX],
        expansions=tuple(row["expansions"]),
        valid=row["valid"],
        error=row["error"][:TEXT_CHARACTERS_MAX],
        product_id=row["product_id"],
        summary=row["summary"][:TEXT_CHARACTERS_MAX],
        reward=round(row["reward"], digits),
        components={name: round(value, digits) for name, value in sorted((row["components"] or {}).items())},
        group=(round(row["low"], digits), round(row["mean"], digits), round(row["high"], digits)),
        raw=raw,
        helped=helped,
        gained=sum(hit.other_rank is None for hit in helped),
        lost=sum(hit.other_rank is None for hit in raw),
    )
