"""What Home Assistant needs to show a machine as a device: one retained message, device-based discovery (2024.11 and newer).

Source of the format: home-assistant.io/integrations/mqtt, "Device discovery payload".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

import active_restore

if TYPE_CHECKING:
    from active_restore.mqtt.settings import Settings
    from active_restore.mqtt.topics import Topics

_NOT_IN_AN_ID = re.compile(r"[^a-zA-Z0-9_-]")
_MEGABYTE = 1_000_000


def topic(prefix: str, node: str) -> str:
    """Where a machine is announced; ``prefix`` is the one that Home Assistant listens to."""
    return f"{prefix}/device/{_identifier(node)}/config"


def message(settings: Settings) -> bytes:
    """The announcement: what it shows, and what it may command where commands are accepted."""
    topics = settings.topics
    parts = {**_sensors(topics), **(_controls(topics) if settings.accept_commands else {})}
    name = _identifier(topics.node)
    for key, part in parts.items():
        part["unique_id"] = f"{name}_{key}"
    announcement = {
        "dev": {"ids": [name], "name": f"Restore of {topics.node}", "mf": "Active Restore", "sw": active_restore.__version__},
        "o": {"name": "active-restore", "sw": active_restore.__version__},
        "cmps": parts,
        "qos": min(settings.qos, 1),
    }
    return msgspec.json.encode(announcement)


def _identifier(node: str) -> str:
    return f"active_restore_{_NOT_IN_AN_ID.sub('_', node)}"


def _sensors(topics: Topics) -> dict[str, dict[str, Any]]:
    state, progress = topics.of("state"), topics.of("progress")
    measured = {"state_class": "measurement"}
    return {
        "running": {
            "p": "binary_sensor",
            "name": "Agent",
            "state_topic": state,
            "device_class": "running",
            "value_template": "{{ 'ON' if value_json.online else 'OFF' }}",
        },
        "phase": {
            "p": "sensor",
            "name": "Phase",
            "state_topic": state,
            "value_template": "{{ value_json.phase }}",
            "json_attributes_topic": topics.of("report"),
        },
        "progress": _number("Progress", progress, "percent", "%", **measured),
        "rate": _number("Rate", progress, "rate_bytes_per_s", "B/s", device_class="data_rate", **measured),
        # What is not known is left out: then Home Assistant shows "unknown".
        "left": _number("Time left", progress, "eta_s | default(none)", "s", device_class="duration"),
        "waiting": _number("Waiting tasks", progress, "waiting", **measured),
        "longest_wait": _number("Longest wait", progress, "longest_wait_ms", "ms", device_class="duration"),
        "faults": _number("Faults", progress, "faults", state_class="total_increasing"),
        "refused": _number("Refused files", progress, "refused"),
    }


def _number(name: str, state_topic: str, field: str, unit: str = "", **more: str) -> dict[str, Any]:
    part = {"p": "sensor", "name": name, "state_topic": state_topic, "value_template": f"{{{{ value_json.{field} }}}}", **more}
    return {**part, "unit_of_measurement": unit} if unit else part


def _controls(topics: Topics) -> dict[str, dict[str, Any]]:
    available = [
        {"topic": topics.of("state"), "value_template": "{{ 'online' if value_json.online else 'offline' }}"},
    ]
    common = {"command_topic": topics.command, "availability": available}
    return {
        "pause": {"p": "button", "name": "Pause", "payload_press": '{"command": "pause"}', **common},
        "continue": {"p": "button", "name": "Continue", "payload_press": '{"command": "continue"}', **common},
        "limit": {
            "p": "number",
            "name": "Limit",
            "state_topic": topics.of("state"),
            "value_template": f"{{{{ value_json.limit_bytes_per_s / {_MEGABYTE} }}}}",
            "command_template": f'{{"command": "limit", "bytes_per_s": {{{{ (value * {_MEGABYTE}) | int }}}}}}',
            "min": 0,
            "max": 100_000,
            "step": 1,
            "mode": "box",
            "unit_of_measurement": "MB/s",
            **common,
        },
    }
