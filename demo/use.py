"""Those who want to work on the restored tree: a process that asks the database, and one that runs a program out of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from demo.tree import DATABASE, PROGRAM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ASK = """
import sqlite3, sys
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
orders, pieces = database.execute("SELECT count(*), sum(pieces) FROM orders WHERE customer = 4711").fetchone()
print(f"customer 4711 has {orders} orders with {pieces} pieces")
"""


class Answer(NamedTuple):
    """What came out, and how many seconds after the restore began."""

    seconds: float
    text: str


class Uses:
    """Both, started at once, each in a process of its own. ``answers`` is complete after ``wait``."""

    def __init__(self, tree: Path, began: float, tell: Callable[[str, Answer], None]) -> None:
        self.answers: dict[str, Answer] = {}
        self._began = began
        self._tell = tell
        self._failure: list[str] = []
        commands = {
            "database": [sys.executable, "-I", "-c", _ASK, str(tree / DATABASE)],
            # -B: nothing new may appear in the tree, as it is compared in the end.
            "program": ["chroot", str(tree), "/usr/bin/" + _interpreter_name(), "-I", "-B", f"/{PROGRAM}"],
        }
        self._threads = [threading.Thread(target=self._run, args=item, daemon=True) for item in commands.items()]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str, command: list[str]) -> None:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        answer = Answer(time.monotonic() - self._began, ended.stdout.strip())
        if ended.returncode:
            self._failure.append(f"the {name} failed: {ended.stderr.strip()[-400:]}")
            return
        self.answers[name] = answer
        self._tell(name, answer)

    def wait(self) -> None:
        """Until both have answered. Raises ``RuntimeError`` where one of them failed."""
        for thread in self._threads:
            thread.join()
        if self._failure:
            raise RuntimeError("; ".join(self._failure))


def _interpreter_name() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"
