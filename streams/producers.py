"""kafka-python's producer with a bounded close: unacknowledged records do not hold up a worker that stops."""

from __future__ import annotations

import contextlib
import logging

from kafka import KafkaProducer
from kafka.errors import KafkaError

CLOSE_SECONDS = 3.0  # A worker gets less than 5 s between the signal and its end.
log = logging.getLogger(__name__)


class Producer(KafkaProducer):  # type: ignore[misc]  # kafka-python's types are not read
    """A producer whose `close` ends in time, whatever the cluster does."""

    def close(self, timeout: float | None = None, null_logger: bool = False) -> None:
        """Wait briefly for pending records, then drop them; nothing that depends on them has been committed.

        timeout: seconds, CLOSE_SECONDS if None. By default kafka-python 3.0.12 waits forever; with too few in-sync
        replicas it waits for the 120 s of its delivery timeout. With a timeout, it raises when the time is over and
        leaves its thread running.
        """
        try:
            super().close(timeout=CLOSE_SECONDS if timeout is None else timeout, null_logger=null_logger)
        except KafkaError as error:
            log.warning("dropped unacknowledged records: %s", error)
            sender = getattr(self, "_sender", None)
            if sender is not None:
                with contextlib.suppress(KafkaError):
                    sender.force_close()
                    sender.join(1)
