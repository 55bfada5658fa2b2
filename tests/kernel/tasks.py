"""Tasks that touch placeholders: processes of their own, so that one that hangs hangs alone."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.waiting import DEADLINE_S, wait_until

if TYPE_CHECKING:
    from types import TracebackType

# In the kernel for an answer of fanotify; parked by the agent of BPF; stopped by BPF, where no agent lives.
_HELD = ("fanotify", "ptrace_stop", "do_signal_stop")


class Task:
    """A process with its output; ``with`` ends it."""

    def __init__(self, *argv: str | bytes | Path) -> None:
        self._child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.pid = self._child.pid

    @classmethod
    def python(cls, code: str, *arguments: str | bytes | Path) -> Task:
        """Run some lines of Python; ``sys`` and ``os`` are imported."""
        return cls(sys.executable, "-S", "-E", "-c", f"import os, sys\n{code}", *arguments)

    def __enter__(self) -> Task:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.communicate(timeout=DEADLINE_S)
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            if stream is not None:
                stream.close()

    def held(self) -> None:
        """Return when the kernel holds the task (or one of its threads) for our answer."""
        wait_until(lambda: self._is_held() or self._child.poll() is not None, "the task is held")
        assert self._child.poll() is None, f"it was not held, it ended: {self.finish()}"

    def _is_held(self) -> bool:
        with contextlib.suppress(OSError):
            stacks = [(thread / "stack").read_text() for thread in Path(f"/proc/{self.pid}/task").iterdir()]
            return any(word in stack for word in _HELD for stack in stacks)
        return False

    def say(self, line: bytes) -> None:
        """Write to its standard input."""
        assert self._child.stdin is not None
        self._child.stdin.write(line)
        self._child.stdin.flush()

    def close_input(self) -> None:
        """End its standard input."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.stdin = None

    def line(self) -> bytes:
        """The next line of its output."""
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def ended(self) -> bool:
        """Whether it is over."""
        return self._child.poll() is not None

    def finish(self) -> tuple[int, bytes, bytes]:
        """Wait for its end: exit code, output, errors."""
        out, err = self._child.communicate(timeout=DEADLINE_S)
        return self._child.returncode, out, err

    def output(self) -> bytes:
        """Wait for its good end; what it wrote."""
        code, out, err = self.finish()
        assert code == 0, (code, out.decode(errors="replace")[-500:], err.decode(errors="replace"))
        return out

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._child.send_signal(signal.SIGKILL)
        self._child.wait(DEADLINE_S)


def run(*argv: str | bytes | Path) -> bytes:
    """Run a program to its good end; its output."""
    with Task(*argv) as task:
        return task.output()


def python(code: str, *arguments: str | bytes | Path) -> bytes:
    """Run some lines of Python to their good end; their output."""
    with Task.python(code, *arguments) as task:
        return task.output()


def read(path: Path | bytes) -> bytes:
    """The content of a file, read by a task."""
    return run("cat", path)


def refused(path: Path | bytes, flags: str = "os.O_RDONLY") -> int:
    """The errno with which opening a file fails; 0 where it does not fail."""
    code = f"try:\n    os.open(sys.argv[1], {flags})\n    print(0)\nexcept OSError as error:\n    print(error.errno)"
    return int(python(code, path))
