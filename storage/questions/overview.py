"""The overview's sentences: does the loop learn, is it healthy, and what limits it. Each has a link to its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import duckdb
import msgspec

from storage.monitor.limits import TimeShares, time_shares
from storage.questions.asking import LedgerAnswer, ask
from storage.questions.question import saved_questions
from storage.reports.result import RunOutcome

Level = Literal["good", "warn", "bad", "unknown"]
HeldOut = tuple[RunOutcome, RunOutcome, str]
"""Against the baseline, against the best other row, and a headline: `report_result.held_out_result`."""

DEAD_GROUPS_SHARE = 0.6
STUDENT = 2.1  # The 97.5 % quantile for 18 degrees of freedom: ten versions at each end.
NOISE = 0.5  # Over the root of the number of queries: about two standard errors of a paired difference in nDCG.
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


UPDATES = "SELECT count(*) AS updates FROM surviving_updates"
GROUPS = "SELECT count(DISTINCT group_id) AS groups FROM rewards WHERE topic LIKE '%.rewards'"
# Versions of the surviving lineage and its beginning; of several measures the one of the newest score.
DEV = """WITH alive AS (
    SELECT lineage, step FROM surviving_updates UNION SELECT parent_lineage, parent_step FROM surviving_updates
), scores AS (
    SELECT d.step, d.value, d.measure, list_max([each.queries for each in d.sets]) AS queries
    FROM first_dev_scores d WHERE (d.lineage, d.step) IN (SELECT (lineage, step) FROM alive)
        OR NOT EXISTS (SELECT 1 FROM alive)
)
SELECT step, value, measure, queries FROM scores
WHERE measure = (SELECT arg_max(measure, step) FROM scores) ORDER BY step"""
REWARDS = """WITH means AS (
    SELECT run, step, lineage, avg(reward_mean) AS reward_mean FROM drawn_groups GROUP BY ALL
), edges AS (
    SELECT reward_mean, row_number() OVER (ORDER BY step) AS first, row_number() OVER (ORDER BY step DESC) AS last
    FROM means WHERE reward_mean IS NOT NULL
)
SELECT avg(reward_mean) FILTER (first <= 10) AS before, avg(reward_mean) FILTER (last <= 10) AS after,
    sqrt(var_samp(reward_mean) FILTER (first <= 10) / 10 + var_samp(reward_mean) FILTER (last <= 10) / 10) AS error,
    count(*) AS versions
FROM edges"""
NEWEST = """WITH newest AS (
    SELECT * FROM rewards WHERE topic LIKE '%.rewards' AND step > (
        SELECT max(step) FROM rewards WHERE topic LIKE '%.rewards') - 20
    QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1
), sums AS (
    SELECT count(o.reward) AS scored, count(o.valid) FILTER (o.valid AND o.status = 'scored') AS valid,
        count(o.reward) < 2 OR max(o.reward) = min(o.reward) AS flat
    FROM outcomes o JOIN newest USING (topic, partition, record_offset) GROUP BY o.run, o.group_id
)
SELECT count(*) AS groups, sum(scored)::BIGINT AS scored, avg(flat::INTEGER) AS flat,
    sum(valid) / nullif(sum(scored), 0) AS valid
