"""Whom the machine's policy does not serve at once: found by the cgroup of a task (the innermost named), else by its command.

The kernel side of BPF decides by the same rules (``find_policy`` in ``bpf/gate.bpf.c``); the guard decides here.
"""

from __future__ import annotations

import enum
import os
import struct
from typing import TYPE_CHECKING

from active_restore.ebpf import abi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from active_restore.config import Policy
    from active_restore.ebpf.maps import Map

_CGROUPS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
_VALUE, _ID = struct.Struct("=I"), struct.Struct("=Q")
_COMMAND_BYTES = 16
_ABI = abi.load().constants


class Treatment(enum.IntEnum):
    """Values of ``enum policy``."""

    SERVE = _ABI["POLICY_NONE"]
    BACKGROUND = _ABI["POLICY_BACKGROUND"]
    REFUSE = _ABI["POLICY_REFUSE"]


def _named(policy: Policy, kind: str) -> Mapping[str, Treatment]:
    """What is said about commands or cgroups; who is named twice is refused."""
    said = dict.fromkeys(policy.background, Treatment.BACKGROUND) | dict.fromkeys(policy.refuse, Treatment.REFUSE)
    return {name.removeprefix(kind): treatment for name, treatment in said.items() if name.startswith(kind)}


class Judge:
    """A policy, applied to threads as /proc shows them. False where it says nothing about anybody."""

    def __init__(self, policy: Policy) -> None:
        self._commands = _named(policy, "command:")
        self._cgroups = _named(policy, "cgroup:")

    def __bool__(self) -> bool:
        return bool(self._commands or self._cgroups)

    def of(self, tid: int) -> Treatment:
        """How this thread is treated; one that is gone is served."""
        try:
            within = _cgroup_of(tid) if self._cgroups else ""
            with open(f"/proc/{tid}/comm", errors="surrogateescape") as comm:
                command = comm.read().rstrip("\n")
        except OSError:
            return Treatment.SERVE
        while within not in ("", "/"):
            if within in self._cgroups:
                return self._cgroups[within]
            within = os.path.dirname(within)
        return self._commands.get(command, Treatment.SERVE)


def _cgroup_of(tid: int) -> str:
    """Its path in the unified hierarchy (cgroups(7)), empty where there is none."""
    with open(f"/proc/{tid}/cgroup", errors="surrogateescape") as lines:
        return next((line[3:].rstrip("\n") for line in lines if line.startswith("0::")), "")


class PolicyMaps:
    """The maps ``commands`` and ``cgroups`` of the kernel side. A cgroup may come later than the policy that names it."""

    def __init__(self, policy: Policy, commands: Map, cgroups: Map) -> None:
        self._named = _named(policy, "cgroup:")
        self._judge = Judge(policy)
        self._map = cgroups
        self._known: dict[str, bytes] = {}
        for pinned in (commands, cgroups):
            for key, _ in list(pinned.items()):
                pinned.remove(key)
        for name, treatment in _named(policy, "command:").items():
            commands.put(os.fsencode(name).ljust(_COMMAND_BYTES, b"\0"), _VALUE.pack(treatment))
        self.refresh()

    def of(self, tid: int) -> Treatment:
        """How a thread is treated that the kernel side holds, which does not know a cgroup that came a moment ago."""
        return self._judge.of(tid) if self._named else Treatment.SERVE

    def refresh(self) -> None:
        """Look which of the named cgroups are there now."""
        for path, treatment in self._named.items():
            found, known = _cgroup_id(path), self._known.get(path)
            if found == known:
                continue
            if known is not None:
                self._map.remove(self._known.pop(path))
            if found is not None:
                self._map.put(found, _VALUE.pack(treatment))
                self._known[path] = found


def _cgroup_id(path: str) -> bytes | None:
    """The number by which the kernel knows a cgroup: that of its directory."""
    for root in _CGROUPS:
        try:
            return _ID.pack(os.stat(root + path).st_ino)
        except OSError:
            continue
    return None
