"""Where a user's state lies: everything under one directory, with one place for each thing."""

from __future__ import annotations

from pathlib import Path

import msgspec

from streams.errors import SettingsError
from streams.topics import RUN_NAME


class Home(msgspec.Struct, frozen=True):
    """The directory that `--home` names, and the places in it."""

    root: Path

    @property
    def services(self) -> Path:
        """Kafka's and Elasticsearch's data, logs and ports."""
        return self.root / "services"

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.root / "runs"

    @property
    def policies(self) -> Path:
        """Base policies that are unpacked once, such as smollm2."""
        return self.root / "policies"

    def index(self, name: str) -> Path:
        """Return the folder of what was made from one corpus: documents, embeddings, intents, relevance, teachers.

        Raises SettingsError if the name could not be an index's name.
        """
        return self.root / "indexes" / _named("index", name)

    def run(self, name: str) -> Path:
        """Return the folder of one run: settings, checkpoints, log and reports.

        Raises SettingsError if the name could not be a topic's name.
        """
        return self.runs / _named("run", name)


def _named(what: str, name: str) -> str:
    if not RUN_NAME.fullmatch(name):
        raise SettingsError(f"{what}: expected 1 to 63 of a-z, 0-9 and '-', not beginning with '-', got {name!r}")
    return name
