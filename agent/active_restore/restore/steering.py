"""What the user has asked of the background while it runs, kept beside the restore's record: the next agent does the same.

An agent that dies and is started again must not take the machine of somebody who had to slow it down.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import msgspec

from active_restore.restore.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from active_restore.restore.board import Board

_log = logging.getLogger(__name__)
_FILE = "steering.json"


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    limits: Limits
    paused: bool = False


class Steering:
    """``limits`` and ``paused`` as they were asked for last; ``limits`` of the options before that."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._path = directory / _FILE
        self._kept = _Kept(limits)
        # A damaged file is as good as none.
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)

    @property
    def limits(self) -> Limits:
        """Of the background."""
        return self._kept.limits

    @property
    def paused(self) -> bool:
        """Whether the background is to stand still."""
        return self._kept.paused

    def begin(self, board: Board, warn: Callable[[str], None]) -> None:
        """Steer the workers of this board, and say what a user may not expect."""
        board.rate_bytes_per_s, board.paused = self.limits.now(), self.paused
        if self.paused:
            warn("the background is paused, as was asked for; active-restore continue lets it go on")

    def limit(self, limits: Limits) -> None:
        """From now on."""
        self._keep(_Kept(limits, self.paused))

    def pause(self, *, paused: bool) -> None:
        """From now on."""
        self._keep(_Kept(self.limits, paused))

    def _keep(self, kept: _Kept) -> None:
        """It holds now, whatever becomes of the file."""
        self._kept = kept
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(kept))
            fresh.rename(self._path)
        except OSError as error:
            _log.warning("%s cannot be written (%s): the next agent will not know of it", self._path, error.strerror)


def forget_pause(directory: Path) -> None:
    """Somebody wants the restore to go on."""
    kept = Steering(directory, Limits())
    if kept.paused:
        kept.pause(paused=False)
