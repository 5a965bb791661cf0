"""The home: one directory for all state of a user, with a fixed place for each part."""

from __future__ import annotations

from pathlib import Path, PosixPath
from typing import Any, TypeVar

import msgspec

from infra.app.renamed import with_new_names
from streams.errors import SettingsError
from streams.topics import RUN_NAME

T = TypeVar("T", bound=msgspec.Struct)

SETTINGS_FILE = "settings.json"
DEFAULT_HOME = Path(".searchloop")


class IndexFolder(PosixPath):
    """The folder of everything made from one corpus: documents, and what the recipes derive from them."""

    @property
    def intents(self) -> Path:
        """Queries made from the attributes, with judgments, by split."""
        return self / "intents"

    @property
    def embeddings(self) -> Path:
        """Embeddings of documents and queries."""
        return self / "embeddings"

    @property
    def relevance(self) -> Path:
        """LESER's relevance model."""
        return self / "relevance"

    @property
    def simulated(self) -> Path:
        """Lists that simulated people may see, by what they were made from."""
        return self / "simulated"

    @property
    def teachers(self) -> Path:
        """LESER's lessons, by what they were made from."""
        return self / "teachers"

    @property
    def demand(self) -> Path:
        """ReLSum's demand: which keys queries ask for, and how often."""
        return self / "summary" / "demand.json"

    @property
    def lists(self) -> Path:
        """ReLSum's judged lists."""
        return self / "summary" / "lists"

    @property
    def labelled(self) -> Path:
        """ReLSum's labelled pairs."""
        return self / "summary" / "labelled"

    @property
    def cross_encoders(self) -> Path:
        """The versions of the cross-encoder."""
        return self / "summary" / "cross-encoders"

    @property
    def adapted_encoders(self) -> Path:
        """Names of adapted versions of the cross-encoder, by what they were adapted to."""
        return self.cross_encoders / "tuned"

    @property
    def retrievers(self) -> Path:
        """The versions of ReSuMe's bi-encoder."""
        return self / "retrievers"

    @property
    def vectors(self) -> Path:
        """Vectors of texts, by bi-encoder version."""
        return self / "vectors"


class RunFolder(PosixPath):
    """The folder of one run: settings, policy, log and reports."""

    @property
    def settings_file(self) -> Path:
        """The settings that the run was started with."""
        return self / SETTINGS_FILE

    @property
    def checkpoints(self) -> Path:
        """One folder per policy version."""
        return self / "checkpoints"

    @property
    def warmup(self) -> Path:
        """The policies before version 0: untaught, reading and taught."""
        return self / "warmup"

    @property
    def untaught(self) -> Path:
        """The tiny policy as it was built, before any warm-up."""
        return self.warmup / "untaught"

    @property
    def taught(self) -> Path:
        """The policy that the warm-up has taught."""
        return self.warmup / "taught"

    @property
    def logs(self) -> Path:
        """The workers' output."""
        return self / "logs"

    @property
    def summaries(self) -> Path:
        """The stored texts of policy versions about products."""
        return self / "summaries"

    @property
    def dev(self) -> Path:
        """The user's own judged dev queries."""
        return self / "dev"


class Home(msgspec.Struct, frozen=True):
    """The directory of `--home`, and the places in it."""

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
        """Base policies, such as smollm2, each unpacked once."""
        return self.root / "policies"

    @property
    def people(self) -> Path:
        """The key and the table of secrets behind the pseudonyms of clients and sessions."""
        return self.root / "people"

    def index(self, name: str) -> IndexFolder:
        """Return the folder of everything made from one corpus. Raises SettingsError if the name is not valid."""
        return IndexFolder(self.root / "indexes" / _named("index", name))

    def run(self, name: str) -> RunFolder:
        """Return the folder of one run. Raises SettingsError if the name is not valid for a topic."""
        return RunFolder(self.runs / _named("run", name))

    def experiment(self, name: str) -> Path:
        """Return the folder of one experiment: its plan, rankings and results.

        Raises SettingsError if the name is not valid as the beginning of a run's name.
        """
        return self.root / "experiments" / _named("experiment", name)

    def existing_run(self, name: str) -> RunFolder:
        """Return the folder of an existing run.

        Raises SettingsError, with the names of all runs, if the run does not exist.
        """
        folder = self.run(name)
        if not folder.is_dir():
            known = sorted(path.name for path in self.runs.glob("*") if path.is_dir() and RUN_NAME.fullmatch(path.name))
            raise SettingsError(
                f"run: expected one of {', '.join(known) or '(there are none yet)'} under {self.runs}, got {name!r}; "
                "name another --run, or train first"
            )
        return folder


def read_settings_file(run_dir: Path, kind: type[T]) -> T:
    """Return the settings that a run was started with, restricted to the fields of `kind`.

    Raises SettingsError if the file is damaged or, with the names of all runs, if the run does not exist.
    """
    try:
        kept = msgspec.json.decode((run_dir / SETTINGS_FILE).read_bytes(), type=dict[str, Any])
        if isinstance(kept.get("settings"), dict):
            kept["settings"] = with_new_names(kept["settings"], "")
        return msgspec.convert(kept, kind, str_keys=True)
    except FileNotFoundError as error:
        known = sorted(path.parent.name for path in run_dir.parent.glob(f"[!.]*/{SETTINGS_FILE}"))
        raise SettingsError(
            f"--run: expected one of {', '.join(known) or 'no runs yet'}, got {run_dir.name!r}. Run: searchloop train"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"{run_dir / SETTINGS_FILE}: {error}. It is damaged or from another version of searchloop: start a new run "
            "with --run NAME"
        ) from error


def _named(what: str, name: str) -> str:
    if not RUN_NAME.fullmatch(name):
        raise SettingsError(f"{what}: expected 1 to 63 of a-z, 0-9 and '-', not beginning with '-', got {name!r}")
    return name
