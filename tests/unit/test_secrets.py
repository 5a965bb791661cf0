"""A secret is used and never shown: not by a print, an error, a settings file, a log line or a command line."""

from __future__ import annotations

import json
import logging
import os
import pickle
import stat
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra.app.app import App, ConnectionTables, VllmTables
from infra.app.home import Home
from infra.app.layers import LIST_SETTINGS, assignments_layer, combine, environment_layer, known_keys, read_toml
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.cli import RedactingFormatter
from learner.vllm import VllmClient, VllmSettings
from search_env.engine.client import ElasticsearchSettings, connect
from services.private_variables import FROM_PIPE, for_role, is_private, piped, public, take_private
from services.roles import with_credentials
from services.secret_files import warn_if_open
from services.security import write_private
from streams.clients import connection_options
from streams.errors import SearchloopError, SettingsError
from streams.kafka_settings import KafkaSettings
from streams.secrets import HIDDEN, Secret, redact, reveal, secret_paths

SECRETS = tuple(secret_paths(Settings))
# What people's passwords look like, and what has tripped readers: JSON, TOML and shell signs, other scripts, formats.
PASSWORDS = (
    "[geheim-1",
    "[1, 2]",
    "{geheim-2}",
    '"geheim-3"',
    "null-geheim",
    "true-geheim",
    "123456789",
    "geheim %s {} 4",
    "geheim=5",
    "Schlüssel-6",
    "Zeichen-7",
    "Zeichen-8",
    "Zeichen-9",
)


def variable(path: str) -> str:
    return "SEARCHLOOP_" + path.upper().replace(".", "__")


def at(settings: msgspec.Struct, path: str) -> Any:
    value: Any = settings
    for part in path.split("."):
        value = getattr(value, part)
    return value


def test_every_setting_that_sounds_like_a_secret_is_one() -> None:
    assert SECRETS == (
        "kafka.sasl_password",
        "kafka.ssl_key_password",
        "elasticsearch.api_key",
        "elasticsearch.password",
        "vllm.api_key",
        "serve.token",
        "ui.token",
        "ui.server_token",
        "alerts.webhook_secret",
    )


def test_a_secret_is_a_text_for_who_uses_it_and_shows_itself_in_no_way() -> None:
    secret = Secret("geheimes-wort")
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>20}", "%s" % secret, "{}".format(secret)]  # noqa: UP031, UP032
    assert not any("geheim" in text for text in shown)
    assert (secret, reveal(secret), type(reveal(secret))) == ("geheimes-wort", "geheimes-wort", str)
    with pytest.raises(TypeError):
        msgspec.json.encode({"password": secret})
    again = pickle.loads(pickle.dumps(secret))
    assert isinstance(again, Secret)


@pytest.mark.parametrize("path", SECRETS)
@pytest.mark.parametrize("password", PASSWORDS)
def test_a_secret_variable_is_taken_as_it_stands_and_never_printed(path: str, password: str) -> None:
    if path.endswith(("api_key", "webhook_secret")):
        password = password.replace("ü", "ue")  # A key is ASCII.
    layer = environment_layer({variable(path): password})
    settings = combine(Settings, [("the environment", layer)])
    assert at(settings, path) == password
    assert password not in repr(settings)
    assert password not in str(settings)


