"""What every test may use."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

if "ACTIVE_RESTORE_LOG" not in os.environ:
    # Logbooks outlive their restores: those of tests shall not outlive the tests. Every process of a test inherits this.
    os.environ["ACTIVE_RESTORE_LOG"] = tempfile.mkdtemp(prefix="active-restore-logbooks.")
    atexit.register(shutil.rmtree, os.environ["ACTIVE_RESTORE_LOG"], ignore_errors=True)

# Nothing is asserted about time: a loaded machine may be slow.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

pytest.register_assert_rewrite("tests.kernel.rig", "tests.kernel.tasks")
pytest_plugins = ["tests.kernel.fixtures"]

# Files of tests that take minutes. They go first: several processes share the files, and the last should not be a long one.
_LONG = (
    "vm/",
    "torture/",
    "ranges/",
    "restore/test_deaths",
    "restore/test_readers",
    "restore/test_trouble",
    "house/",
    "service/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, in that order; else the order stays."""

    def place(item: pytest.Item) -> int:
        path = item.nodeid.removeprefix("tests/")
        return next((index for index, prefix in enumerate(_LONG) if path.startswith(prefix)), len(_LONG))

    items.sort(key=place)
