"""Addresses of brokers, passwords, certificates, names of topics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from active_restore.errors import UsageError
from active_restore.mqtt.settings import find_password, parse_url, tls_context
from active_restore.mqtt.topics import Topics, level, parse

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("mqtt://broker", ("broker", 1883, None, False)),
        ("mqtts://broker", ("broker", 8883, None, True)),
        ("mqtts://bob%40home@broker:99/", ("broker", 99, "bob@home", True)),
        ("mqtt://[::1]:1884", ("::1", 1884, None, False)),
    ],
)
def test_addresses(url: str, parsed: tuple[str, int, str | None, bool]) -> None:
    assert parse_url(url) == parsed


@pytest.mark.parametrize(
    "url", ["", "broker", "http://broker", "mqtt://", "mqtt://b:70000", "mqtt://b/topic", "mqtt://bob:s3cret@b", "mqtt://[::1"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_url(url)
    assert raised.value.hint
    assert "s3cret" not in str(raised.value) + raised.value.hint


def test_where_the_password_is_found(tmp_path: Path) -> None:
    file = tmp_path / "mqtt-password"
    file.write_text("from file\n")
    assert find_password({}) is None
    assert find_password({"ACTIVE_RESTORE_MQTT_PASSWORD": "direct"}) == "direct"
    assert find_password({"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}) is None
    assert find_password({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "from file"
    named = {"ACTIVE_RESTORE_MQTT_PASSWORD_FILE": str(file), "ACTIVE_RESTORE_MQTT_PASSWORD": "direct"}
    assert find_password(named) == "from file"
    with pytest.raises(UsageError, match="absent"):
        find_password(named, str(tmp_path / "absent"))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        find_password(named)


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
