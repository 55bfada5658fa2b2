"""Brokers for the tests of this directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mqtt.broker import Mosquitto, mosquitto
from tests.mqtt.ear import Ear
from tests.mqtt.relay import Relay, relay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that lets everybody in."""
    with mosquitto(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def ear(broker: Mosquitto) -> Iterator[Ear]:
    """Hears everything on that broker."""
    with Ear(broker.port) as listening:
        yield listening


@pytest.fixture
def line(broker: Mosquitto) -> Iterator[Relay]:
    """A line to that broker that can be bad."""
    with relay(broker.port) as running:
        yield running
