"""The monitor's faust app as it is built: how it is let in, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from infra.monitoring.agents import build_app, credentials
from storage.monitor.reading import SEEKS_MAX, ReadPositions
from storage.monitor.windows import MonitorSettings, Windows
from streams.kafka_settings import KafkaSettings


def test_the_broker_s_login_reaches_aiokafka() -> None:
    plain = KafkaSettings(bootstrap="b:1")
    assert credentials_to_aiokafka_auth(credentials(plain)) == {"security_protocol": "PLAINTEXT"}
    named = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "monitor", "sasl_password": "secret"}
    sasl = credentials_to_aiokafka_auth(credentials(KafkaSettings(security_protocol="SASL_PLAINTEXT", **named)))
    assert sasl["security_protocol"] == "SASL_PLAINTEXT"
    assert [sasl[key] for key in ("sasl_mechanism", "sasl_plain_username", "sasl_plain_password")] == [*named.values()]
    assert (
        credentials_to_aiokafka_auth(credentials(KafkaSettings(security_protocol="SASL_SSL", **named)))[
            "security_protocol"
        ]
        == "SASL_SSL"
    )
    encrypted = credentials_to_aiokafka_auth(credentials(KafkaSettings(security_protocol="SSL")))
    assert encrypted["security_protocol"] == "SSL" and encrypted["ssl_context"].check_hostname


def test_the_app_has_no_web_server_and_makes_no_topic(tmp_path: Path) -> None:
    windows = Windows("run", MonitorSettings(), ends={})
    app, table = build_app("run", KafkaSettings(bootstrap="a:1,b:2"), windows, ReadPositions({}), datadir=tmp_path)
    app.finalize()
    assert [(url.host, url.port) for url in app.conf.broker] == [("a", 1), ("b", 2)]
    assert not app.conf.web_enabled
    assert not app.conf.topic_allow_declare
    assert 6 <= app.conf.broker_session_timeout <= 10
    assert table.changelog_topic.get_topic_name() == "run.windows"
    assert {topic for agent in app.agents.values() for topic in agent.channel.topics} == {
        "run.rewards",
        "run.updates",
        "run.dead-letters",
    }
    assert {agent.concurrency for agent in app.agents.values()} == {1}


def test_a_record_that_does_not_follow_is_not_taken_and_what_is_missing_is_asked_for_again() -> None:
    here = ("run.rewards", 0)
    reading = ReadPositions({here: 0})
    assert reading.overdue({here: 4}) == {here: 0}, "nothing came: not even what would show the gap"
    assert not reading.take(here, 3)
    assert reading.overdue({here: 4}) == {here: 0}
    assert [reading.take(here, offset) for offset in (0, 1, 1, 0, 2, 3)] == [True, True, False, False, True, True]
    assert reading.overdue({here: 4}) == {}


def test_a_partition_that_moves_on_or_is_at_its_end_is_left_alone() -> None:
    here = ("run.rewards", 0)
    reading = ReadPositions({here: 5})
    assert reading.overdue({here: 5}) == reading.overdue({}) == {}
    assert reading.take(here, 5)
    assert reading.overdue({here: 100}) == {}, "it came further since the last time"
    assert reading.overdue({here: 100}) == {here: 6}


def test_records_that_are_gone_are_passed_over_in_the_end() -> None:
    here = ("run.rewards", 0)
    reading = ReadPositions({here: 0})
    for _ in range(SEEKS_MAX):
        assert not reading.take(here, 7)
        assert reading.overdue({here: 9}) == {here: 0}
    assert reading.take(here, 7) and reading.take(here, 8)
    assert reading.overdue({here: 9}) == {}
