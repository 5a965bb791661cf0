"""The chain: the updates that made the newest checkpoint, each tied to its predecessor by hashes.

It begins at the version that CURRENT names and goes from parent to parent down to the version that the run began with.
Updates of a killed learner beyond its checkpoint are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from storage.log import Log
from storage.verification.account import Finding, place
from storage.verification.asking import each
from streams.codec import content_sha256, encode_event
from streams.events import PolicyRef, Update
from streams.topics import version_name


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the newest checkpoint: its version, the update that made it, and its learner's reading positions.

    positions: next offset per partition of the rewards topic. staleness_max: the run's limit, in versions; None:
    unknown. origins: versions that no update of this run made, such as the version that a replay began with.
    """

    policy: PolicyRef
    update: Update | None
    positions: dict[int, int]
    staleness_max: int | None
    origins: tuple[PolicyRef, ...] = ()


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One update of the chain, from its record. topic: None for an update that its learner had no time to announce.

    sha256: of its record. event_sha256: of the event in it in our encoding; the two are equal unless another version of
    searchloop wrote the record.
    parent_update_sha256, parent_manifest_sha256: None in a record of an older searchloop.
    """

    topic: str | None
    partition: int
    record_offset: int
    policy: PolicyRef
    parent: PolicyRef
    positions: dict[int, int]
    requests_consumed: dict[int, int]
    sha256: str | None
    event_sha256: str | None
    parent_update_sha256: str | None
    parent_manifest_sha256: str | None

    @property
    def where(self) -> str:
        """Return its place in the form that every message uses."""
        return place(self.topic, self.partition, self.record_offset) if self.topic else "CURRENT"


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The surviving updates, newest first.

    origin: the version before the oldest of them; None if the chain breaks earlier. announced: the hash of each
    announced version's manifest.
    """

    links: tuple[Link, ...]
    origin: PolicyRef | None
    announced: dict[PolicyRef, str]

    @property
    def recorded(self) -> bool:
        """Return whether every update carries the hashes; True without any update."""
        return all(link.parent_manifest_sha256 is not None for link in self.links)


def find_chain(log: Log, head: Head | None) -> tuple[Chain, list[Finding]]:
    """Return the chain of updates, and the findings where it breaks. Needs the table `digests`."""
    announced = {
        PolicyRef(lineage=row["lineage"], step=row["step"], sha256=row["weights_sha256"]): row["manifest_sha256"]
        for row in each(
            log,
            "SELECT lineage, step, weights_sha256, any_value(manifest_sha256) AS manifest_sha256 FROM policy_versions "
            "WHERE manifest_sha256 IS NOT NULL AND lineage IS NOT NULL GROUP BY ALL",
        )
    }
    once: dict[PolicyRef, Link] = {}
    for row in each(log, UPDATES):
        link = _link(row)
        once[link.policy] = link  # Newest first, so the first announcement stays.
    # Not simply the last one: a learner that lost its right to another machine may still have written some.
    newest_at = {(row["topic"], row["partition"], row["record_offset"]) for row in each(log, "FROM newest_updates")}
    newest = next((i for i in once.values() if (i.topic, i.partition, i.record_offset) in newest_at), None)
    policy = head.policy if head else None
    if log.live:
        # The archive ends before the checkpoint, so the newest update in the archive takes the place of CURRENT.
        policy = newest.policy if newest else policy
    if head is None and newest is not None and not log.live:
        what = f"{version_name(newest.policy)} was announced, but there is no whole checkpoint"
        found = [Finding(rule="lineage", where=newest.where, what=what)]
        return Chain(links=(), origin=None, announced=announced), found
    links, findings = _walk(once, policy, head)
    origin = links[-1].parent if links else policy
    broken = any(finding.rule == "lineage" for finding in findings)
    chain = Chain(links=tuple(links), origin=None if broken else origin, announced=announced)
    findings += _hashes(chain, live=log.live)
    findings += _only_growing(chain)
    if newest is not None and not broken and newest.policy not in {link.policy for link in links}:
        what = (
            f"the newest update in the log gave {version_name(newest.policy)}, but CURRENT names "
            f"{version_name(policy)}, which does not build on it"
        )
        findings.append(Finding(rule="head is the newest", where=newest.where, what=what))
    return chain, findings


