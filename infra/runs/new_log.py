"""A log that one call writes whole: if the call fails, the run's topics and its folder are removed again.

While the call is at work, `unfinished.json` in the run's folder holds the ids of the topics that it has made, and the
call holds a lock on the file. A call that was killed leaves the file without the lock. The next call of the same name
removes everything that the killed one made, and begins anew. Older topics and files are never touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from infra.app.home import Home
from infra.runs.topics import make_new_topics, require_no_run
from streams.clients import delete_made_topics, existing_topics
from streams.errors import DeliveryError
from streams.kafka_settings import KafkaSettings
from streams.locks import take
from streams.provisioning import Provisioned, TakenError

UNFINISHED = "unfinished.json"
GONE_SECONDS = 10.0
log = logging.getLogger(__name__)


@contextlib.contextmanager
def new_log(home: Home, kafka: KafkaSettings, into: str, *, option: str) -> Iterator[None]:
    """Make the topics and the folder of the run `into`; remove both if the block raises.

    Raises TakenError if the name is taken, DeliveryError if a topic does not fit.
    """
    folder = home.run(into)
    _remove_unfinished(kafka, folder, option=option)
    require_no_run(home, into, option=option)
    folder.mkdir(parents=True)
    with (folder / UNFINISHED).open("wb") as marker:
        _lock(marker, folder, option=option)
        made = Provisioned(names=(), made={})
        try:
            made = make_new_topics(kafka, into, option=option)
            marker.write(msgspec.json.encode(made))
            marker.flush()
            os.fsync(marker.fileno())
            yield
        except BaseException:
            try:
                _remove(kafka, folder, made)
            except DeliveryError as error:  # The marker stays, and the next call removes the rest.
                log.warning("%s: could not be removed (%s); run the same command again to remove it", folder, error)
            raise
        (folder / UNFINISHED).unlink()


@contextlib.contextmanager
def undone_if_it_fails(kafka: KafkaSettings, made: Provisioned) -> Iterator[None]:
    """Delete the topics that were made for the block if the block raises."""
    try:
        yield
    except BaseException:
        try:
            _delete_topics(kafka, made)
        except DeliveryError as error:
            log.warning("the topics %s could not be deleted: %s", ", ".join(made.made), error)
        raise


def _remove_unfinished(kafka: KafkaSettings, folder: Path, *, option: str) -> None:
    """Remove the topics and the folder that a killed call of this name had made."""
    with contextlib.suppress(FileNotFoundError), (folder / UNFINISHED).open("r+b") as marker:
        _lock(marker, folder, option=option)
        try:
            made = msgspec.json.decode(marker.read(), type=Provisioned)
        except msgspec.DecodeError:  # It was killed before it had written a record.
            made = Provisioned(names=(), made={})
        _remove(kafka, folder, made)


def _lock(marker: BinaryIO, folder: Path, *, option: str) -> None:
    if not take(marker):
        raise TakenError(
            f"{option}: expected a new run, but another call is writing {folder}; wait for it, or choose another name",
            (),
        )


def _remove(kafka: KafkaSettings, folder: Path, made: Provisioned) -> None:
    _delete_topics(kafka, made)
    shutil.rmtree(folder)


def _delete_topics(kafka: KafkaSettings, made: Provisioned) -> None:
    """Delete topics, and wait until they are gone, because the next call may make them anew at once."""
    if not made.made:
        return
    delete_made_topics(kafka, made)
    deadline = time.monotonic() + GONE_SECONDS
    while existing_topics(kafka, made.made) and time.monotonic() < deadline:
        time.sleep(0.1)
