"""A finished run once more: bit-equal from its log, scored anew under another reward, and its requests as load."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from infra.app.app import App
from infra.commands.replay import replay
from infra.recipes.recipe import Prepared
from infra.replaying.importing import import_feedback
from infra.replaying.replays import Load, Selection, counterfactual, load
from infra.replaying.reproduction import reproduce
from infra.runs.verification import verify_run
from learner.checkpoints import load_current
from storage.errors import StorageError
from storage.log import open_log
from storage.recorded import Limits
from streams.clients import connect_producer, create_topics
from streams.delivery import Outbox
from streams.errors import DeliveryError, SettingsError
from streams.events import Request
from streams.stopping import Stop
from streams.topics import version_name
from streams.traffic_events import Feedback
from tests.loop.conftest import SMALL, UPDATES, quiet
from tests.pages import commands_in

GROUPS = UPDATES * SMALL.batch.groups
# The generator may have answered the last version too before it was stopped; what trained lies below this.
TRAINED = Selection(run="streamed", end=Limits(offset=GROUPS))


def test_the_same_log_and_checkpoint_give_bit_equal_weights(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    made = reproduce(app, "streamed", begin="0", updates_max=None, report=quiet)
    _, manifest = load_current(app.home.run("streamed") / "checkpoints")
    assert (made.updates, made.different) == (UPDATES, None)
    assert made.weights_sha256 == manifest.policy.sha256
    later = reproduce(app, "streamed", begin="2", updates_max=1, report=quiet)
    assert (later.updates, later.different) == (1, None)
    said = CliRunner().invoke(replay, ["reproduce", "--run", "streamed"], obj=app, catch_exceptions=False)
    assert f"{UPDATES} updates made again" in said.stdout and said.exit_code == 0


def test_a_run_that_cannot_be_made_again_says_where_it_parts(
    streamed: tuple[App, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, _ = streamed
    import infra.replaying.reproduction

    whole = infra.replaying.reproduction._batch

    def without_the_first(*arguments: object, **options: object) -> object:
        batch = whole(*arguments, **options)  # type: ignore[arg-type]
        return msgspec.structs.replace(batch, fresh=batch.fresh[1:])

    monkeypatch.setattr(infra.replaying.reproduction, "_batch", without_the_first)
    made = reproduce(app, "streamed", begin="0", updates_max=None, report=quiet)
    assert made.different is not None
    said = CliRunner().invoke(replay, ["reproduce", "--run", "streamed", "--json"], obj=app, catch_exceptions=False)
    assert said.exit_code == 1 and json.loads(said.stdout)["different"] == made.different


def rewards_of(folder: Path) -> dict[str, list[object]]:
    with open_log(folder) as log:
        return {
            row["group_id"]: row["rewards"]
            for row in log.rows(
                "SELECT group_id, array_agg(reward ORDER BY candidate) AS rewards FROM first_outcomes GROUP BY group_id"
            )
        }


def test_recorded_generations_scored_as_before_train_the_same_weights(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    again = counterfactual(app, TRAINED, into="again", assignments=[], begin="0", report=quiet)
    assert (again.groups, again.updates) == (GROUPS, UPDATES)
    assert again.reward == again.reward_recorded
    recorded = rewards_of(app.home.run("streamed"))
    assert all(rewards == recorded[group] for group, rewards in rewards_of(app.home.run("again")).items())
    _, before = load_current(app.home.run("streamed") / "checkpoints")
    _, after = load_current(app.home.run("again") / "checkpoints")
    assert after.policy.sha256 == before.policy.sha256
    account = verify_run(app, "again", rebuild=True, offline=False)
    assert account.findings == () and account.stages[2].taken == GROUPS


def test_another_reward_trains_another_policy_without_a_single_generation(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    other = counterfactual(
        app, TRAINED, into="sized", assignments=["environment.reward.size_weight=1"], begin="0", report=quiet
    )
    assert other.updates == UPDATES
    assert other.reward != other.reward_recorded
    recorded, sized = rewards_of(app.home.run("streamed")), rewards_of(app.home.run("sized"))
    assert set(sized) <= set(recorded) and len(sized) == GROUPS
    with open_log(app.home.run("sized")) as log:
        assert log.rows("SELECT count(*) AS n FROM generations")[0]["n"] == GROUPS
        assert log.rows("SELECT count(*) AS n FROM requests")[0]["n"] == 0
    with pytest.raises(SettingsError, match="expected a new run"):
        counterfactual(app, TRAINED, into="sized", assignments=[], begin="0", report=quiet)


def test_traffic_from_outside_is_load_for_a_frozen_policy(streamed: tuple[App, Prepared]) -> None:
    app, prepared = streamed
    searches = [
        Feedback(
            feedback_id=f"shop:{number}",
            query_id=str(number),
            query=prepared.asked[number % 5].query,
            application="shop",
            at_ms=1_700_000_000_000 + 60_000 * number,
        )
        for number in range(14)
    ]
    assert import_feedback(app, searches, into="traffic", index="small", report=quiet) == 14
    assert verify_run(app, "traffic", rebuild=True, offline=False).findings == ()
    result = load(
        app,
        Selection(run="traffic", begin=Limits(offset=2), end=Limits(moment_ms=searches[12].at_ms)),
        into="loaded",
        assignments=[],
        begin="latest",
        like="streamed",
        learning=False,
        speed=600.0,
        stop=Stop(),
        report=quiet,
    )
    assert (result.requests, result.rewards) == (10, 10)
    assert result.latency_p95_seconds is not None and 0 <= result.latency_p50_seconds <= result.latency_p95_seconds
    _, manifest = load_current(app.home.run("streamed") / "checkpoints")
    with open_log(app.home.run("loaded")) as log:
        (row,) = log.rows("SELECT min(step) AS low, max(step) AS high, any_value(split) AS split FROM generations")
    assert row == {"low": manifest.policy.step, "high": manifest.policy.step, "split": "live"}
    assert verify_run(app, "loaded", rebuild=True, offline=False).findings == ()


def test_recorded_requests_teach_a_policy_that_learns_on_as_fast_as_it_can(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    result = load(
        app,
        TRAINED,
        into="learned",
        assignments=[],
        begin="0",
        like="streamed",
        learning=True,
        speed=math.inf,
        stop=Stop(),
        report=quiet,
    )
    _, manifest = load_current(app.home.run("learned") / "checkpoints")
    assert (result.requests, result.rewards) == (GROUPS, GROUPS)
    assert (manifest.policy.step, version_name(manifest.policy)) == (UPDATES, result.policy)
    with open_log(app.home.run("learned")) as log:
        (row,) = log.rows("SELECT count(DISTINCT step) AS versions, count(*) AS n FROM first_generations")
    assert row == {"versions": UPDATES, "n": GROUPS}
    assert verify_run(app, "learned", rebuild=True, offline=False).findings == ()


def test_a_learning_load_answers_all_learns_from_what_may_train_and_ends_by_itself(
    streamed: tuple[App, Prepared], unique_name: str
) -> None:
    app, prepared = streamed
    kafka = app.connections.kafka
    create_topics(kafka, unique_name)
    app.home.run(unique_name).mkdir()
    splits = ["train", "live", "live", "train", "live", "train", "train", "live", "live", "train"]
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="test", settings=app.settings.delivery)
    for number, split in enumerate(splits):
        asked = prepared.asked[number]
        outbox.send(
            Request(
                request_id=f"{number}",
                run=unique_name,
                query_id=asked.query_id,
                query=asked.query,
                index=prepared.index,
                split=split,
            )
        )
    outbox.flush()
    producer.close()

    def learn(selection: Selection, into: str) -> Load:
        return load(
            app,
            selection,
            into=into,
            assignments=["batch.wait_seconds=1"],
            begin="0",
            like="streamed",
            learning=True,
            speed=math.inf,
            stop=Stop(),
            report=quiet,
        )

    result = learn(Selection(run=unique_name), f"{unique_name}-learned")
    assert (result.requests, result.rewards) == (len(splits), len(splits))
    _, manifest = load_current(app.home.run(f"{unique_name}-learned") / "checkpoints")
    # Five may train and four make a batch: the last one stands alone in a short batch.
    assert manifest.policy.step == 2
    live = Selection(run=unique_name, begin=Limits(offset=1), end=Limits(offset=3))
    with pytest.raises(DeliveryError, match="expected requests of split 'train', found 2 of split 'live'"):
        learn(live, f"{unique_name}-live")
    assert not app.home.run(f"{unique_name}-live").exists()


def test_the_worked_examples_work(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    page = [line for line in commands_in("infra/REPLAY.md") if "--run shop-0 " in f"{line} "]
    replays = [shlex.split(line)[2:] for line in page if line.startswith("searchloop replay ")]
    assert [arguments[0] for arguments in replays] == ["reproduce", "counterfactual", "load", "load", "copy"]
    for arguments in replays:
        known = [each.replace("shop-0", "streamed" if each == "shop-0" else "example") for each in arguments]
        if arguments[0] == "copy":
            known[known.index("100")], known[known.index("200")] = "2", "9"
        said = CliRunner().invoke(replay, known, obj=app, catch_exceptions=False)
        assert said.exit_code == 0, f"{' '.join(arguments)}: {said.output}"


def test_what_cannot_be_replayed_is_a_clear_error(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    with pytest.raises(DeliveryError, match=r"expected at least 64 groups .* found 16"):
        counterfactual(app, TRAINED, into="wide", assignments=["batch.groups=64"], begin="0", report=quiet)
    with pytest.raises(SettingsError, match=r"batch\.group: unknown setting, in --set"):
        counterfactual(app, TRAINED, into="wide", assignments=["batch.group=64"], begin="0", report=quiet)
    with pytest.raises(SettingsError, match=r"--set: expected TABLE\.KEY=VALUE"):
        counterfactual(app, TRAINED, into="wide", assignments=["groups"], begin="0", report=quiet)
    with pytest.raises(SettingsError, match="never writes to its source"):
        counterfactual(app, TRAINED, into="streamed", assignments=[], begin="0", report=quiet)
    with pytest.raises(StorageError, match="expected updates after step 4"):
        reproduce(app, "streamed", begin="latest", updates_max=None, report=quiet)
