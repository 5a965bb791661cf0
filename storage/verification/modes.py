"""The mode of a verdict, and the things that this mode cannot see; both are part of the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from storage.verification.account import Trust
from storage.verification.reading import NEWEST_RECORDS


def mode_of(*, kafka: bool, rebuild: bool, live: bool) -> str:
    """Return the name of a mode, such as "kafka, rebuild"."""
    parts = ["kafka" if kafka else "offline", *(["rebuild"] if rebuild else []), *(["live"] if live else [])]
    return ", ".join(parts)


def unseen_by(
    *,
    kafka: bool,
    live: bool,
    unread: int,
    earlier: int = 0,
    recorded: bool,
    trusted: Trust | None,
    foreign: int,
    retained: bool,
    strays: Sequence[str] = (),
    objects: Sequence[str] = (),
    clicks: str = "",
    settings: bool = False,
) -> tuple[str, ...]:
    """Return the things that were not checked, each in one sentence.

    unread: records whose bytes no proof has read. earlier: records whose bytes only an earlier proof has read.
    recorded: whether the chain of hashes is recorded. foreign: generations of another run's log. retained: whether
    Kafka still holds everything from the first record on. strays: checkpoints without a record. objects: those in the
    ledger that are not ours. clicks: the outcomes of people that were not checked. settings: whether limits were taken
    from the run's settings.
    """
    said = []
    if live:
        said.append(
            "records that are not yet in a closed segment of the archive: a sink is at work, or the ledger cannot be "
            "used"
        )
    if not kafka:
        said.append("Kafka: whether its bytes equal these, and whether it holds more (leave out --offline)")
    elif not retained:
        said.append("Kafka: records that have fallen out of its retention; the archive's copies count")
    if unread:
        said.append(
            f"rows against bytes for the {unread:,} records before the newest {NEWEST_RECORDS:,} of each partition "
            "(--rebuild reads all)"
        )
    if earlier:
        said.append(
            f"rows against bytes for {earlier:,} records that an earlier verify has read: their segments, rows and "
            "hashes were compared with what it kept beside the ledger (--rebuild reads all)"
        )
    if foreign:
        said.append(f"the requests of {foreign:,} generations: they lie in another run's log, which was replayed")
    if strays:
        said.append(
            f"the origin of the checkpoint {', '.join(strays[:3])}{' …' if len(strays) > 3 else ''}: no record "
            "describes it; a killed learner may have left it, or somebody forged it"
        )
    if objects:
        said.append(f"{', '.join(objects)} in the ledger: not searchloop's, and no rule asks it anything")
    if clicks:
        said.append(clicks)
    if settings:
        said.append(
            "whether settings.json was changed: no record holds its hash, and the number of updates, the staleness "
            "limit and the limits of rewards are taken from it"
        )
    if not recorded:
        said.append("a rewritten past: updates were written by an older searchloop, which did not record the chain")
    elif trusted is None:
        said.append(
            "a run of which every copy was rewritten in the same way, from its beginning or back to an earlier end: "
            "keep the seal elsewhere and give it to --trusted"
        )
    elif trusted.version is not None and trusted.later:
        said.append(f"a rewriting of the {trusted.later:,} updates after the value that you trust: keep the new seal")
    return tuple(said)
