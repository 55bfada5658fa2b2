"""Keepers and those who stand by, where the agent that starts them is no help."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from active_restore.intercept.fanotify import FanotifyInterceptor
from active_restore.linux.process import is_alive
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from active_restore.intercept.base import Territory
    from active_restore.intercept.keepers import Link


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "it has ended")


def _stand_by_for_nobody(link: Link, territory: Territory) -> None:
    """Start a standby like an agent that is killed before it is told that it stands."""
    read, write = os.pipe()
    os.close(read)
    watch = os.pidfd_open(link.ledger.keeper)
    inherited = [link.group, link.ledger.fd, link.listener, write, watch]
    words = [*map(str, inherited), str(link.ledger.mask), territory.marker_prefix.hex()]
    command = [sys.executable, "-P", "-m", "active_restore.intercept.keeper", *words]
    subprocess.run(command, pass_fds=inherited, cwd="/", check=True)
    for fd in (write, watch):
        os.close(fd)


def test_standby_outlives_the_agent_that_started_it(territory: Territory) -> None:
    """It may be all that is left of the guard: who dies then lets everybody through to what is not restored yet."""
    first = FanotifyInterceptor()
    first.arm(territory)
    link, _ = first._linked()
    wait_until(lambda: is_alive(link.ledger.standby), "somebody stands by")
    kept = link._replace(group=os.dup(link.group), listener=os.dup(link.listener))
    first.leave()
    _end(kept.ledger.standby)
    before = kept.ledger.standby
    _stand_by_for_nobody(kept, territory)
    wait_until(lambda: kept.ledger.standby not in (0, before), "the new one stands by")
    standby = kept.ledger.standby
    _end(kept.ledger.keeper)
    for fd in (kept.group, kept.listener):
        os.close(fd)
    wait_until(lambda: kept.ledger.keeper == standby, "it has taken over")
    second = FanotifyInterceptor()
    assert second.adopt(territory)
    assert second.keeper_pid == standby
    second.disarm()
    wait_until(lambda: not is_alive(standby), "the keeper has ended")
