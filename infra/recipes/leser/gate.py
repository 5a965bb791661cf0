"""The gate: a relevance model that is no better than the raw order of a kind of query does not train that kind.

A kind is closed if the believed measure of the model's order of the raw top 100 lies below that of the raw order. The
point decides by default, not the interval. A reward from such a model teaches a policy to search worse in expectation;
not to train a kind costs only what the policy might have gained. The check has a few hundred queries, or some dozens of
judged ones, so an interval below 0 would let a judge pass that is probably worse. `relevance.gate = "interval"` closes
a kind only if the whole interval is below 0, and "off" closes none.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from infra.app.home import IndexFolder, RunFolder
from infra.app.progress import Report
from infra.app.settings import Settings
from infra.recipes.leser.closed_kinds import JUDGE_FILE, KindVerdict, Verdict
from infra.recipes.leser.judging import PAIRS, TITLES, Judge, JudgeCheck, KindCheck, made_sets
from search_env.models.relevance import Gate
from streams.errors import SettingsError
from streams.whole_file import write_file

CHECKED_QUERIES = 300
SAMPLES = 10_000
CHECKS = "checks"

log = logging.getLogger(__name__)


def is_open(check: KindCheck, gate: Gate) -> bool:
    """Return whether a kind may train, by the rule of this module."""
    gain = check.gain
    if gate == "off" or gain.value is None or gain.high is None:
        return True
    return (gain.value if gate == "point" else gain.high) >= 0


def reason_of(check: KindCheck | None, gate: Gate) -> str:
    """Return the reason of a verdict, in words."""
    if check is None:
        return "not checked, since there are no judgments: searchloop relevance --queries FILE --qrels FILE"
    gain = check.gain
    return (
        f"reranking the raw top 100 by the relevance model changes {check.believed} by {gain.value:+.3f} "
        f"[{gain.low:+.3f}, {gain.high:+.3f}] on {check.queries} queries"
        + ("; the gate is off" if gate == "off" else "")
    )


def verdict_of(check: JudgeCheck, asked: Sequence[tuple[str, int]], gate: Gate) -> Verdict:
    """Return the verdict about these kinds. asked: (kind, number of training queries) pairs."""
    kinds = []
    for kind, queries in asked:
        found = check.of(kind)
        kinds.append(
            KindVerdict(
                kind=kind,
                queries=queries,
                trains=found is None or is_open(found, gate),
                reason=reason_of(found, gate),
            )
        )
    return Verdict(model=check.model, index=check.index, kinds=tuple(kinds))


def judge_run(
    run_dir: RunFolder,
    folder: IndexFolder,
    judge: Judge,
    settings: Settings,
    asked: Sequence[tuple[str, int]],
    *,
    report: Report,
) -> Verdict:
    """Return what a run's rewards may train. A run that has begun keeps its verdict; an older one trains everything.

    Raises SettingsError if the run's training queries are all closed.
    """
    path = run_dir / JUDGE_FILE
    gate = settings.relevance.gate
    if path.is_file():
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    if run_dir.settings_file.is_file() or gate == "off":
        open_kinds = (KindVerdict(kind=kind, queries=n, trains=True, reason="not checked") for kind, n in asked)
        return Verdict(model=judge.relevance.name, index=judge.searcher.index, kinds=tuple(open_kinds))
    check = read_check(folder, model=judge.relevance.name, index=judge.searcher.index)
    wanted = [kind for kind, _ in asked if kind in (PAIRS, TITLES) and (check is None or check.of(kind) is None)]
    if check is None or wanted:
        sets = made_sets(folder, judge.catalogue, settings.gbdt, wanted, count=CHECKED_QUERIES)
        made = judge.check(sets, samples=SAMPLES, report=report)
        before = check.kinds if check else ()
        check = JudgeCheck(model=judge.relevance.name, index=judge.searcher.index, kinds=(*before, *made))
        keep_check(folder, check)
    verdict = verdict_of(check, asked, gate)
    if verdict.line:
        log.warning("%s", verdict.line)
        report(verdict.line, 0, 0)
    if not any(each.trains and each.queries for each in verdict.kinds):
        raise SettingsError(
            f"no training query is left: {verdict.line}. Judge queries and train the model on them (searchloop "
            'relevance --queries FILE --qrels FILE), or set relevance.gate = "off"'
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    write_file(path, msgspec.json.format(msgspec.json.encode(verdict)) + b"\n")
    return verdict


def keep_check(folder: IndexFolder, check: JudgeCheck) -> None:
    """Keep a check beside the index's relevance model; a newer one of the same model and index replaces it."""
    path = _check_file(folder, check.model, check.index)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, msgspec.json.format(msgspec.json.encode(check)) + b"\n")


def read_check(folder: IndexFolder, *, model: str, index: str) -> JudgeCheck | None:
    """Return the kept check of a model on an index version, or None if there is none that this version reads."""
    try:
        return msgspec.json.decode(_check_file(folder, model, index).read_bytes(), type=JudgeCheck)
    except (OSError, ValueError):
        return None


def _check_file(folder: IndexFolder, model: str, index: str) -> Path:
    digest = hashlib.sha256(f"{model}\t{index}".encode()).hexdigest()[:16]
    return folder.relevance / CHECKS / f"{digest}.json"
