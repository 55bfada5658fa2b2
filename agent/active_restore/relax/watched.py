"""One directory that is watched, whenever it is there."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from active_restore.config import run_root
from active_restore.control.names import shown
from active_restore.control.registry import directory_name
from active_restore.errors import ActiveRestoreError
from active_restore.linux import inotify
from active_restore.predict.learning import Learning
from active_restore.predict.recorder import Gone, Recorder
from active_restore.relax.changes import Changes

if TYPE_CHECKING:
    from active_restore.settings.tables import RelaxTable

_log = logging.getLogger(__name__)
_AGAIN_S = 10.0
# Where everything is learned for ever, an earlier boot's order is kept for an hour.
_KEEP_S = 3600.0


class Watched:
    """``look`` now and then; ``drain`` when ``recorder.fd`` can be read.

    ``recorder`` and ``changes`` are ``None`` while the directory is not there.
    """

    def __init__(self, directory: str, settings: RelaxTable, inotify_fd: int) -> None:
        self.directory = directory
        self.recorder: Recorder | None = None
        self.changes: Changes | None = None
        self.watch = -1
        """The number of its inotify watch; -1 for none."""
        self._settings = settings
        self._inotify = inotify_fd
        self._again = 0.0
        self._told = ""

    @property
    def due(self) -> float:
        """When to look again, by the monotonic clock."""
        return self.recorder.due if self.recorder is not None else self._again

    def look(self, *, now: bool = False) -> None:
        """Begin where it is there, save what was noted: when it is due, or ``now``."""
        if not now and time.monotonic() < self.due:
            return
        try:
            if self.recorder is None:
                self._begin()
            else:
                self.recorder.drain()
                self.recorder.save()
        except ActiveRestoreError as error:
            self._failed(error)

    def drain(self) -> None:
        """Note what was opened."""
        if self.recorder is not None:
            try:
                self.recorder.drain()
            except ActiveRestoreError as error:
                self._failed(error)

    def end(self, why: str = "") -> None:
        """Watch no more, for now."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None
        if self.changes is not None:
            self.changes.close()
            self.changes = None
        if self.watch >= 0:
            with contextlib.suppress(OSError):
                inotify.remove_watch(self._inotify, self.watch)
            self.watch = -1
        self._again = time.monotonic() + _AGAIN_S
        if why:
            self._tell(f"{shown(self.directory)} is not watched any more: {why}")

    def close(self) -> None:
        """Save and end."""
        if self.recorder is not None:
            try:
                self.recorder.drain()
                self.recorder.save()
            except ActiveRestoreError as error:
                self._tell(f"{shown(self.directory)}: {error}")
        self.end()

    def _begin(self) -> None:
        mask = inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF
        self._again = time.monotonic() + _AGAIN_S
        learning = Learning(self._settings.learn, self._settings.ignore)
        remembered = run_root() / f"learned-{directory_name(self.directory)}"
        recorder = Recorder(self.directory, learning, remembered, keep_s=self._settings.learn or _KEEP_S)
        try:
            if self._settings.changes:
                self.changes = Changes(self.directory)
            self.watch = inotify.add_watch(self._inotify, os.fsencode(os.path.realpath(self.directory)), mask)
        except (ActiveRestoreError, OSError) as error:
            recorder.close()
            self.end()
            if isinstance(error, ActiveRestoreError):
                raise
            raise ActiveRestoreError(f"{self.directory} cannot be watched: {error.strerror}") from error
        self.recorder = recorder
        self._told = ""
        _log.info("watching %s", shown(self.directory))

    def _failed(self, error: ActiveRestoreError) -> None:
        if isinstance(error, Gone):
            self.end(str(error))
        else:
            self._tell(f"{error}{f' ({error.hint})' if error.hint else ''}")

    def _tell(self, text: str) -> None:
        """Once for each cause."""
        if text != self._told:
            _log.warning("%s", text)
        self._told = text
