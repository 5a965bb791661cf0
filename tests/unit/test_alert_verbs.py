"""`searchloop alerts` on a run's log: the states, silences, and the back-test with and without labels."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from infra.app.app import App
from infra.app.home import Home
from infra.commands.alerts import alerts
from infra.monitoring.alert_files import read_labels, read_silences
from infra.monitoring.alert_settings import AlertSettings
from storage.ledger import LEDGER, build_batch, open_ledger, store_batch
from streams.clock import now_ms
from streams.errors import InputError, SettingsError
from tests.stored_events import generation, record, reward, update

replace = msgspec.structs.replace
BEGIN_MS = 1_700_000_000_000
STEP_MS = 10_000
BAD = range(10, 16)
EVIL = "<script>\x1b[31m\u202e"


@pytest.fixture
def app(tmp_path: Path) -> App:
    """An app with a run whose versions 10 to 15 write invalid texts; one version each ten seconds."""
    app = App(Home(tmp_path / "home"))
    folder = app.home.run("shop-0")
    folder.mkdir(parents=True)
    records = []
    for step in range(30):
        at_ms = BEGIN_MS + step * STEP_MS
        made = reward(step, step=step)
        if step in BAD:
            made = replace(made, outcomes=tuple(replace(each, valid=False, reward=0.0) for each in made.outcomes))
        records.append(replace(record(generation(step, step=step), step), timestamp_ms=at_ms))
        records.append(replace(record(made, step), timestamp_ms=at_ms))
        records.append(replace(record(update(step + 1, [step]), step), timestamp_ms=at_ms + 1))
    connection = open_ledger(folder / LEDGER, memory_mib=200, threads=1)
    store_batch(connection, build_batch(records))
    connection.close()
    return app


def call(app: App, *arguments: str) -> Result:
    return CliRunner().invoke(alerts, arguments, obj=app, prog_name="alerts")


def states(app: App) -> dict[str, dict[str, Any]]:
    done = call(app, "list", "--run", "shop-0", "--json")
    assert done.exit_code == 0, done.output
    return {each["rule"]: each for each in json.loads(done.stdout)}


def rules_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return path


def labels_file(tmp_path: Path, *faults: tuple[str, int, int]) -> str:
    tables = [{"name": name, "from": from_ms, "until": until_ms} for name, from_ms, until_ms in faults]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"fault": tables}))
    return str(path)


def test_list_shows_every_rule_with_its_state_and_rows(app: App, tmp_path: Path) -> None:
    assert states(app)["format"]["state"] in ("ok", "recovered")
    rules = rules_file(tmp_path, "[rules.format.when.low]\nnewest = 1000\n")
    app = app.with_settings(replace(app.settings, alerts=AlertSettings(rules=str(rules))))
    assert states(app)["format"]["state"] == "firing"
    said = call(app, "list", "--run", "shop-0").output
    assert "80.0% of the answers keep the format" in " ".join(said.split())
    assert "NOT valid" in said


def test_a_silence_shows_and_ends(app: App) -> None:
    before = now_ms()
    done = call(app, "silence", "format", "--for", "2h", "--run", "shop-0")
    assert (done.exit_code, "silenced until" in done.output) == (0, True)
    (silence,) = read_silences(app.home.run("shop-0"))
    assert before + 7_200_000 <= silence.until_ms <= now_ms() + 7_200_000
    assert states(app)["format"]["state"] == "silenced"
    call(app, "silence", "format", "--for", "3d", "--run", "shop-0")
    assert len(read_silences(app.home.run("shop-0"))) == 1
    assert "no longer silenced" in call(app, "silence", "format", "--end", "--run", "shop-0").output
    assert read_silences(app.home.run("shop-0")) == ()


def test_the_backtest_prints_hits_misses_false_alarms_and_the_time_to_detection(app: App, tmp_path: Path) -> None:
    from_ms, until_ms = BEGIN_MS + BAD[0] * STEP_MS, BEGIN_MS + BAD[-1] * STEP_MS
    hit = labels_file(tmp_path, ("texts broke", from_ms, until_ms), (EVIL, BEGIN_MS, BEGIN_MS + 1))
    done = call(app, "backtest", "--run", "shop-0", "--labels", hit)
    assert done.exit_code == 0, done.output
    assert "texts broke: found by format after 0 s, 1 versions" in done.output
    assert "missed" in done.output
    assert not {"\x1b", "\u202e"} & set(done.output)
    assert "hits 1, misses 1, false alarms 0" in done.output
    wrong = labels_file(tmp_path, ("quiet", BEGIN_MS, BEGIN_MS + 1))
    result = json.loads(call(app, "backtest", "--run", "shop-0", "--labels", wrong, "--json").stdout)
    assert [each["rule"] for each in result["false_alarms"]] == ["format"]


def test_without_labels_the_backtest_prints_when_each_rule_would_have_fired(app: App) -> None:
    done = call(app, "backtest", "--run", "shop-0", "--json")
    changes = [each for each in json.loads(done.stdout)["transitions"] if each["rule"] == "format"]
    assert [(each["state"], (each["at_ms"] - BEGIN_MS) // STEP_MS) for each in changes] == [
        ("ok", 0), ("firing", BAD[0]), ("recovered", BAD[-1] + 5),
    ]  # fmt: skip


def test_a_window_counts_only_what_happens_in_it(app: App) -> None:
    since = datetime.fromtimestamp((BEGIN_MS + 12 * STEP_MS) / 1000, tz=UTC).isoformat()
    result = json.loads(call(app, "backtest", "--run", "shop-0", "--from", since, "--json").stdout)
    assert [each["state"] for each in result["transitions"] if each["rule"] == "format"] == ["recovered"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("list --run nobody", "run: expected one of shop-0"),
        ("silence format --run shop-0", "expected one of --for and --end"),
        ("silence format --for 2h --end --run shop-0", "expected one of --for and --end"),
        ("silence format --for soon --run shop-0", "--for: expected a duration such as 90s"),
        ("silence format --for -2h --run shop-0", "--for: expected a duration such as 90s"),
        ("silence nothing --for 2h --run shop-0", "RULE: expected one of stall, dead groups"),
        ("backtest --run shop-0 --from later", "--from: expected a moment"),
        ("backtest --run shop-0 --from 1h --until 2h", "--until: expected a time after --from 1h"),
        ("backtest --run shop-0 --labels none.toml", "none.toml: expected a file of labels"),
        ("backtest --run shop-0 --rules none.toml", "none.toml: expected a TOML file of alert rules"),
    ],
)
def test_wrong_options_are_refused(app: App, line: str, says: str) -> None:
    refused = call(app, *line.split())
    assert refused.exit_code != 0
    assert says in refused.output + str(refused.exception)
    assert read_silences(app.home.run("shop-0")) == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected [[fault]] tables"),
        ("[[fault]]\nfrom = 1\nuntil = 2", "fault 1, name: expected a text, got None"),
        ("[[fault]]\nname = 'a'\nfrom = 3\nuntil = 2", "fault 1, until: expected a time after from"),
        ("[[fault]]\nname = 'a'\nfrom = 'soon'\nuntil = 2", "fault 1, from: expected a time such as"),
        ("[[fault]]\nname = 'a'\nfrom = true\nuntil = 2", "fault 1, from: expected a time such as"),
        ("[[fault]]\nname = 'a'\nfrom = 1\nuntil = 2\nrules = ['money']", "fault 1, rules: expected some of entropy"),
        ("[[fault]]\nname = 'a'\nfrom = 1\nuntil = 2\nwhy = 1", "fault 1: why: unknown field"),
        ("fault = [3]", "fault 1: expected a table with name, from and until, got 3"),
        ("[[fault", "expected TOML, or JSON in a file named .json, got:"),
    ],
)
def test_wrong_labels_are_refused_with_their_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "labels.toml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_labels(path, rules=["entropy"])
    assert says in str(refused.value)
    assert str(path) in str(refused.value)


def test_times_of_labels_may_be_toml_times_texts_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "labels.toml"
    times = ("2023-11-14T22:13:20Z", "'2023-11-14T23:13:20+01:00'", "1700000000000")
    path.write_text("".join(f"[[fault]]\nname = 'a'\nfrom = {time}\nuntil = {time}\n" for time in times))
    assert {label.from_ms for label in read_labels(path, rules=[])} == {1_700_000_000_000}


def test_damaged_silences_are_named(app: App) -> None:
    path = app.home.run("shop-0") / "alerts" / "silences.json"
    path.parent.mkdir()
    path.write_text('[{"rule": 3}]')
    with pytest.raises(SettingsError, match=r"silences\.json: expected a list of silences"):
        read_silences(app.home.run("shop-0"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"webhook": "ftp://a/b"}, "begins with http:// or https://"),
        ({"webhook": "file:///etc/passwd"}, "begins with http:// or https://"),
        ({"webhook": "http://"}, "names a host"),
        ({"webhook": "http://a:b@c/"}, "without user and password"),
        ({"webhook": "http://a b/"}, "visible ASCII"),
        ({"webhook": "http://example.org/x", "webhook_secret": "hush-hush"}, "expected https:// with a secret"),
        ({"webhook": "http://[::1/"}, "expected a URL such as"),
    ],
)
def test_a_wrong_webhook_is_refused(settings: dict[str, str], says: str) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError), match=says):
        AlertSettings(**settings)


def test_a_secret_may_go_to_https_and_to_this_machine() -> None:
    for url in ("https://example.org/x", "http://127.0.0.1:9/x", "http://[::1]:9/x", "http://localhost/x"):
        assert "hush" not in repr(AlertSettings(webhook=url, webhook_secret="hush-hush"))
