"""What every test may use."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.kernel.rig", "tests.kernel.tasks")
pytest_plugins = ["tests.kernel.fixtures"]