FROM sums"""
LETTERS = "SELECT count(*) AS letters FROM dead_letter"
FATES = ("candidates", "scored", "failed", "expired", "waiting")
BESIDE = ("accounting", "time_by_stage")
"""Saved questions whose answers the overview uses too. They cost most of it, and the page asks them anyway."""


def measure_health(
    connection: duckdb.DuckDBPyConnection,
    beside: Mapping[str, LedgerAnswer] | None = None,
    held_out: HeldOut | None = None,
) -> Health:
    """Return the overview of a run from its ledger. Raises Refusal.

    beside: answers to the questions `BESIDE`, by name; those that are missing are asked. held_out: what an evaluation
    in the run's folder says.
    """
    saved = saved_questions()
    found = {name: (beside or {}).get(name) or ask(connection, saved[name].sql) for name in BESIDE}
    groups = _one(connection, GROUPS)["groups"]
    return Health(
        updates=_one(connection, UPDATES)["updates"],
        groups=groups,
        statements=[
            _learns(ask(connection, DEV).dicts(), _one(connection, REWARDS), held_out),
            _spread(_one(connection, NEWEST)),
            _letters(_one(connection, LETTERS)["letters"], groups),
            _accounts(found["accounting"].dicts()),
        ],
        limit=_limit(time_shares(found["time_by_stage"].dicts())),
    )


def _learns(dev: list[dict[str, Any]], rewards: dict[str, Any], held_out: HeldOut | None) -> Statement:
    question = "Is it learning?"
    rose, reward = _reward(rewards)
    if len(dev) < 2 and held_out is not None:
        outcome, against, headline = held_out
        says = f"By held-out queries: {headline[0].lower()}{headline[1:]}."
        if outcome == "worse" and rose:
            says += " The reward rises meanwhile: it may be hacked."
        return Statement(
            question=question,
            level={"better": "good" if against == "better" else "warn", "worse": "bad"}.get(outcome, "unknown"),
            says=f"{says} {reward}".strip(),
            link="/versions",
        )
    if len(dev) < 2:
        says = "Not known: no dev queries are measured as the run learns (dev.every), so only the reward can be seen."
        return Statement(question=question, level="unknown", says=f"{says} {reward}".strip(), link="/rewards")
    first, last, best = dev[0], dev[-1], max(dev, key=lambda row: row["value"])
    gain, noise = last["value"] - first["value"], NOISE / math.sqrt(max(last["queries"] or 1, 1))
    says = (
        f"{first['measure']} on dev queries: {first['value']:.3f} (version {first['step']}), now {last['value']:.3f} "
        f"(version {last['step']}); the best is {best['value']:.3f} (version {best['step']})."
    )
    level: Level
    if abs(gain) <= noise:
        level, says = "unknown", f"No clear change: {last['queries'] or 0:,} queries vary by about {noise:.3f}. {says}"
        if rose:
            level, says = "warn", f"The reward rises, and dev queries show no clear gain. {says}"
    elif gain > 0:
        level = "good"
    else:
        level = "bad" if rose else "warn"
        says = f"The reward rises and search gets worse: the reward may be hacked. {says}" if rose else says
    return Statement(question=question, level=level, says=f"{says} {reward}".strip(), link="/versions")


def _reward(rewards: dict[str, Any]) -> tuple[bool, str]:
    """Return whether the training reward clearly rose, beyond the 95 % interval of both ends, and a sentence."""
    before, after, error = rewards["before"], rewards["after"], rewards["error"]
    if rewards["versions"] < 20 or error is None:
        return False, ""
    change = after - before
    said = "rose" if change > STUDENT * error else "fell" if change < -STUDENT * error else "shows no clear change"
    return said == "rose", f"The training reward {said}: {before:.3f} ± {error:.3f} to {after:.3f}."


def _spread(row: dict[str, Any]) -> Statement:
    question, link = "Can it learn?", "/examples?sort=flat"
    if not row["groups"]:
        return Statement(question=question, level="unknown", says="No group is rewarded yet.", link="/examples")
    if not row["scored"]:
        says = "Nothing can be learned: no text of the newest groups could be scored."
        return Statement(question=question, level="bad", says=says, link="/examples")
    flat, valid = row["flat"], row["valid"]
    says = f"{flat:.0%} of the newest groups teach nothing: no spread, or fewer than two scored texts. "
    says += f"{valid:.1%} of the scored texts are valid."
    level: Level = "bad" if flat > DEAD_GROUPS_SHARE else "warn" if flat > DEAD_GROUPS_SHARE / 2 else "good"
    return Statement(question=question, level=level, says=says, link=link)


def _letters(letters: int, groups: int) -> Statement:
    if not letters:
        return Statement(
            question="Is anything lost?", level="good", says="No dead letters.", link="/sql?name=dead_letters"
        )
    says = (
        f"Dead letters: {letters:,}, beside {groups:,} groups. They are kept: `searchloop dead-letters` resends them."
    )
    level: Level = "bad" if letters > 0.001 * groups else "warn"
    return Statement(question="Is anything lost?", level=level, says=says, link="/sql?name=dead_letters")


def _accounts(splits: list[dict[str, Any]]) -> Statement:
    """Return what became of the candidates of all splits."""
    row = {name: sum(each[name] for each in splits) for name in FATES}
    uses = max((each["most_gradients"] or 0 for each in splits), default=0)
    question, link = "What became of the candidates?", "/sql?name=accounting"
    if uses > 1:
        says = f"One group gave {uses} gradients, and at most 1 is allowed. Run: searchloop verify"
        return Statement(question=question, level="bad", says=says, link=link)
    says = (
        f"Of {row['candidates']:,}: {row['scored']:,} scored, {row['failed']:,} failed, {row['expired']:,} too old, "
        f"{row['waiting']:,} without an answer yet. No group gave two gradients. `searchloop verify` proves the rest."
    )
    few = row["failed"] + row["expired"] <= 0.01 * row["candidates"] and row["waiting"] < row["candidates"]
    return Statement(
        question=question, level=("good" if few else "warn") if row["candidates"] else "unknown", says=says, link=link
    )


def _limit(found: TimeShares | None) -> LimitStatement:
    """Return what limits the loop."""
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
