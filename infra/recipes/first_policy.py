"""The policy that a run begins with, before any warm-up: built from the catalogue's words, or a given model."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from infra.app.app import App
from infra.app.home import RunFolder
from learner.policy import Policy, build_tiny, find_base, load_policy, save_policy, unpack_smollm2


def first_policy(app: App, texts: Iterable[str], *, pointers: int, run_dir: RunFolder, seed: int) -> Policy:
    """Return the base that `policy.base` names. The tiny one is built here and kept in the run's folder.

    texts: the catalogue as prompts show it; the tiny policy takes its vocabulary from it. pointers: as in `build_tiny`.
    Raises PolicyError if there is no such model.
    """
    base = app.settings.policy.base
    if base == "tiny":
        tiny = msgspec.structs.replace(app.settings.policy.tiny, seed=seed)
        return save_policy(build_tiny(texts, tiny, pointers=pointers), run_dir.warmup / "untaught")
    return unpack_smollm2(app.home.policies / "smollm2") if base == "smollm2" else load_policy(find_base(base))