@pytest.mark.parametrize("path", SECRETS)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda path: f"{path.replace('.', ']' + chr(10))} = 1",
        lambda path: "[{}]\n{} = ['geheimes-wort']".format(*path.split(".")),
        lambda path: "[{}]\n{} = {{ x = 'geheimes-wort' }}".format(*path.split(".")),
        lambda path: "[[{}]]\n{} = 'geheimes-wort'".format(*path.split(".")),
        lambda path: "{} = 'geheimes-wort'".format(path.split(".")[0]),
        lambda path: "[{}]\n{} = 19840101123".format(*path.split(".")),
        lambda path: '[{}]\n{} = "geheimes-wort\\n\\u0001"'.format(*path.split(".")),
        lambda path: "[{}]\n{} = 'geheimes-wort'\n{}_file = 'x'".format(*path.split("."), path.split(".")[1]),
        lambda path: "[{}]\n{} = 'geheimes-wort'\nunbekannt = 'geheimes-wort'".format(*path.split(".")),
    ],
    ids=["broken", "list", "table", "tables", "no table", "number", "control", "two ways", "unknown"],
)
def test_a_secret_of_a_wrong_form_is_an_error_that_names_it_and_does_not_show_it(
    tmp_path: Path, path: str, wrong: Any
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(wrong(path))
    with pytest.raises(SettingsError) as error:
        combine(Settings, [(str(file), read_toml(file))])
    assert "geheim" not in str(error.value)
    assert "19840101123" not in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"SEARCHLOOP_KAFKA": "geheimes-wort"},
        {"SEARCHLOOP_KAFKA__SASL_PASSWORD": "geheimes-wort", "SEARCHLOOP_KAFKA__SASL_PASSWORD__X": "1"},
        {"SEARCHLOOP_KAFKA__SASL_PASSWORD__X": "geheimes-wort"},
        {"SEARCHLOOP_KAFKA__BOOTSTRAP": "name:geheimes-wort@broker:9092"},
        {"SEARCHLOOP_VLLM__URL": "https://name:geheimes-wort@host:8000"},
        {"SEARCHLOOP_ELASTICSEARCH__URL": "https://name:geheimes/wort@host:9200"},
        {"SEARCHLOOP_ELASTICSEARCH__URL": "https://geheimes-wort@host:9200"},
        {"SEARCHLOOP_ELASTICSEARCH__URL": "name:geheimes-wort@host:9200"},
        {"SEARCHLOOP_ELASTICSEARCH__URL": "https://n:geheimes-wort@host:9", "SEARCHLOOP_ELASTICSEARCH__PASSWORD": "x"},
    ],
    ids=lambda variables: " and ".join(variables),
)
def test_a_variable_of_a_wrong_form_is_an_error_that_shows_no_secret(variables: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as error:
        combine(Settings, [("the environment", environment_layer(variables))])
    assert "geheim" not in str(error.value)
    assert "wort" not in str(error.value)


def test_credentials_leave_a_url_and_are_used() -> None:
    url = "https://elastic:geh%40im%2Fwort@search.example:9200/path"
    layer = environment_layer({"SEARCHLOOP_ELASTICSEARCH__URL": url})
    settings = combine(ConnectionTables, [("the environment", layer)]).elasticsearch
    assert (settings.url, settings.username) == ("https://search.example:9200/path", "elastic")
    assert settings.password == "geh@im/wort"
    assert "geh" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("could not reach https://name:wort@host:1/x today", f"could not reach https://{HIDDEN}@host:1/x today"),
        ("kafka://a:b/c@d@host:2", f"kafka://{HIDDEN}@host:2"),
        ("mail me@example.org about http://host", "mail me@example.org about http://host"),
    ],
)
def test_the_credentials_of_any_url_are_blanked_in_any_error(text: str, kept: str) -> None:
    assert redact(text) == kept
    assert str(SearchloopError(text)) == kept


def test_a_known_secret_is_blanked_in_errors_and_log_lines_tracebacks_included() -> None:
    secret = Secret("wort-das-niemand-liest")
    assert reveal(secret) not in str(SearchloopError(f"the library said {reveal(secret)}"))
    try:
        raise ValueError(f"Invalid header value {reveal(secret)!r}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "with %s", (reveal(secret),), None)
        record.exc_info = sys.exc_info()
    assert reveal(secret) not in RedactingFormatter("%(message)s").format(record)


@pytest.mark.parametrize("path", SECRETS)
def test_a_secret_may_stand_in_a_file_and_the_later_layer_wins_whichever_way_it_gives_it(
    tmp_path: Path, path: str
) -> None:
    table, key = path.split(".")
    file = tmp_path / "secret"
    write_private(file, "[aus-der-datei\n")
    by_file, by_value = {table: {f"{key}_file": str(file)}}, {table: {key: "direkt-gegeben"}}
    assert at(combine(Settings, [("a", by_file)]), path) == "[aus-der-datei"
    assert at(combine(Settings, [("a", by_value), ("b", by_file)]), path) == "[aus-der-datei"
    assert at(combine(Settings, [("a", by_file), ("b", by_value)]), path) == "direkt-gegeben"
    variables = environment_layer({variable(path) + "_FILE": str(file)})
    assert at(combine(Settings, [("the environment", variables)]), path) == "[aus-der-datei"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "an empty file"),
        (b"\n", "an empty line|lines"),
        (b"geheim\nnoch-geheim\n", "2 lines"),
        (b"\xff\xfegeheim", "bytes that are not text"),
        (b"geheim\0", "bytes that are not text"),
        (b"g" * 70_000, "more than 64 KiB"),
    ],
)
def test_a_secret_file_of_a_wrong_form_is_an_error_that_names_setting_and_file(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)
    with pytest.raises(SettingsError, match=said) as error:
        combine(Settings, [("a", {"kafka": {"sasl_password_file": str(file)}})])
    assert "kafka.sasl_password_file" in str(error.value)
    assert str(file) in str(error.value)
    assert "geheim" not in str(error.value)


