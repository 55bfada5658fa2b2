"""The other end of the control socket, for the command line."""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import TYPE_CHECKING

from pydantic import ValidationError

from active_restore.control import messages
from active_restore.control.messages import Answer, PathText, WindowText
from active_restore.control.names import shown
from active_restore.errors import ActiveRestoreError, CapabilityMissing, NotRunning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from active_restore.config import LimitWindow
    from active_restore.control.registry import Known
    from active_restore.restore.progress import Status

_TIMEOUT_S = 30.0


class ControlClient:
    """A connection to the agent of one restore. Raises ``NotRunning`` where no agent answers."""

    def __init__(self, restore: Known) -> None:
        self._restore = restore
        self._socket = self._connect()
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._answers.close()
        self._socket.close()

    def status(self) -> Status:
        """The state now."""
        answer = self._ask(messages.StatusRequest())
        if answer.status is None:
            raise self._strange()
        return answer.status.to_status()

    def promote(self, paths: Sequence[bytes]) -> int:
        """Bring these paths (relative to the target) and all below them forward; gives how many files that are."""
        promoted = 0
        for first in range(0, len(paths), messages.MAX_PATHS):
            texts = [PathText.of(path) for path in paths[first : first + messages.MAX_PATHS]]
            promoted += self._ask(messages.PromoteRequest(paths=texts)).promoted or 0
        return promoted

    def pause(self) -> None:
        """Stop the background lane."""
        self._ask(messages.PauseRequest())

    def proceed(self) -> None:
        """Let the background lane go on."""
        self._ask(messages.ContinueRequest())

    def limit(self, bytes_per_s: int, windows: Sequence[LimitWindow] = ()) -> None:
        """Limit the background lane; 0 for no limit. In its hours a window's limit holds instead."""
        texts = [WindowText(**dataclasses.asdict(window)) for window in windows]
        self._ask(messages.LimitRequest(bytes_per_s=bytes_per_s, windows=texts))

    def stop(self) -> None:
        """End the agent; the restore can be resumed."""
        self._ask(messages.StopRequest())

    def _connect(self) -> socket.socket:
        path = self._restore.socket_path
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT_S)
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # Through the directory's descriptor: a socket address holds only 108 bytes of path.
                connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        return connection

    def _ask(self, request: messages.Request) -> Answer:
        try:
            self._socket.sendall(messages.request_line(request))
            line = self._answers.readline(messages.MAX_ANSWER_BYTES)
        except OSError as error:
            raise self._unreachable(error) from error
        if not line:
            raise self._unreachable(ConnectionResetError("the agent hung up"))
        try:
            answer = Answer.model_validate_json(line)
        except ValidationError as error:
            raise self._strange() from error
        if not answer.ok:
            raise answer.error.to_error() if answer.error is not None else self._strange()
        return answer

    def _unreachable(self, error: OSError) -> ActiveRestoreError:
        target = shown(self._restore.target)
        if isinstance(error, PermissionError):
            return CapabilityMissing("only root may control a restore", "run the command with sudo")
        if isinstance(error, TimeoutError):
            return ActiveRestoreError(
                f"the agent of {target} does not answer", "it may be stopped or overloaded; look at its log"
            )
        return NotRunning(
            f"no agent is running for {target}; tasks that need missing files wait",
            f"run: active-restore resume {target}",
        )

    def _strange(self) -> ActiveRestoreError:
        return ActiveRestoreError(
            f"the agent of {shown(self._restore.target)} gave an answer that this version does not understand",
            "use the active-restore of the same version as the agent",
        )
