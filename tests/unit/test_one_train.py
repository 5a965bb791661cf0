"""One `train` and one sink for a run in a home: the second is refused before it disturbs the first."""

from __future__ import annotations

from pathlib import Path

import pytest

import storage.workers
from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.runs import training
from infra.runs.training import _only_train
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.sink import SinkSettings
from storage.workers import run_sink
from streams.delivery import DeliverySettings
from streams.errors import DeliveryError, SettingsError
from streams.events import PolicyRef, PolicyVersion
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.shared_store import StoreSettings, open_store
from streams.stopping import Stop

RUN = "leser-shop-0"


def announced(**told: object) -> PolicyVersion:
    policy = PolicyRef(lineage="1-ab12cd", step=1, sha256="0" * 64)
    return PolicyVersion(run=RUN, policy=policy, parent=None, path="checkpoints/1-ab12cd-000001", **told)  # type: ignore[arg-type]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[PolicyVersion]:
    """Give the announcements in the run's log, which a test adds to."""
    found: list[PolicyVersion] = []
    monkeypatch.setattr(training, "read_events", lambda kafka, run, kind: found)
    return found


def test_a_second_train_of_a_run_is_refused_while_the_first_one_works(tmp_path: Path, log: list[PolicyVersion]) -> None:
    app = App(Home(tmp_path), settings=Settings())
    with (
        _only_train(app, RUN),
        pytest.raises(DeliveryError, match=f"another train of run '{RUN}' works in this home"),
        _only_train(app, RUN),
    ):
        raise AssertionError("two publish requests")
    with _only_train(app, RUN) as lease:
        assert lease is None


def test_a_run_that_was_shared_does_not_go_on_without_its_store(tmp_path: Path, log: list[PolicyVersion]) -> None:
    app = App(Home(tmp_path), settings=Settings())
    log.append(announced())
    with _only_train(app, RUN):
        pass
    log.append(announced(epoch=3, holder=f"{RUN}-learner-a"))
    with (
        pytest.raises(SettingsError, match=rf"store\.url: .* epoch 3 of {RUN}-learner-a, and its readers ignore"),
        _only_train(app, RUN),
    ):
        raise AssertionError("nobody would listen to its learner")


def test_a_second_sink_of_a_machine_is_refused_before_the_broker_takes_it_for_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TakenError(RuntimeError):
        """The lease was asked for."""

    asked: list[str] = []

    class FakeLease:
        """The broker's answer, in the middle of which a second sink begins."""

        def __init__(self, run: str, role: str, **_: object) -> None:
            asked.append(role)

        def __enter__(self) -> FakeLease:
            if len(asked) == 1:
                with pytest.raises(StorageError, match="another sink of this machine holds this file"):
                    run_sink(post, database=tmp_path / LEDGER, sink=SinkSettings())
            raise TakenError

        def __exit__(self, *_: object) -> None:
            """Never comes."""

    monkeypatch.setattr(storage.workers, "Lease", FakeLease)
    store = open_store(StoreSettings(url=f"file://{tmp_path}/store"))
    post = Post(
        run=RUN,
        member="sink-1",
        kafka=KafkaSettings(),
        delivery=DeliverySettings(),
        stop=Stop(),
        store=store,
        machine="a",
    )
    with pytest.raises(TakenError):
        run_sink(post, database=tmp_path / LEDGER, sink=SinkSettings())
    assert asked == ["sink"]