def test_a_secret_given_in_place_of_its_file_is_not_shown() -> None:
    for given in ("geheimes-wort", "geheim/wort", "geheim\0"):
        with pytest.raises(SettingsError, match=r"kafka\.sasl_password_file: expected a file") as error:
            combine(Settings, [("a", {"kafka": {"sasl_password_file": given}})])
        assert "geheim" not in str(error.value) and error.value.__cause__ is None


def test_a_secret_file_that_everybody_may_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_if_open.cache_clear()
    for name, mode in (("offen", 0o644), ("zu", 0o600)):
        file = tmp_path / name
        file.write_text("geheimes-wort")
        file.chmod(mode)
        combine(Settings, [("a", {"vllm": {"api_key_file": str(file)}})])
    assert [record.getMessage() for record in caplog.records] == [
        f"vllm.api_key_file: every user of this machine may read {tmp_path / 'offen'}. Run: chmod 600 "
        f"{tmp_path / 'offen'}"
    ]


def test_no_secret_may_be_set_on_a_command_line() -> None:
    for path in SECRETS:
        with pytest.raises(SettingsError, match=variable(path)) as error:
            assignments_layer([f"{path}=geheimes-wort"])
        assert "geheim" not in str(error.value)
    with pytest.raises(SettingsError) as error:
        assignments_layer(["sasl_password=geheimes-wort"])
    assert "geheim" not in str(error.value)


def test_lists_are_read_from_variables_and_texts_are_not() -> None:
    layer = environment_layer(
        {
            "SEARCHLOOP_VLLM_SERVER__ARGUMENTS": '["--x", "2"]',
            "SEARCHLOOP_POLICY__LORA__TARGETS": '["q_proj"]',
            "SEARCHLOOP_POLICY__BASE": "[a]",
        }
    )
    settings = combine(Settings, [("the environment", layer)])
    assert (settings.vllm_server.arguments, settings.policy.base) == (("--x", "2"), "[a]")
    assert settings.policy.lora.targets == ("q_proj",)
    with pytest.raises(SettingsError, match=r"vllm_server\.arguments: expected a list in JSON, got '\[1,'"):
        combine(Settings, [("a file", {"vllm_server": {"arguments": "[1,"}})])
    lists = [path for path, default in known_keys(Settings).items() if isinstance(default, tuple | list)]
    assert sorted(lists) == sorted(LIST_SETTINGS)


def given_everywhere() -> dict[str, str]:
    secrets = {variable(path): f"wort-von-{path}" for path in SECRETS if path != "elasticsearch.api_key"}
    return secrets | {"SEARCHLOOP_KAFKA__SASL_USERNAME": "ich", "SEARCHLOOP_BATCH__GROUPS": "7"}


def test_variables_with_secrets_leave_the_environment_and_the_app_has_them_all_the_same(tmp_path: Path) -> None:
    environment = given_everywhere() | {"SEARCHLOOP_ELASTICSEARCH__URL": "https://a:wort-im-url@h:1", "PATH": "x@y"}
    private = take_private(environment)
    assert environment == {"SEARCHLOOP_BATCH__GROUPS": "7", "PATH": "x@y"}
    assert {variable(path) for path in SECRETS} - {"SEARCHLOOP_ELASTICSEARCH__API_KEY"} <= set(private)
    app = App(Home(tmp_path), private={"SEARCHLOOP_KAFKA__SASL_PASSWORD": "wort"})
    for each in (app, app.as_role("sink")):
        assert each.connections.kafka.sasl_password == "wort"


def test_a_child_gets_its_secrets_through_a_pipe_and_none_by_its_environment() -> None:
    everything = given_everywhere()
    shown, line = piped(everything)
    assert not any("wort" in value for value in shown.values())
    read, write = os.pipe()
    os.write(write, line + b"what follows is somebody else's")
    os.close(write)
    child = shown | {FROM_PIPE: str(read)}
    assert take_private(child) == {name: value for name, value in everything.items() if is_private(name, value)}
    assert child == public(everything)
    assert os.read(read, 100) == b"what follows is somebody else's"
    os.close(read)


@pytest.mark.parametrize(
    ("role", "tables"),
    [
        ("generator", {"KAFKA", "VLLM"}),
        ("environment", {"KAFKA", "ELASTICSEARCH"}),
        ("learner", {"KAFKA"}),
        ("sink", {"KAFKA"}),
        ("monitor", {"KAFKA", "ALERTS"}),
    ],
)
def test_a_worker_gets_the_secrets_of_its_own_doors(role: str, tables: set[str]) -> None:
    got = for_role(given_everywhere(), role)
    assert {name.split("_")[1] for name, value in got.items() if value.startswith("wort")} == tables
    assert got["SEARCHLOOP_BATCH__GROUPS"] == "7"


