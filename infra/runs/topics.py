"""A run's topics, wired: the run's folder in the home tells which of them are its own (`streams.provisioning`)."""

from __future__ import annotations

from infra.app.app import App
from infra.app.home import Home
from learner.checkpoints import CheckpointError, load_current
from storage.ledger import LEDGER
from streams.clients import create_derived_topics, create_topics, provisioned
from streams.kafka_settings import KafkaSettings
from streams.provisioning import Provisioned, TakenError
from streams.topic_plans import plan_topics
from streams.topics import FOREVER, kind_of


def make_topics(app: App, run: str) -> None:
    """Make the topics of a run whose folder exists, or use the ones that are its own.

    Raises TakenError (a SettingsError) if a new run's topics belong to another one, DeliveryError if one does not fit.
    """
    try:
        create_topics(app.connections.kafka, run, folder=app.home.run(run), known=is_known(app.home, run))
    except TakenError as error:
        # The new run would take the other's updates for its own, and an untaught policy for a taught one.
        kinds = {kind_of(name) for name in error.topics}
        raise TakenError(
            f"run {run!r}: expected topics without records for a new run, got "
            f"{'updates' if 'updates' in kinds else 'records'} of another run of that name, whose folder is gone "
            f"({', '.join(error.topics)}). Choose another --run NAME",
            error.topics,
        ) from error


def make_derived_topics(app: App, run: str) -> None:
    """Make the topics that a monitor derives from a run, or use the ones that are its own.

    Raises as `make_topics` does.
    """
    create_derived_topics(app.connections.kafka, run, folder=app.home.run(run), known=is_known(app.home, run))


def make_new_topics(kafka: KafkaSettings, into: str, *, option: str) -> Provisioned:
    """Make the topics of a run that is copied from somewhere else; none of them may hold records.

    Copied records keep their times, and Kafka deletes by these times. So these topics keep their records for ever.
    option: the option that names the run. Raises TakenError if the name is taken, DeliveryError if a topic does not
    fit.
    """
    plans = plan_topics(into, partitions=kafka.partitions, replication=kafka.replication, retention_ms=FOREVER)
    try:
        return provisioned(kafka, plans, run=into)
    except TakenError as error:
        raise TakenError(
            f"{option}: expected a new run, but in Kafka {', '.join(error.topics)} hold records; choose another name",
            error.topics,
        ) from error


def require_no_run(home: Home, into: str, *, option: str) -> None:
    """Raise TakenError if a run of this name has a folder in the home."""
    if home.run(into).exists():
        raise TakenError(f"{option}: expected a new run, but {home.run(into)} exists; choose another name", ())


def is_known(home: Home, run: str) -> bool:
    """Return whether a run has stored or learned anything, so that records in its topics must be its own.

    A run that begins with another run's policy has steps, but none of them is its own.
    """
    folder = home.run(run)
    if (folder / LEDGER).exists():
        return True
    if not (folder.checkpoints).is_dir():
        return False
    try:
        update = load_current(folder.checkpoints)[1].update
    except CheckpointError:
        return False
    return update is not None and update.run == run
