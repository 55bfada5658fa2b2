"""What a restore was asked to do, as one value that survives in the state directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Existing = Literal["refuse", "metadata", "content"]
InterceptorName = Literal["auto", "bpf", "fanotify"]
Hold = Literal["ptrace", "sigstop"]
Throttle = Literal["auto", "off"]
RANGE_THRESHOLD_BYTES = 16 << 20


def state_root() -> Path:
    """Where state of running restores lives; durable over a reboot."""
    return Path(os.environ.get("ACTIVE_RESTORE_STATE", "/var/lib/active-restore"))


def cache_root() -> Path:
    """Where compiled programs are kept; may be removed at any time."""
    return Path(os.environ.get("ACTIVE_RESTORE_CACHE", "/var/cache/active-restore"))


def run_root() -> Path:
    """Where sockets live; gone after a reboot."""
    return Path(os.environ.get("ACTIVE_RESTORE_RUN", "/run/active-restore"))


def service_socket() -> Path:
    """Where the service hears its children and takes descriptors of guards; there while it runs."""
    return run_root() / "notify"


@dataclass(frozen=True, slots=True)
class LimitWindow:
    """A limit for some hours of the day: minutes since midnight, local time. Over midnight where it ends before it begins."""

    begin_minute: int
    end_minute: int
    bytes_per_s: int


def log_root() -> Path:
    """Where logbooks of restores are kept; they outlive the restore."""
    return Path(os.environ.get("ACTIVE_RESTORE_LOG", "/var/log/active-restore"))


@dataclass(frozen=True, slots=True)
class Policy:
    """Tasks that are not served at once, by ``command:NAME`` or ``cgroup:PATH`` (with all cgroups in it).

    ``background``: they wait until the background comes by. ``refuse``: they get EAGAIN.
    """

    background: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()


NO_POLICY = Policy()


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """One restore. ``source`` is the user's spelling without secrets, ``target`` an absolute path.

    ``limit_bytes_per_s`` is 0 for no limit and holds outside of ``limit_windows``; ``workers`` 0 lets the agent choose;
    ``order`` is a file with a recorded order, empty for the snapshot's own; ``head_start_s`` bounds the time in which its
    first files are restored before all is ready;
    ``connections`` is how many requests at a time a remote source gets (0: as many as there is use for);
    ``ranges`` are patterns of files that are restored by range from ``range_threshold_bytes`` on;
    ``fault_timeout_s`` is how long tasks wait for a source that cannot be reached; ``hold`` is how BPF holds them.
    """

    source: str
    target: str
    snapshot: str = "latest"
    subfolder: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    existing: Existing = "refuse"
    interceptor: InterceptorName = "auto"
    hold: Hold = "ptrace"
    limit_bytes_per_s: int = 0
    limit_windows: tuple[LimitWindow, ...] = ()
    throttle: Throttle = "off"
    fault_timeout_s: float = 600.0
    workers: int = 0
    order: str = ""
    head_start_s: float = 1.0
    connections: int = 0
    ranges: tuple[str, ...] = ()
    range_threshold_bytes: int = RANGE_THRESHOLD_BYTES
