"""Addresses of brokers, passwords, certificates, names of topics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_restore.errors import UsageError
from active_restore.mqtt.connection import Backoff
from active_restore.mqtt.settings import find_password, from_table, tls_context, with_broker
from active_restore.mqtt.topics import Topics, level, parse
from active_restore.settings.tables import MqttTable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "shown", "user"),
    [
        ("mqtt://broker", "mqtt://broker:1883", None),
        ("mqtts://broker", "mqtts://broker:8883", None),
        ("mqtts://bob%40home@broker:99/", "mqtts://broker:99", "bob@home"),
        ("mqtt://[::1]:1884", "mqtt://::1:1884", None),
        ("wss://broker/path", "wss://broker:443", None),
    ],
)
def test_addresses(url: str, shown: str, user: str | None) -> None:
    broker = from_table(with_broker(MqttTable(), url), {}).broker
    assert (str(broker), broker.user) == (shown, user)


@pytest.mark.parametrize(
    "url", ["", "broker", "http://broker", "mqtt://", "mqtt://b:70000", "mqtt://b/topic", "mqtt://bob:s3cret@b", "mqtt://[::1"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        with_broker(MqttTable(), url)
    assert raised.value.hint
    assert "s3cret" not in str(raised.value) + raised.value.hint


def test_another_broker_does_not_get_our_password(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret")
    table = MqttTable(broker="mqtt://home:1883", username="bob", password_file=str(secret), qos=2)
    same = from_table(with_broker(table, "mqtt://alice@home:1883"), {})
    assert (same.broker.user, same.broker.password, same.qos) == ("alice", "s3cret", 2)
    other = from_table(with_broker(table, "mqtt://elsewhere"), {})
    assert (other.broker.user, other.broker.password, other.qos) == (None, None, 2)


def test_where_the_password_is_found(tmp_path: Path) -> None:
    file = tmp_path / "mqtt-password"
    file.write_text("from file\n")
    assert find_password(MqttTable(), {}) is None
    assert find_password(MqttTable(), {"ACTIVE_RESTORE_MQTT_PASSWORD": "direct"}) == "direct"
    assert find_password(MqttTable(), {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}) is None
    assert find_password(MqttTable(), {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "from file"
    named = {"ACTIVE_RESTORE_MQTT_PASSWORD_FILE": str(file), "ACTIVE_RESTORE_MQTT_PASSWORD": "direct"}
    assert find_password(MqttTable(), named) == "from file"
    credential = MqttTable(password_credential="mqtt-password")
    assert find_password(credential, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "from file"
    with pytest.raises(UsageError, match="systemd"):
        find_password(credential, {})
    with pytest.raises(UsageError, match="absent"):
        find_password(MqttTable(password_file=str(tmp_path / "absent")), named)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        find_password(MqttTable(), named)


def test_certificates_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        tls_context(str(tmp_path / "absent"))
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    with pytest.raises(UsageError, match="not PEM"):
        tls_context(str(bad))
    with pytest.raises(UsageError, match="not PEM"):
        tls_context(None, str(bad))


@given(st.text())
def test_a_name_is_one_level_of_a_topic(name: str) -> None:
    clean = level(name)
    assert clean
    assert not set("+#/\0") & set(clean)
    clean.encode()
    assert parse("p/q", Topics("p/q", clean).of("state")) == (clean, "state")


@pytest.mark.parametrize(
    ("topic", "may"),
    [
        ("a/web1/answer", True),
        ("a/web1/answer/console/7", True),
        ("a/web1/answers", False),
        ("a/web2/state", False),
        ("a/web1/answer/#", False),
        ("a/web1/answer/+", False),
        ("", False),
    ],
)
def test_topics_that_we_may_answer_on(topic: str, *, may: bool) -> None:
    assert Topics("a", "web1").may_answer(topic) is may


@pytest.mark.parametrize("topic", ["a", "a/", "a//state", "a/web1", "b/web1/state", "aa/web1/state"])
def test_topics_that_are_none_of_ours(topic: str) -> None:
    assert parse("a", topic) is None


def test_attempts_become_rare_and_never_all_at_once() -> None:
    backoff = Backoff()
    delays = [backoff.next() for _ in range(12)]
    for number, delay in enumerate(delays):
        longest = min(2.0**number, 60.0)
        assert longest / 2 <= delay <= longest
    backoff.reset()
    assert backoff.next() <= 1.0
    fleet = {Backoff().next() for _ in range(50)}
    assert len(fleet) == 50
