"""The way from the spool to Kafka goes on after any failure, and ends at once while Kafka is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.serving import forwarding
from infra.serving.forwarding import Forwarder
from streams.delivery import DeliverySettings
from streams.errors import SettingsError
from streams.kafka_settings import KafkaSettings
from streams.spool import Spool, Spooled

EVENT = Spooled(kind="actions", key=b"k", value=b"v")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", bytes_max=1_000_000)
    made.append([EVENT])
    yield made
    made.close()


def forwarder(spool: Spool, prepare: threading.Event, failures: list[Exception]) -> Forwarder:
    def fail() -> None:
        prepare.set()
        if failures:
            raise failures.pop(0)
        raise SettingsError("Kafka is still away")

    return Forwarder(spool, "live", KafkaSettings(), DeliverySettings(), fail)


def test_a_failure_that_nobody_expects_does_not_end_it(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PAUSE_SECONDS", 0.01)
    failures: list[Exception] = [RuntimeError("a fault of a library"), ZeroDivisionError()]
    made = forwarder(spool, threading.Event(), failures)
    made.start()
    deadline = time.monotonic() + 20
    while made.trouble != "Kafka is still away" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (made.trouble, failures) == ("Kafka is still away", [])
    assert spool.waiting_bytes > 0
    made.stop(10)


def test_it_ends_at_once_while_kafka_is_away_and_the_events_stay(spool: Spool) -> None:
    called = threading.Event()
    made = forwarder(spool, called, [])
    made.start()
    assert called.wait(20)
    while not made.trouble:
        time.sleep(0.01)
    began = time.monotonic()
    made.stop(60)
    assert time.monotonic() - began < 10
    assert spool.read(10)[0] == [EVENT]
