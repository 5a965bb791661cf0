"""The kinds of queries that a run's rewards do not train, read for `status` without the learner's libraries."""

from __future__ import annotations

from pathlib import Path

import msgspec

JUDGE_FILE = "judge.json"


class KindVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether rewards train one kind of query, with the reason, and the number of training queries of the kind."""

    kind: str
    queries: int
    trains: bool
    reason: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The kinds of queries that rewards may train, kept in the run's folder, so that a run goes on as it began."""

    model: str
    index: str
    kinds: tuple[KindVerdict, ...]

    @property
    def closed(self) -> tuple[KindVerdict, ...]:
        """Return the kinds that rewards do not train."""
        return tuple(each for each in self.kinds if not each.trains)

    @property
    def line(self) -> str:
        """Return one line about the closed kinds; "" if there are none."""
        return "; ".join(f"rewards do not train {each.kind}: {each.reason}" for each in self.closed)


def read_verdict(run_dir: Path) -> Verdict | None:
    """Return a run's verdict, or None if it has none that this version reads."""
    try:
        return msgspec.json.decode((run_dir / JUDGE_FILE).read_bytes(), type=Verdict)
    except (OSError, ValueError):
        return None


def closed_kinds(run_dir: Path) -> str:
    """Return one line about the kinds that a run's rewards do not train; "" if there are none."""
    verdict = read_verdict(run_dir)
    return verdict.line if verdict else ""
