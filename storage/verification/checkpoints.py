"""Checkpoints: every kept checkpoint is whole, equals the announced one, and agrees with the log."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from storage.log import Log
from storage.verification.account import Finding
from storage.verification.asking import each
from storage.verification.chain import Chain
from streams.codec import content_sha256, encode_event
from streams.events import PolicyRef, Update, fates_of
from streams.topics import version_name


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a checkpoint's manifest."""

    policy: PolicyRef
    parent: PolicyRef | None
    update: Update | None
    positions: dict[int, int]
    requests_consumed: dict[int, int]
    recent_groups: tuple[str, ...]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint on the disk.

    damage: the faults of its files, each in one line. manifest_sha256: None if there is no manifest. told: None if the
    manifest cannot be read. weights_sha256: of the weights that a policy would be loaded from; None if there are none.
    """

    name: str
    damage: tuple[str, ...]
    manifest_sha256: str | None
    told: Told | None
    weights_sha256: str | None


def checkpoint_findings(log: Log, kept: Sequence[Kept], chain: Chain) -> list[Finding]:
    """Return the findings about the checkpoints. Needs the table `digests`."""
    updates = {
        PolicyRef(lineage=row["lineage"], step=row["step"], sha256=row["weights_sha256"]): row["sha256"]
        for row in each(
            log,
            "SELECT lineage, step, weights_sha256, any_value(d.event_sha256) AS sha256 "
            "FROM updates u LEFT JOIN digests d USING (topic, partition, record_offset) WHERE u.topic LIKE '%.updates' "
            "GROUP BY ALL",
        )
    }
    findings = []
    for checkpoint in kept:
        where = f"checkpoints/{checkpoint.name}"
        for rule, what in _wrong(checkpoint, chain, updates):
            findings.append(Finding(rule=rule, where=where, what=what))
    return [*findings, *_beginning(log, kept, chain)]


def unannounced(log: Log, kept: Sequence[Kept], untold: str | None) -> list[str]:
    """Return the names of checkpoints without a record, except the newest: no record can confirm them."""
    told = {
        PolicyRef(lineage=row["lineage"], step=row["step"], sha256=row["weights_sha256"])
        for row in each(
            log,
            "SELECT DISTINCT lineage, step, weights_sha256 FROM policy_versions WHERE status = 'published' UNION "
            "SELECT DISTINCT lineage, step, weights_sha256 FROM updates",
        )
        if None not in row.values()
    }
    return [item.name for item in kept if item.told and item.told.policy not in told and item.name != untold]


def _wrong(checkpoint: Kept, chain: Chain, updates: dict[PolicyRef, str | None]) -> list[tuple[str, str]]:
    wrong = [("checkpoints", what) for what in checkpoint.damage]
    told = checkpoint.told
    if told is None:
        return wrong
    if version_name(told.policy) != checkpoint.name:
        wrong.append(("checkpoints", f"its manifest is that of {version_name(told.policy)}"))
    if checkpoint.weights_sha256 != told.policy.sha256:
        has = _short(checkpoint.weights_sha256)
        what = f"the policy's name says weights {_short(told.policy.sha256)}, the file has {has}"
        wrong.append(("weights are the policy's", what))
    announced = chain.announced.get(told.policy)
    if announced is not None and announced != checkpoint.manifest_sha256:
        what = f"the manifest has hash {_short(checkpoint.manifest_sha256)}, {_short(announced)} was announced"
        wrong.append(("manifests are the announced ones", what))
    named = {link.parent: link.parent_manifest_sha256 for link in chain.links}.get(told.policy)
    if named is not None and named != checkpoint.manifest_sha256:
        what = (
            f"the manifest has hash {_short(checkpoint.manifest_sha256)}, the next update started from {_short(named)}"
        )
        wrong.append(("chain of hashes", what))
    wrong += [
        ("manifests tell their update", what) for what in _told_wrong(told, updates, hashed=announced is not None)
    ]
    return wrong


def _told_wrong(told: Told, updates: dict[PolicyRef, str | None], *, hashed: bool) -> list[str]:
    """Return the differences between a manifest and its update, and between that update and the log."""
    update = told.update
    if update is None:
        return ["it has a parent, but no update made it"] if told.parent is not None else []
    wrong = []
    for name in ("policy", "parent", "positions", "requests_consumed"):
        if getattr(told, name) != getattr(update, name):
            wrong.append(f"its {name} are {getattr(told, name)}, its update's {getattr(update, name)}")
    logged = updates.get(told.policy)
    if logged is not None and content_sha256(encode_event(update)) != logged:
        wrong.append("its update is not the one in the log")
    taken = {group for of in fates_of(update).values() for group in of}
    if not hashed and not taken <= set(told.recent_groups):
        # Later manifests need not list them, but the announced hash of a later manifest covers all of its bytes.
        wrong.append("recent_groups lacks groups that its own update took: a repeated one would train again")
    return wrong


def _beginning(log: Log, kept: Sequence[Kept], chain: Chain) -> list[Finding]:
    """Check that the version at the beginning of the chain still exists as it was announced."""
    rule = "the beginning is kept"
    if not kept and (names := _announced_names(log)):
        what = f"{names[0]} was announced, but there is no checkpoint"
        return [Finding(rule=rule, where="checkpoints", what=what)]
    if chain.origin is None:
        return []
    name = version_name(chain.origin)
    findings = []
    found = next((each for each in kept if each.told is not None and each.told.policy == chain.origin), None)
    if found is None:
        what = f"{name}, which the run began with, is not among the checkpoints, or has changed"
        findings.append(Finding(rule=rule, where=f"checkpoints/{name}", what=what))
    elif found.told is not None and (found.told.parent is not None or found.told.update is not None):
        what = f"the updates end at {name}, but its manifest says that an update made it"
        findings.append(Finding(rule=rule, where=f"checkpoints/{name}", what=what))
    rows = log.rows(
        "SELECT bool_or(parent_lineage IS NOT NULL) AS made FROM policy_versions WHERE status = 'published' "
        "AND lineage = $1 AND step = $2 AND weights_sha256 = $3",
        (chain.origin.lineage, chain.origin.step, chain.origin.sha256),
    )
    made = rows[0]["made"]
    if made is None and not log.live:
        what = f"{name}, which the run began with, was never announced"
        findings.append(Finding(rule=rule, where=f"checkpoints/{name}", what=what))
    if made:
        what = f"{name} was announced with a parent, but no update in the log made it"
        findings.append(Finding(rule=rule, where=f"checkpoints/{name}", what=what))
    return findings


def _announced_names(log: Log) -> list[str]:
    """Return the name of the first announced version; none in runs without a learner."""
    rows = each(
        log,
        "SELECT lineage, step, weights_sha256 FROM policy_versions WHERE status = 'published' AND lineage IS NOT NULL "
        "AND step IS NOT NULL ORDER BY topic, partition, record_offset LIMIT 1",
    )
    return [
        version_name(PolicyRef(lineage=row["lineage"], step=row["step"], sha256=row["weights_sha256"])) for row in rows
    ]


def _short(sha256: str | None) -> str:
    return f"{sha256[:12]}…" if sha256 else "none"
