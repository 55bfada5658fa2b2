"""Waiting for a condition, never for a time."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = float(os.environ.get("ACTIVE_RESTORE_TEST_DEADLINE", "60"))
_LOOK_S = 0.01


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return when ``condition`` is true; fail after a minute."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        pause.wait(_LOOK_S)
