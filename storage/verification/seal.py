"""The seal: one value that stands for a run's whole past; a rewritten past has another seal.

Keep the seal elsewhere to compare it later. A manifest's hash alone is not enough: old checkpoints are deleted, and
then it can no longer be recomputed. The hash of an update's record can always be recomputed, because updates stay in
the log. That record names the one before it, and so on. So the seal of a version is one hash over both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from storage.verification.account import Finding, Trust
from storage.verification.chain import Chain
from storage.verification.checkpoints import Kept
from streams.topics import version_name

NAME = "searchloop seal/1"


def seal_of(*, manifest_sha256: str, update_sha256: str) -> str:
    """Return a version's seal. update_sha256: of the record of the update that made it, "" if none did."""
    return hashlib.sha256(f"{NAME}\n{manifest_sha256}\n{update_sha256}\n".encode()).hexdigest()


def seals(chain: Chain) -> dict[str, str]:
    """Return the names of the chain's versions by seal, newest first; versions of an older searchloop have none."""
    found = {}
    for link in chain.links:
        manifest = chain.announced.get(link.policy)
        if manifest is not None and link.sha256 is not None and link.parent_update_sha256 is not None:
            found[seal_of(manifest_sha256=manifest, update_sha256=link.sha256)] = version_name(link.policy)
    if chain.origin is not None and (manifest := chain.announced.get(chain.origin)) is not None:
        found[seal_of(manifest_sha256=manifest, update_sha256="")] = version_name(chain.origin)
    return found


def trust(chain: Chain, kept: Sequence[Kept], value: str) -> tuple[Trust, list[Finding]]:
    """Return the version of the chain that a value kept by the user names, and a finding if there is none.

    The value may be a seal, the hash of an update's record, or the hash of a manifest whose checkpoint is still kept.
    For each, the hashed content is at hand, so nobody can invent a past that matches it.
    """
    value = value.strip().lower()
    names = [*(version_name(link.policy) for link in chain.links)]
    in_chain = {*names, *([version_name(chain.origin)] if chain.origin is not None else [])}
    known = seals(chain)
    known |= {link.sha256: version_name(link.policy) for link in chain.links if link.sha256}
    known |= {
        each.manifest_sha256: each.name for each in kept if each.manifest_sha256 is not None and each.name in in_chain
    }
    name = known.get(value)
    if name is not None:
        later = names.index(name) if name in names else len(names)
        return Trust(value=value, version=name, later=later), []
    what = (
        "expected the seal, or the hash of an update or of a kept manifest, of a version that the newest checkpoint "
        "stands on. This is another run, its past was rewritten, or the checkpoint of that manifest was deleted since "
        "(a seal outlives that)"
    )
    return Trust(value=value, version=None, later=0), [Finding(rule="trusted value", where=value[:80], what=what)]
