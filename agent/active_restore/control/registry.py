"""The restores that this machine knows: one directory each in the state directory, named after the target.

A directory holds ``restore.json`` with at least ``restore_id``, ``source``, ``target``, ``snapshot`` and ``phase``. It is
written by the agent and read here, so that a restore can be found while no agent runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from active_restore.config import run_root, state_root
from active_restore.control.names import shown
from active_restore.ebpf.spared import spared
from active_restore.errors import ActiveRestoreError, CapabilityMissing, NotRunning

if TYPE_CHECKING:
    from pathlib import Path

_FILE = "restore.json"
_SOCKET = "control.sock"


@dataclass(frozen=True, slots=True)
class Known:
    """A restore that has begun and has not ended. Text may hold undecodable bytes as ``os.fsdecode`` gives them."""

    name: str
    restore_id: str
    source: str
    target: str
    snapshot: str
    phase: str

    @property
    def socket_path(self) -> Path:
        """Where its agent listens, if one runs."""
        return run_root() / self.name / _SOCKET


def directory_name(target: str) -> str:
    """What the directories of this target are called under the state and the run directory: 16 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(os.path.realpath(target))).hexdigest()[:16]


def known() -> list[Known]:
    """Every restore whose state can be read, by target. Raises ``CapabilityMissing`` where we may not look."""
    try:
        names = sorted(os.listdir(state_root()))
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise _not_root() from error
    found = (_read(name) for name in names)
    return sorted((restore for restore in found if restore is not None), key=lambda restore: restore.target)


def names() -> list[str]:
    """The directories of all restores, also of those whose state cannot be read."""
    try:
        return sorted(os.listdir(state_root()))
    except FileNotFoundError:
        return []


def lookup(name: str) -> Known | None:
    """The restore of this directory, if there is one. Raises ``ActiveRestoreError`` where its state is damaged."""
    return _read(name)


def find(target: str) -> Known:
    """The restore of this target. Raises ``NotRunning``."""
    restore = _read(directory_name(target))
    if restore is None:
        raise NotRunning(f"no restore is known for {shown(target)}", "see: active-restore status")
    return restore


def containing(path: str) -> tuple[Known, bytes]:
    """The innermost restore whose target holds this path, and the path relative to it. Raises ``NotRunning``.

    Symlinks above and at the path are followed; nothing is opened, so no placeholder is touched.
    """
    real = os.fsencode(os.path.realpath(path))
    holders = [restore for restore in known() if _holds(os.fsencode(restore.target), real)]
    if not holders:
        raise NotRunning(f"{shown(path)} is in no tree that is being restored", "see: active-restore status")
    restore = max(holders, key=lambda holder: len(os.fsencode(holder.target)))
    relative = os.path.relpath(real, os.fsencode(restore.target))
    return restore, b"" if relative == b"." else relative


def _holds(target: bytes, path: bytes) -> bool:
    return path == target or path.startswith(target.rstrip(b"/") + b"/")


def _read(name: str) -> Known | None:
    try:
        with spared():
            raw = (state_root() / name / _FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise _not_root() from error
    try:
        # Not by pydantic: names that are not UTF-8 are lone surrogates here, which it refuses.
        fields: dict[str, Any] = json.loads(raw)
        return Known(name, *(str(fields[key]) for key in ("restore_id", "source", "target", "snapshot", "phase")))
    except (ValueError, KeyError, TypeError) as error:
        raise ActiveRestoreError(
            f"the state in {state_root() / name} is damaged: {error!r}",
            "run: active-restore resume TARGET, which rebuilds it from what is on disk",
        ) from error


def _not_root() -> CapabilityMissing:
    return CapabilityMissing("only root may see the restores of this machine", "run the command with sudo")
