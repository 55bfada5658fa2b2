"""The announcement to Home Assistant: rendered by Jinja, as Home Assistant does, over what an agent really publishes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import jinja2
import pytest
from pydantic import ValidationError

from active_restore.control.messages import LimitRequest, parse_request
from active_restore.mqtt import discovery
from active_restore.mqtt.digest import Digest
from active_restore.mqtt.payloads import encode
from active_restore.mqtt.publisher import Publisher
from active_restore.mqtt.topics import KINDS
from active_restore.restore.progress import Progress
from active_restore.settings.tables import MqttTable
from tests.kernel.waiting import wait_until
from tests.mqtt import samples
from tests.mqtt.samples import settings

if TYPE_CHECKING:
    from tests.mqtt.broker import Mosquitto
    from tests.mqtt.ear import Ear

PLACE = "homeassistant/device/active_restore_web1/config"
EXPECTED = {
    "running": "ON",
    "phase": "restoring",
    "progress": "50.0",
    "rate": "12.5",
    "left": "3.2",
    "waiting": "2",
    "longest_wait": "3.25",
    "faults": "1",
    "refused": "0",
    "limit": "0.0",
}


def published() -> dict[str, dict[str, Any]]:
    """By topic, what an agent says in the middle of a restore."""
    digest = Digest("web1", samples.TARGET)
    for event in (samples.PLANNED, samples.READY, samples.FAULT, Progress(samples.status(waiting=2))):
        digest.event(event)
    taken = {kind: digest.take(kind)[0] for kind in KINDS}
    return {f"active-restore/web1/{kind}": json.loads(encode(one, "json")) for kind, one in taken.items() if one}


def render(template: str, **values: object) -> str:
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template).render(**values)


def parts_of(**more: object) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = json.loads(discovery.message(settings(0, **more)))["cmps"]
    return parts


def test_every_part_finds_its_value() -> None:
    parts, said = parts_of(accept_commands=True), published()
    shown = {
        key: render(part["value_template"], value_json=said[part["state_topic"]])
        for key, part in parts.items()
        if "value_template" in part
    }
    assert shown == EXPECTED
    assert len({part["unique_id"] for part in parts.values()}) == len(parts)
    assert {part["p"] for part in parts.values()} == {"sensor", "binary_sensor", "button", "number"}


def test_what_is_not_known_is_unknown() -> None:
    assert render(parts_of()["left"]["value_template"], value_json={}) == "None"


def test_every_control_is_a_command() -> None:
    parts = parts_of(accept_commands=True)
    for key in ("pause", "continue"):
        assert parse_request(parts[key]["payload_press"].encode()).command == key
    request = parse_request(render(parts["limit"]["command_template"], value=25.0).encode())
    assert isinstance(request, LimitRequest)
    assert request.bytes_per_s == 25_000_000
    for key in ("pause", "continue", "limit"):
        (available,) = parts[key]["availability"]
        assert render(available["value_template"], value_json=published()[available["topic"]]) == "online"
    assert set(parts_of()) == set(EXPECTED) - {"limit"}


def test_announced_on_a_broker(broker: Mosquitto, ear: Ear) -> None:
    with Publisher(settings(broker.port, discovery="homeassistant"), samples.TARGET):
        wait_until(lambda: [heard for heard in ear.heard if heard.topic == PLACE], "the announcement")
    announcement = json.loads(next(heard.payload for heard in ear.heard if heard.topic == PLACE))
    assert announcement["dev"]["ids"] == ["active_restore_web1"]
    assert announcement["o"]["name"] == "active-restore"
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", discovery.topic("h", "wéb 1.example").split("/")[2])


def test_not_by_default(broker: Mosquitto, ear: Ear) -> None:
    with Publisher(settings(broker.port), samples.TARGET):
        ear.until("state")
    assert not [heard for heard in ear.heard if heard.topic.startswith("homeassistant/")]


def test_it_needs_json() -> None:
    with pytest.raises(ValidationError, match="json"):
        MqttTable(discovery=True, format="msgpack")
