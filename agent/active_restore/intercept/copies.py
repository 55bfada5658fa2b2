"""Copies of a guard for the service to hold: should every process of ours die at once, tasks go on waiting."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from active_restore.config import service_socket, state_root
from active_restore.linux.mounts import superblock
from active_restore.linux.notify import GUARD_PARTS, store_descriptor

if TYPE_CHECKING:
    from active_restore.intercept.base import Territory
    from active_restore.intercept.keepers import Link


def offer(link: Link, territory: Territory) -> None:
    """Send copies to the service, if it runs.

    Not where a new keeper's own program and state are on the guarded file system: it could not even be started, and the
    whole machine would wait.
    """
    if superblock(territory.root) in {superblock(place) for place in _needed_for_a_start() if os.path.exists(place)}:
        return
    name = os.path.basename(territory.run_dir)
    for part, fd in zip(GUARD_PARTS, (link.group, link.listener, link.ledger.fd), strict=True):
        store_descriptor(str(service_socket()), f"{name}.{part}", fd)


def _needed_for_a_start() -> tuple[str, ...]:
    """What systemd, Python and the service open before a new keeper stands."""
    return ("/", "/usr", "/etc", os.path.realpath(sys.executable), __file__, str(state_root()), str(service_socket().parent))
