"""Which announcements and updates count, where machines share a run: those of the newest epoch, in the log's order.

A learner that has lost its right (`streams.lease`) may not know that yet, and still write. So it writes its *epoch* and
its name into each announcement. From the first announcement of an epoch on, all readers ignore announcements of lower
ones, and of another holder of the same one. The log's order is the same for all.

An update has the two beside it, as Kafka headers: its bytes are those in its checkpoint, and stay so when another
holder announces it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streams.events import Event, PolicyVersion, Update

EPOCH, HOLDER = "searchloop-epoch", "searchloop-holder"  # Headers of an update.
DIGITS_MAX = 18


class Epochs:
    """The newest epoch of announcements, read in the order of the log."""

    def __init__(self) -> None:
        self.newest = 0
        self.holder = ""

    def admits(self, event: PolicyVersion) -> bool:
        """Return whether an announcement counts: its epoch is the newest so far, and its holder was the first of it.

        Runs on one machine announce no epoch (0), and all of theirs count until an epoch begins.
        """
        epoch = event.epoch if isinstance(event.epoch, int) else 0
        return self._count(epoch, event.holder if isinstance(event.holder, str) else "")

    def admits_update(self, headers: Sequence[tuple[str, bytes | None]]) -> bool:
        """Return whether an update with these headers counts, by the epochs of the updates before it.

        One without an epoch counts always: its learner has no lease, or is older than these headers.
        """
        said = {name: (value or b"").decode(errors="replace") for name, value in headers if name in (EPOCH, HOLDER)}
        epoch = said.get(EPOCH, "")
        return not (epoch.isascii() and epoch.isdigit()) or self._count(int(epoch[:DIGITS_MAX]), said.get(HOLDER, ""))

    def _count(self, epoch: int, holder: str) -> bool:
        if epoch > self.newest:
            self.newest, self.holder = epoch, holder
        return epoch == self.newest and holder == self.holder


class Fence:
    """Tells which announcements and updates of a run count, of all in the order of their topics."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._versions, self._updates = Epochs(), Epochs()

    def admits(self, event: Event, headers: Sequence[tuple[str, bytes | None]] = ()) -> bool:
        """Return whether an event counts; any that is no announcement and no update does.

        headers: of its record.
        """
        if isinstance(event, PolicyVersion):
            return event.run == self._run and self._versions.admits(event)
        return not isinstance(event, Update) or self._updates.admits_update(headers)


def counted(announced: Iterable[PolicyVersion], *, run: str) -> list[PolicyVersion]:
    """Return the announcements that count, of all in the order of the log: those of this run and its newest epochs."""
    epochs = Epochs()
    return [event for event in announced if event.run == run and epochs.admits(event)]
