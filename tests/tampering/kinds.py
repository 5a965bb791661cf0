"""Ways to tamper with a finished run, and the small changes that they are made of."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from learner.checkpoints import MANIFEST, MANIFEST_SHA256, Manifest
from storage.archive import ARCHIVE
from storage.ledger import LEDGER
from streams.codec import content_sha256, decode, encode_event
from streams.events import Event, Generation, Outcome, Request, Reward, Update
from tests.finished_run import UPDATES
from tests.stored_events import RUN, generation
from tests.tampered_run import Tampered, rechained

replace = msgspec.structs.replace
GROUP = generation(2).group_id  # Trained by the first update.
BOTH, KAFKA = ("offline", "kafka"), ("kafka",)


class Tampering(msgspec.Struct, frozen=True, kw_only=True):
    """One way to tamper. modes: those in which the rule finds it; in the others nothing does.

    kafka_rule: the rule that finds it with Kafka, where that is another one.
    """

    name: str
    do: Callable[[Tampered], Any]
    rule: str
    modes: tuple[str, ...] = BOTH
    kafka_rule: str = ""

    @property
    def said(self) -> str:
        """Return the rule as the page names it."""
        return f"{self.rule}; with Kafka, {self.kafka_rule}" if self.kafka_rule else self.rule

    def rule_in(self, mode: str) -> str:
        """Return the rule that finds it in this mode."""
        return self.kafka_rule if self.kafka_rule and mode == "kafka" else self.rule


def rows(name: str, rule: str, *statements: str) -> Tampering:
    """Only the ledger's rows are changed."""
    return Tampering(name=f"ledger: {name}", do=lambda run: run.sql(*statements), rule=rule)


def log(name: str, rule: str, kind: type[Event], change: Callable[[Any], Event | None], **how: Any) -> Tampering:
    """Ledger and archive are written anew from changed records."""
    copies = "every copy" if how.get("topics") else "ledger and archive"
    return Tampering(name=f"{copies}: {name}", do=lambda run: run.events(kind, change, **how), rule=rule)


def files(name: str, rule: str, do: Callable[[Tampered], Any], modes: tuple[str, ...] = BOTH) -> Tampering:
    """Files are changed: segments, checkpoints, settings."""
    return Tampering(name=name, do=do, rule=rule, modes=modes)


def outcome(change: Callable[[Outcome], Outcome]) -> Callable[[Reward], Reward]:
    """Change the fourth outcome of the group."""

    def changed(event: Reward) -> Reward:
        if event.group_id != GROUP:
            return event
        return replace(event, outcomes=(*event.outcomes[:3], change(event.outcomes[3]), *event.outcomes[4:]))

    return changed


def completion(event: Generation, **changes: Any) -> Generation:
    """Change the first completion of the group."""
    if event.group_id != GROUP:
        return event
    return replace(event, completions=(replace(event.completions[0], **changes), *event.completions[1:]))


def embedded(**changes: Any) -> Callable[[Reward], Reward]:
    """Change what a reward holds of its generation, and nothing else."""
    return lambda event: replace(event, generation=completion(event.generation, **changes))


def at_step(step: int, change: Callable[[Update], Update]) -> Callable[[Update], Update]:
    """Change the update that made this step."""
    return lambda event: rechained(event, change, step)


def metric(value: float) -> Callable[[Update], Update]:
    return lambda event: replace(event, metrics=event.metrics | {"loss": value})


def all_failed(event: Update) -> Update:
    return replace(event, trained=(), failed=(*event.failed, *event.trained))


def of_split(split: str) -> Callable[[Tampered], None]:
    """Everything about the group's request says another split."""

    def request(event: Request) -> Request:
        return replace(event, split=split) if event.request_id == "request-2" else event

    def change(run: Tampered) -> None:
        run.events(Request, request, topics=True)
        run.events(Generation, lambda e: replace(e, request=request(e.request)), topics=True)
        run.events(Reward, lambda e: replace(e, generation=replace(e.generation, request=request(e.generation.request))), topics=True, rehash=True)  # fmt: skip  # noqa: E501

    return change


def renamed(run: Tampered) -> None:
    """Every record of the group carries an id that somebody made up."""
    other = "0" * 8 + GROUP[8:]

    def named(group: str) -> str:
        return other if group == GROUP else group

    run.events(Generation, lambda e: replace(e, group_id=named(e.group_id)), topics=True)
    run.events(
        Reward,
        lambda e: replace(e, group_id=named(e.group_id), generation=replace(e.generation, group_id=named(e.group_id))),
        topics=True,
        rehash=True,
    )
    run.events(Update, lambda e: replace(e, trained=tuple(map(named, e.trained))), topics=True)


def without_segment_rows(run: Tampered) -> None:
    path = run.segment("rewards")
    run.rewrite_segment(path, lambda found: [*found[:1], *found[2:]])