def test_a_role_takes_its_own_file_and_no_other(tmp_path: Path) -> None:
    for role in ("sink", "learner"):
        write_private(tmp_path / f"{role}.toml", f'sasl_username = "{role}"\nsasl_password = "wort-von-{role}"\n')
    settings = KafkaSettings(bootstrap="h:1", credentials=str(tmp_path), sasl_username="alle", sasl_password="x")
    kafka, _ = with_credentials(settings, ElasticsearchSettings(), role="sink")
    assert (kafka.sasl_username, kafka.sasl_password) == ("sink", "wort-von-sink")
    assert stat.S_IMODE((tmp_path / "sink.toml").stat().st_mode) == 0o600
    with pytest.raises(SettingsError, match=r"kafka\.credentials: expected a file for the role 'monitor'"):
        with_credentials(settings, ElasticsearchSettings(), role="monitor")
    (tmp_path / "monitor.toml").write_text('sasl_password = ["geheimes-wort"]')
    with pytest.raises(SettingsError, match="sasl_username and sasl_password") as error:
        with_credentials(settings, ElasticsearchSettings(), role="monitor")
    assert "geheim" not in str(error.value)


def test_a_runs_settings_file_holds_no_secret_and_nothing_of_the_doors(tmp_path: Path) -> None:
    settings = combine(Settings, [("the environment", environment_layer(given_everywhere()))])
    kept = RunSettings(run="r", recipe="leser", index="i", index_version="i-1", seed=0, updates=1, settings=settings)
    write_run_settings(tmp_path, kept)
    content = (tmp_path / "settings.json").read_text()
    assert "wort-von" not in content
    assert '"ich"' not in content
    assert json.loads(content)["settings"]["batch"]["groups"] == 7


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_password_without_tls_is_told_on_this_machine(host: str, caplog: pytest.LogCaptureFixture) -> None:
    from streams.tls import _say_once

    _say_once.cache_clear()
    kafka = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "ich", "sasl_password": "geheimes-wort"}
    connection_options(KafkaSettings(bootstrap=f"{host}:9092", **kafka), "x")
    connect(ElasticsearchSettings(url=f"http://{host}:9200", api_key="Z2VoZWlt")).close()
    connect(ElasticsearchSettings(url=f"http://ich:geheimes-wort@{host}:9200")).close()
    VllmClient(f"http://{host}:8000", VllmSettings(api_key="Z2VoZWlt"))
    assert len([record for record in caplog.records if "without TLS on this machine" in record.getMessage()]) == 4


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1",
        "broker.example",
        "127.0.0.1.example",
        "0.0.0.0",
        "localhost.example",
        "127.0.0.1%2eexample",
        "127.0.0.1.nip.io",
        "[::]",
    ],
)
def test_a_password_without_tls_is_refused_beyond_this_machine_unless_a_setting_allows_it(host: str) -> None:
    doors = [
        lambda **more: connection_options(
            KafkaSettings(
                bootstrap=f"127.0.0.1:1,{host}:9092",
                security_protocol="SASL_PLAINTEXT",
                sasl_username="ich",
                sasl_password="geheimes-wort",
                **more,
            ),
            "x",
        ),
        lambda **more: connect(ElasticsearchSettings(url=f"http://{host}:9200", api_key="Z2VoZWlt", **more)).close(),
        lambda **more: connect(ElasticsearchSettings(url=f"http://a:geheimes-wort@{host}:9200", **more)).close(),
        lambda **more: VllmClient(f"http://{host}:8000", VllmSettings(api_key="Z2VoZWlt", **more)),
    ]
    for door in doors:
        with pytest.raises(SettingsError, match=rf"beyond this machine.*{host}.*allow_insecure = true") as error:
            door()
        assert "geheim" not in str(error.value)
        door(allow_insecure=True)


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown() -> None:
    for kind in (VllmSettings, ElasticsearchSettings):
        for key in ("geheim\r\nX: y", "geheim€"):
            with pytest.raises(ValueError, match="api_key") as error:
                kind(api_key=key)
            assert "geheim" not in str(error.value)


def test_the_tables_that_are_read_without_torch_hold_every_secret() -> None:
    assert {*secret_paths(ConnectionTables), *secret_paths(VllmTables)} == set(SECRETS) - {
        "serve.token",
        "ui.token",
        "ui.server_token",
        "alerts.webhook_secret",
    }