def _walk(
    once: Mapping[PolicyRef, Link], policy: PolicyRef | None, head: Head | None
) -> tuple[list[Link], list[Finding]]:
    links: list[Link] = []
    origins = head.origins if head else ()
    while policy is not None and policy.step > 0 and policy not in origins:
        link = once.get(policy)
        if link is None and head is not None and head.update is not None and policy == head.policy:
            # The learner died between the checkpoint and its announcement; a restarted learner repeats the
            # announcement.
            link = _unannounced(head.update)
        if link is None:
            where = links[-1].where if links else "CURRENT"
            what = f"stands on {version_name(policy)}, of which the log has no update with these weights"
            return links, [Finding(rule="lineage", where=where, what=what)]
        links.append(link)
        if link.parent.step != policy.step - 1:
            what = f"{version_name(policy)} has {version_name(link.parent)} as its parent"
            return links, [Finding(rule="lineage", where=link.where, what=what)]
        policy = link.parent
    return links, []


def _hashes(chain: Chain, *, live: bool) -> list[Finding]:
    """Check that each update names the update before it and its starting manifest, from the first one that does."""
    findings = []
    older: Link | None = None
    for link in reversed(chain.links):
        if link.parent_update_sha256 is None or link.parent_manifest_sha256 is None:
            if older is not None and older.parent_update_sha256 is not None:
                what = f"{version_name(link.policy)} names no hashes, although {version_name(older.policy)} does"
                findings.append(Finding(rule="chain of hashes", where=link.where, what=what))
            older = link
            continue
        expected = older.sha256 if older is not None else ""
        hashes = {older.sha256, older.event_sha256} - {None} if older is not None else {""}
        if hashes and link.parent_update_sha256 not in hashes and not (older is None and not chain.origin):
            what = (
                f"{version_name(link.policy)} names the update before it as {_short(link.parent_update_sha256)}, which "
                f"has {_short(expected)}"
            )
            findings.append(Finding(rule="chain of hashes", where=link.where, what=what))
        said = chain.announced.get(link.parent)
        if said is not None and link.parent_manifest_sha256 != said:
            what = (
                f"{version_name(link.policy)} started from a manifest {_short(link.parent_manifest_sha256)} of "
                f"{version_name(link.parent)}, which was announced with {_short(said)}"
            )
            findings.append(Finding(rule="chain of hashes", where=link.where, what=what))
        if said is None and not live:  # In a live log the announcement may still come.
            what = f"{version_name(link.parent)}, which it started from, was announced without a manifest's hash"
            findings.append(Finding(rule="chain of hashes", where=link.where, what=what))
        older = link
    return findings


def _only_growing(chain: Chain) -> list[Finding]:
    findings = []
    for link, parent in zip(chain.links, chain.links[1:], strict=False):
        for name in ("positions", "requests_consumed"):
            before, after = getattr(parent, name), getattr(link, name)
            for partition, offset in before.items():
                if after.get(partition, 0) < offset:
                    what = f"{name} of partition {partition} went back from {offset} to {after.get(partition, 0)}"
                    findings.append(Finding(rule="positions only grow", where=link.where, what=what))
    return findings


UPDATES = """
    SELECT u.topic, u.partition, u.record_offset, lineage, step, weights_sha256, parent_lineage, parent_step,
        parent_sha256, positions, requests_consumed, parent_update_sha256, parent_manifest_sha256,
        coalesce(d.sha256, u.record_sha256) AS sha256, d.event_sha256
    FROM updates u LEFT JOIN digests d USING (topic, partition, record_offset)
    WHERE u.topic LIKE '%.updates' ORDER BY u.record_offset DESC
"""


def _link(row: dict[str, Any]) -> Link:
    return Link(
        topic=row["topic"],
        partition=row["partition"],
        record_offset=row["record_offset"],
        policy=PolicyRef(lineage=row["lineage"], step=row["step"], sha256=row["weights_sha256"]),
        parent=PolicyRef(lineage=row["parent_lineage"], step=row["parent_step"], sha256=row["parent_sha256"]),
        positions=row["positions"] or {},
        requests_consumed=row["requests_consumed"] or {},
        sha256=row["sha256"],
        event_sha256=row["event_sha256"],
        parent_update_sha256=row["parent_update_sha256"],
        parent_manifest_sha256=row["parent_manifest_sha256"],
    )


def _unannounced(update: Update) -> Link:
    return Link(
        topic=None,
        partition=0,
        record_offset=0,
        policy=update.policy,
        parent=update.parent,
        positions=update.positions,
        requests_consumed=update.requests_consumed,
        sha256=content_sha256(encode_event(update)),
        event_sha256=content_sha256(encode_event(update)),
        parent_update_sha256=_said(update.parent_update_sha256),
        parent_manifest_sha256=_said(update.parent_manifest_sha256),
    )


def _said(value: str | msgspec.UnsetType) -> str | None:
    return None if isinstance(value, msgspec.UnsetType) else value


def _short(sha256: str | None) -> str:
    return f"{sha256[:12]}…" if sha256 else "none"