def reward_in_segment(run: Tampered) -> None:
    def change(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        event = decode(found[1]["value"])
        assert isinstance(event, Reward)
        better = replace(event, outcomes=(replace(event.outcomes[0], reward=0.99), *event.outcomes[1:]))
        return [found[0], found[1] | {"value": encode_event(better)}, *found[2:]]

    run.rewrite_segment(run.segment("rewards"), change)


def cut(run: Tampered, *, listed: bool) -> None:
    path = run.segment("rewards")
    path.write_bytes(path.read_bytes()[:-100])
    if listed:
        run.list_segment(path)


def flip_ledger(run: Tampered) -> None:
    path = run.folder / LEDGER
    content = bytearray(path.read_bytes())
    for at in range(3 * 4096, len(content), 4096):  # Beyond the headers, in every block.
        content[at : at + 64] = bytes(byte ^ 0xFF for byte in content[at : at + 64])
    path.write_bytes(content)


def other_optimizer(run: Tampered) -> None:
    shutil.copy(run.checkpoint(-2) / "optimizer.safetensors", run.checkpoint(-1) / "optimizer.safetensors")


def other_weights(run: Tampered, number: int) -> None:
    path = run.checkpoint(number) / "model.safetensors"
    path.write_bytes(path.read_bytes()[::-1])


def older_current(run: Tampered) -> None:
    shutil.rmtree(run.checkpoint(-1))
    run.point_to(-1)


def twice_named(run: Tampered) -> None:
    """A repeated announcement says something else."""

    def change(records: list[Any]) -> list[Any]:
        last = [record for record in records if record.position.topic.endswith(".updates")][-1]
        event = decode(last.value)
        assert isinstance(event, Update)
        again = replace(last.position, offset=last.position.offset + 1)
        return [*records, replace(last, position=again, value=encode_event(metric(9.0)(event)))]

    run.rewrite(change, topics=True)


def more_in_kafka(run: Tampered) -> None:
    topic = run.topics.records[f"{RUN}.feedback", 0]
    topic.append(replace(run.topics.records[f"{RUN}.requests", 0][0], position=replace(
        run.topics.records[f"{RUN}.requests", 0][0].position, topic=f"{RUN}.feedback")))  # fmt: skip


def updates_wanted(run: Tampered, count: int) -> None:
    path = run.folder / "settings.json"
    path.write_text(path.read_text().replace(f'"updates": {UPDATES}', f'"updates": {count}'))


def rename_policy(run: Tampered) -> None:
    """The newest checkpoint names the weights that it now has."""
    from learner.policy import weights_sha256

    told = run.told(-1)
    assert told.update is not None
    named = replace(told.policy, sha256=weights_sha256(run.checkpoint(-1)))
    run.manifest(-1, policy=named, update=replace(told.update, policy=named))


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


def pipe(path: Path) -> None:
    """Put a pipe in a file's place: whoever reads it waits for ever."""
    path.unlink()
    os.mkfifo(path)


def folder_for_segment(run: Tampered) -> None:
    path = run.segment("rewards")
    path.unlink()
    path.mkdir()


def beside(run: Tampered, last: int) -> Path:
    """Return a name that a reader of the archive takes before the listed segment."""
    return run.segment("rewards").with_name(f"{0:020d}-{last:020d}.parquet")


def unlisted_segment(run: Tampered) -> None:
    """A copy of the first segment, one reward of which is better: replays read it, and no ledger lists it."""
    listed = run.segment("rewards")
    content = listed.read_bytes()
    reward_in_segment(run)
    shutil.move(listed, beside(run, 99))
    listed.write_bytes(content)
    run.list_segment(listed)


def foreign_segment(run: Tampered) -> None:
    listed = run.segment("rewards")
    other = run.folder / ARCHIVE / "other.rewards" / "0" / listed.name
    other.parent.mkdir(parents=True)
    shutil.copy(listed, other)


def raw_manifest(run: Tampered, old: bytes, new: bytes, *, count: int = -1) -> None:
    """Change the newest manifest's bytes, and adjust its hash."""
    folder = run.checkpoint(-1)
    content = (folder / MANIFEST).read_bytes().replace(old, new, count)
    (folder / MANIFEST).write_bytes(content)
    (folder / MANIFEST_SHA256).write_text(hashlib.sha256(content).hexdigest() + "\n")


def made_up_update(run: Tampered) -> None:
    """A newest checkpoint with other weights, of an update that took nothing, chained as if its learner had died."""
    newest = run.checkpoint(-1)
    told = run.told(-1)
    assert told.update is not None
    last = [r for r in run.topics.all() if r.position.topic.endswith(".updates")][-1]
    folder = run.checkpoints / f"{told.policy.lineage}-{told.policy.step + 1:06d}"
    shutil.copytree(newest, folder)
    (folder / "model.safetensors").write_bytes(b"other weights")
    made = replace(told.policy, step=told.policy.step + 1, sha256=hashlib.sha256(b"other weights").hexdigest())
    update = replace(
        told.update,
        policy=made,
        parent=told.policy,
        parent_update_sha256=content_sha256(last.value or b""),
        parent_manifest_sha256=hashlib.sha256((newest / MANIFEST).read_bytes()).hexdigest(),
        trained=(),
        flat=(),
        expired=(),
        failed=(),
        rejected={},
        disputed={},
    )
    files_now = told.files | {"model.safetensors": made.sha256}
    manifest: Manifest = replace(told, policy=made, parent=told.policy, update=update, files=files_now)
    content = msgspec.json.encode(manifest)
    (folder / MANIFEST).write_bytes(content)
    (folder / MANIFEST_SHA256).write_text(hashlib.sha256(content).hexdigest() + "\n")
    (run.checkpoints / "CURRENT").write_text(folder.name + "\n")


def in_kafka(run: Tampered, **changes: Any) -> None:
    """Change a record in Kafka alone."""
    records = run.topics.records[f"{RUN}.rewards", 0]
    records[3] = replace(records[3], **changes)
