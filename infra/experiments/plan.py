"""The plan of an experiment: its arms, their training, and their seeds.

A plan is a TOML file. An arm is one row of the table: a way to rank. It uses no policy (`search = "rm3"`), a policy
that is trained for it (`train`), or another arm's policy (`of`), at some version (`search = "0"` is the warmed-up
policy). The recipe defines the names that `search` accepts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from infra.app.layers import read_toml
from infra.app.renamed import arm_name
from storage.evaluation.tables import RETRIEVAL_GAIN
from streams.errors import SettingsError

WAYS = Literal["updates", "preferences", "turns"]
Seed = Annotated[int, msgspec.Meta(ge=0)]


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The training of an arm's policy. change: settings that differ from the recipe's, as TABLE.KEY=VALUE.

    by: "updates" of a run (GRPO), DPO on the "preferences" in another arm's logged groups, or "turns" of summarizer
    and reader. start: the arm whose warmed-up policy this one starts from, so that the two differ only in the training
    after it; for "preferences" also the arm whose groups give the preferences.
    """

    by: WAYS = "updates"
    change: tuple[str, ...] = ()
    start: str | None = None


class Arm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the table.

    search: a policy version or a baseline, as in `searchloop measure RUN:POLICY`. train: the training of a policy for
    this arm. of: the arm whose run answers, if this arm trains no policy. change: settings that differ for ranking.
    seeds: a subset of the plan's seeds, if the row needs no more. Default: all seeds; if nothing is trained, the first.
    temperature: if above 0, texts are sampled instead of decoded greedily as in serving.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=60)]
    search: str = "latest"
    train: Training | None = None
    of: str | None = None
    change: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0

    @property
    def slug(self) -> str:
        """Return the arm's name in the form for names of runs and files."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole experiment.

    baseline: the arm that every other arm is compared with, query by query and seed by seed. measures: names of
    measures; "retrieval gain" is only a difference. updates: number of updates of every trained arm (of each turn, if
    it takes turns). Default: the recipe's number. top: number of documents per ranking. samples: number of bootstrap
    draws. ranker: number of documents that a ranker gets behind each search; every set then has a second table.
    0: none.
    """

    title: str
    recipe: str
    baseline: str
    arms: tuple[Arm, ...]
    seeds: Annotated[tuple[Seed, ...], msgspec.Meta(min_length=1)] = (0, 1, 2)
    measures: tuple[str, ...] = ("nDCG@10", "R@100", "RR@10", RETRIEVAL_GAIN)
    updates: Annotated[int, msgspec.Meta(ge=1)] | None = None
    top: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    samples: Annotated[int, msgspec.Meta(ge=100, le=1_000_000)] = 2_000
    ranker: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0

    @property
    def ranked_with(self) -> tuple[str, ...]:
        """Return the settings of every ranking, as TABLE.KEY=VALUE."""
        return (f"ranker.depth={self.ranker}",) if self.ranker else ()

    def arm(self, name: str) -> Arm:
        """Return the arm with this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def trainer(self, arm: Arm) -> Arm | None:
        """Return the arm whose run answers for this arm, or None if it needs no run."""
        return arm if arm.train else (self.arm(arm.of) if arm.of else None)

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """Return the seeds of an arm: the plan's seeds, or the arm's subset of them; one seed if nothing is trained."""
        trainer = self.trainer(arm)
        if trainer is None and arm.seeds is None:
            return self.seeds[:1]
        asked = [each.seeds for each in (arm, trainer) if each is not None and each.seeds is not None]
        return tuple(seed for seed in self.seeds if all(seed in of for of in asked))


def read_plan(
    path: Path, *, seeds: tuple[int, ...] = (), arms: tuple[str, ...] = (), baseline: str | None = None
) -> Plan:
    """Return the plan of a file, optionally with other seeds, fewer arms or another baseline.

    seeds: arms with none of these seeds are left out. arms: only these arms are kept, and the arms that they need.
    Raises SettingsError with the file, the place, the expected and the given value.
    """
    try:
        plan = msgspec.convert(read_toml(path), Plan)
        arms_as_named = [msgspec.structs.replace(arm, search=arm_name(arm.search)) for arm in plan.arms]
        plan = msgspec.structs.replace(plan, arms=tuple(arms_as_named))
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}") from error
    if baseline is not None:
        plan = msgspec.structs.replace(plan, baseline=baseline)
    _check(plan, path)
    if seeds:
        plan = msgspec.structs.replace(plan, seeds=seeds)
        plan = msgspec.structs.replace(plan, arms=tuple(arm for arm in plan.arms if plan.seeds_of(arm)))
        if plan.baseline not in (arm.name for arm in plan.arms):
            raise SettingsError(f"{path}: the baseline {plan.baseline!r} has none of the seeds {seeds}; give others")
    if arms:
        plan = msgspec.structs.replace(plan, arms=_needed(plan, arms, path))
    return plan


def _check(plan: Plan, path: Path) -> None:
    names = [arm.name for arm in plan.arms]
    trained = [arm.name for arm in plan.arms if arm.train]
    if len({arm.slug for arm in plan.arms}) < len(names):
        raise SettingsError(f"{path}: expected arms with unique names, got {', '.join(names)}")
    if plan.baseline not in names:
        raise SettingsError(f"{path}: baseline: expected one of the arms ({', '.join(names)}), got {plan.baseline!r}")
    for arm in plan.arms:
        if arm.train and arm.of:
            raise SettingsError(f"{path}: arm {arm.name!r} has both `train` and `of`: keep the one that answers")
        start = arm.train.start if arm.train else None
        for other in (arm.of, start):
            if other is not None and (other not in trained or other == arm.name):
                known = ", ".join(name for name in trained if name != arm.name) or "none"
                raise SettingsError(
                    f"{path}: arm {arm.name!r}: expected an arm that is trained ({known}), got {other!r}"
                )
        if start is not None and not set(plan.seeds_of(arm)) <= set(plan.seeds_of(plan.arm(start))):
            raise SettingsError(f"{path}: arm {arm.name!r}: expected only seeds that {start!r} has, got others")
        if arm.train and (arm.train.by, bool(arm.train.start)) in (("preferences", False), ("turns", True)):
            wanted = "the arm whose logged groups give the preferences" if arm.train.by == "preferences" else "none"
            raise SettingsError(
                f"{path}: arm {arm.name!r}: train.start: expected {wanted}, got {arm.train.start or 'none'!r}"
            )


def check_methods(plan: Plan, methods: Sequence[str]) -> None:
    """Check that every arm has a run to rank with, or needs none. methods: the recipe's baselines, which need no run.

    Raises SettingsError with the arm and the baselines.
    """
    for arm in plan.arms:
        if plan.trainer(arm) is None and arm.search not in methods:
            raise SettingsError(
                f"experiment: arm {arm.name!r} ranks with {arm.search!r} and needs a run: give `train` or `of`, or "
                f"search with one of {', '.join(methods) or '(this recipe has none)'}"
            )


def _needed(plan: Plan, names: tuple[str, ...], path: Path) -> tuple[Arm, ...]:
    known = [arm.name for arm in plan.arms]
    if strangers := [name for name in names if name not in known]:
        raise SettingsError(f"{path}: expected some of the arms {', '.join(known)}, got {strangers[0]!r}")
    wanted = {plan.baseline, *names}
    for _ in plan.arms:
        wanted |= {arm.of for arm in plan.arms if arm.name in wanted and arm.of}
        wanted |= {arm.train.start for arm in plan.arms if arm.name in wanted and arm.train and arm.train.start}
    return tuple(arm for arm in plan.arms if arm.name in wanted)
