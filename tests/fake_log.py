"""A log in memory, and the loop's workers on it, that can be killed between any two writes: deterministic and quick.

The workers keep the order of the real ones (poll, handle, produce, commit) and use their ids, batches and events; only
the texts and rewards are made up. A generator that starts again writes other texts under the same ids.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from learner.batches import Batch, BatchAssembler, BatchSettings
from streams.codec import content_sha256, decode, encode_event
from streams.events import Generation, PolicyRef, PolicyVersion, Position, Reward, Update
from streams.records import Received
from streams.topics import topic_name, version_name
from tests.stored_events import RUN, generation, policy, record, request, reward


class Killed(Exception):
    """The worker is dead; what it had not written is gone."""


class FakeLog:
    """Topics of one partition each, committed offsets, and one durable checkpoint.

    kill: is asked after every write (and before every commit) whether the worker dies there.
    """

    def __init__(self, kill: Callable[[], bool], settings: BatchSettings) -> None:
        self.topics: dict[str, list[Received]] = {}
        self.committed = {"requests": 0, "generations": 0}
        self.chain: list[Update] = []  # The surviving updates, as the checkpoint names them.
        self.lives = 0
        self._kill = kill
        self._settings = settings
        self._checkpoint: Batch | None = None
        self._recent: tuple[str, ...] = ()
        self._assembler = self._resume()

    def of(self, kind: str) -> list[Received]:
        """Return a topic's records."""
        return self.topics.setdefault(kind, [])

    def request(self, number: int) -> None:
        """Somebody asks."""
        self.of("requests").append(record(request(number), number))

    def generate(self, count: int) -> None:
        """Answer the next requests, each with a group."""
        first = self.committed["requests"]
        for source in self.of("requests")[first : first + count]:
            made = generation(source.position.offset, retry=self.lives)
            written_by = self.chain[-1].policy if self.chain else policy(0)
            self._produce("generations", msgspec.structs.replace(made, policy=written_by))
        self._commit("requests", count)

    def score(self, count: int) -> None:
        """Reward the next groups, in input order."""
        first = self.committed["generations"]
        for source in self.of("generations")[first : first + count]:
            group = decode(source.value)
            assert isinstance(group, Generation)
            scored = reward(group.source.offset, retry=self.lives, source_offset=source.position.offset)
            digest = content_sha256(source.value or b"")
            self._produce("rewards", msgspec.structs.replace(scored, generation=group, content_sha256=digest))
        self._commit("generations", count)

    def learn(self) -> None:
        """Read every reward there is, and make an update of each full batch."""
        try:
            start = self._read
            for source in self.of("rewards")[start:]:
                event = decode(source.value)
                assert isinstance(event, Reward)
                self._assembler.add(source.position, event)
                self._read = source.position.offset + 1
                while self._assembler.full:
                    self._update(self._assembler.take(step=len(self.chain)))
        except Killed:
            self._assembler = self._resume()
            raise

    def _update(self, batch: Batch) -> None:
        self._die()
        step = len(self.chain) + 1
        parent = self.chain[-1].policy if self.chain else policy(0)
        made = Update(
            run=RUN,
            policy=PolicyRef(lineage=f"life{self.lives}", step=step, sha256=f"{step:064x}"),
            parent=parent,
            trained=tuple(each.group_id for each in batch.fresh),
            expired=batch.expired,
            failed=batch.failed,
            positions=batch.positions,
            requests_consumed=batch.requests_consumed,
            rejected={},
            disputed={},
            parent_update_sha256=content_sha256(encode_event(self.chain[-1])) if self.chain else "",
            parent_manifest_sha256=_manifest_sha256(parent),
        )
        self.chain = [*self.chain, made]  # The checkpoint: from here on it is durable, announced or not.
        self._checkpoint, self._recent = batch, self._assembler.recent_groups
        self._die()
        self._produce("updates", made)
        self._produce("policy-versions", _version(made.policy, made))

    def _resume(self) -> BatchAssembler:
        positions = self._checkpoint.positions if self._checkpoint else {}
        self._read = positions.get(0, 0)
        # Said again, as the real one does: it may have died between its checkpoint and the announcement.
        if self.chain and (self.chain[-1].policy not in self._announced() or not self._versions_end_with_head()):
            self.of("updates").append(record(self.chain[-1], len(self.of("updates"))))
            self._say(_version(self.chain[-1].policy, self.chain[-1]))
        elif not self.of("policy-versions"):
            self._say(_version(policy(0), None))
        return BatchAssembler(
            self._settings,
            positions=positions,
            requests_consumed=self._checkpoint.requests_consumed if self._checkpoint else {},
            recent_groups=self._recent,
        )

    def _say(self, event: PolicyVersion) -> None:
        self.of("policy-versions").append(record(event, len(self.of("policy-versions"))))

    def _versions_end_with_head(self) -> bool:
        said = [decode(item.value) for item in self.of("policy-versions")]
        return any(isinstance(event, PolicyVersion) and event.policy == self.chain[-1].policy for event in said)

    def _announced(self) -> set[PolicyRef]:
        events = [decode(item.value) for item in self.of("updates")]
        return {event.policy for event in events if isinstance(event, Update)}

    def _produce(self, kind: str, event: Generation | Reward | Update | PolicyVersion) -> None:
        self.of(kind).append(record(event, len(self.of(kind))))
        self._die()

    def _commit(self, kind: str, count: int) -> None:
        self._die()
        self.committed[kind] = min(self.committed[kind] + count, len(self.of(kind)))

    def _die(self) -> None:
        if self._kill():
            self.lives += 1
            raise Killed

    def ends(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Return what Kafka would say of every partition."""
        return {(topic_name(RUN, kind), 0): (0, len(items)) for kind, items in self.topics.items()}

    def place(self, kind: str) -> Position:
        """Return where the next record of a topic will lie."""
        return Position(topic=topic_name(RUN, kind), partition=0, offset=len(self.of(kind)))


def _version(made: PolicyRef, of: Update | None) -> PolicyVersion:
    """Return an announcement; of: the update that made the version."""
    return PolicyVersion(
        run=RUN,
        policy=made,
        parent=of.parent if of else None,
        path=f"checkpoints/{version_name(made)}",
        requests_consumed=of.requests_consumed if of else {},
        requests_admitted={},
        manifest_sha256=_manifest_sha256(made),
    )


def _manifest_sha256(made: PolicyRef) -> str:
    """Return what stands in for the hash of a version's manifest."""
    return content_sha256(repr(made).encode())
