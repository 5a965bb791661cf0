"""What every test may ask for: real services, started once for the whole session, and names that nobody else has.

SEARCHLOOP_TEST_KAFKA and SEARCHLOOP_TEST_ELASTICSEARCH (host:port, URL) let the tests run on services that are up
already, which spares their start while you write a test.
"""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports torch: two threads of one test on a busy core are ten times slower than one.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Where several processes share the tests, those ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

from services.local import Endpoints, LocalServices  # noqa: E402
from services.settings import LocalSettings  # noqa: E402

# How long an example takes is the machine's business; a test that is busy elsewhere must not fail for it.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def local_services() -> Iterator[Endpoints]:
    """Give the addresses of a Kafka and an Elasticsearch; they end with the session, also when it is killed."""
    kafka, elasticsearch = (os.environ.get(f"SEARCHLOOP_TEST_{name}", "") for name in ("KAFKA", "ELASTICSEARCH"))
    if kafka and elasticsearch:
        yield Endpoints(kafka=kafka, elasticsearch=elasticsearch)
        return
    with private_home() as home:
        services = LocalServices(home, LocalSettings(quick_start=True), attached=True)
        endpoints = services.up()
        yield endpoints
        services.remove()


@pytest.fixture
def unique_name() -> str:
    """Give a name that no other test has; it may name a run, an index, a topic or a consumer group."""
    return f"test-{uuid.uuid4().hex[:12]}x"  # Never digits alone at the end: an index so named is a version.


def private_home() -> tempfile.TemporaryDirectory[str]:
    """Give a folder for a home that the user nobody may enter, unlike pytest's own (mode 700)."""
    home = tempfile.TemporaryDirectory(prefix="searchloop-tests-", ignore_cleanup_errors=True)
    Path(home.name).chmod(0o755)
    return home
