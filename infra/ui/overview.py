"""The overview's sentences: does the loop learn, is it healthy, and what limits it. Each has a link to its rows."""

from __future__ import annotations

from typing import Any, Literal

import duckdb
import msgspec

from storage.monitor.limits import read_time_shares
from storage.questions.asking import ask

Level = Literal["good", "warn", "bad", "unknown"]

DEAD_GROUPS_SHARE = 0.6
ADVICE = {
    "generation": "More or faster generators would help: run another, or let vLLM write the texts.",
    "search": "More environments or a faster engine would help: add an environment, or look at slow searches.",
    "learner": "A faster learner would help: fewer tokens per update, or a GPU.",
}


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the overview. link: a page of the application."""

    question: str
    level: Level
    says: str
    link: str


class LimitStatement(msgspec.Struct, frozen=True, kw_only=True):
    """What limits the loop. bound: a stage with "-bound", "balanced" or "unknown". shares: of the time, by stage."""

    bound: str
    says: str
    shares: dict[str, float] = {}
    advice: str = ""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The overview's figures and statements."""

    updates: int
    groups: int
    statements: list[Statement]
    limit: LimitStatement


UPDATES = "SELECT count(*) AS updates, max(step) AS step FROM surviving_updates"
GROUPS = "SELECT count(*) AS groups FROM rewards"
DEV = "SELECT step, value, measure FROM first_dev_scores ORDER BY step, lineage"
REWARDS = """WITH edges AS (
    SELECT reward_mean, row_number() OVER (ORDER BY step) AS first, row_number() OVER (ORDER BY step DESC) AS last
    FROM reward_by_version WHERE reward_mean IS NOT NULL
)
SELECT avg(reward_mean) FILTER (first <= 5) AS before, avg(reward_mean) FILTER (last <= 5) AS after,
    count(*) AS versions
FROM edges"""
FLAT = """SELECT avg(flat::INTEGER) AS flat, sum(valid_share * scored) / nullif(sum(scored), 0) AS valid
FROM group_rewards WHERE step > (SELECT max(step) FROM group_rewards) - 20"""
LETTERS = "SELECT count(*) AS letters FROM dead_letter"
ACCOUNTS = """SELECT coalesce(sum(candidates - scored - failed - expired - waiting), 0)::BIGINT AS residual,
    coalesce(max(uses_max), 0)::BIGINT AS uses, coalesce(sum(failed), 0)::BIGINT AS failed,
    coalesce(sum(candidates), 0)::BIGINT AS candidates FROM accounting"""


def measure_health(connection: duckdb.DuckDBPyConnection) -> Health:
    """Return the overview of a run from its ledger. Raises Refusal."""
    updates = _one(connection, UPDATES)
    groups = _one(connection, GROUPS)["groups"]
    return Health(
        updates=updates["updates"],
        groups=groups,
        statements=[
            _learns(ask(connection, DEV).dicts(), _one(connection, REWARDS)),
            _spread(_one(connection, FLAT)),
            _letters(_one(connection, LETTERS)["letters"], groups),
            _accounts(_one(connection, ACCOUNTS)),
        ],
        limit=_limit(connection),
    )


def _learns(dev: list[dict[str, Any]], rewards: dict[str, Any]) -> Statement:
    before, after = rewards["before"], rewards["after"]
    rose = None if before is None or rewards["versions"] < 10 else after - before
    reward = "" if rose is None else f" The training reward went from {before:.3f} to {after:.3f}."
    if len(dev) < 2:
        says = "Not known: no dev queries are measured as the run learns (dev.every), so only the reward can be seen."
        return Statement(question="Is it learning?", level="unknown", says=says + reward, link="/rewards")
    first, last, best = dev[0], dev[-1], max(dev, key=lambda row: row["value"])
    gain = last["value"] - first["value"]
    says = (
        f"{first['measure']} on dev queries went from {first['value']:.3f} (version {first['step']}) to "
        f"{last['value']:.3f} (version {last['step']}); the best is {best['value']:.3f} (version {best['step']})."
    )
    level: Level = "good" if gain > 0 else "warn"
    if gain <= 0 and rose is not None and rose > 0:
        level = "bad"
        says = "The reward rises and search does not get better: it may be hacked. " + says
    return Statement(question="Is it learning?", level=level, says=says + reward, link="/versions")


def _spread(row: dict[str, Any]) -> Statement:
    flat, valid = row["flat"], row["valid"]
    if flat is None:
        return Statement(question="Can it learn?", level="unknown", says="No group is rewarded yet.", link="/examples")
    says = f"{flat:.0%} of the newest groups have no spread and teach nothing; {valid or 0:.1%} of the texts are valid."
    level: Level = "bad" if flat > DEAD_GROUPS_SHARE else "warn" if flat > DEAD_GROUPS_SHARE / 2 else "good"
    return Statement(question="Can it learn?", level=level, says=says, link="/examples?sort=flat")


def _letters(letters: int, groups: int) -> Statement:
    if not letters:
        return Statement(
            question="Is anything lost?", level="good", says="No dead letters.", link="/sql?name=dead_letters"
        )
    says = f"{letters:,} dead letters beside {groups:,} groups. They are kept: `searchloop dead-letters` resends them."
    level: Level = "bad" if letters > 0.001 * groups else "warn"
    return Statement(question="Is anything lost?", level=level, says=says, link="/sql?name=dead_letters")


def _accounts(row: dict[str, Any]) -> Statement:
    question, link = "Do the accounts balance?", "/sql?name=accounting"
    if row["residual"] or row["uses"] > 1:
        says = f"{row['residual']:,} candidates have no fate; one group gave {row['uses']} gradients (at most 1)."
        return Statement(question=question, level="bad", says=says + " Run: searchloop verify", link=link)
    says = f"Each of {row['candidates']:,} candidates has one fate; {row['failed']:,} could not be scored."
    level: Level = "warn" if row["failed"] > 0.01 * row["candidates"] else "good"
    return Statement(question=question, level=level if row["candidates"] else "unknown", says=says, link=link)


def _limit(connection: duckdb.DuckDBPyConnection) -> LimitStatement:
    """Return what limits the loop."""
    found = read_time_shares(lambda sql: ask(connection, sql).dicts())
    if found is None:
        return LimitStatement(bound="unknown", says="Not known yet: a few more updates are needed to tell.")
    shares = {"generation": found.generation, "search": found.search, "learning": found.learner}
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    spent = f"Of the {found.seconds:.2g} s between two updates: {parts}."
    if not found.limit:
        return LimitStatement(bound="balanced", shares=shares, says=f"No stage limits the loop alone. {spent}")
    return LimitStatement(
        bound=f"{found.limit}-bound",
        shares=shares,
        says=f"The loop is {found.limit}-bound. {spent}",
        advice=ADVICE[found.limit],
    )


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    return ask(connection, sql).dicts()[0]
