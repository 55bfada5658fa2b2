"""Tasks that policy refuses, by the name of their command or by their cgroup (or one around it)."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from active_restore.ebpf import abi
from active_restore.intercept.pins import Pins, directory
from tests.vm.inside.territory import Child, python

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.inside.territory import Guarded

_REFUSE = struct.pack("=I", abi.load().constants["POLICY_REFUSE"])
_ATTEMPT = "import sys; input()\ntry: open(sys.argv[1])\nexcept OSError as error: print(error.errno)\nelse: print('read')"
_GROUP = Path("/sys/fs/cgroup/active-restore-policy")


@pytest.fixture
def pins(guarded: Guarded) -> Iterator[Pins]:
    """The maps of the interceptor."""
    opened = Pins(directory(guarded.territory.restore_id))
    yield opened
    opened.close()


def test_refused_by_command(guarded: Guarded, pins: Pins) -> None:
    path = guarded.lay_now("command", b"content\n")
    key = b"crawler".ljust(16, b"\0")
    pins.maps["commands"].put(key, _REFUSE)
    name = "open(my $comm, '>', '/proc/self/comm'); print $comm 'crawler'; close $comm;"
    attempt = f"{name} open(my $file, '<', shift) or print 0 + $!;"
    assert Child("perl", "-e", attempt, path).finish() == f"{errno.EAGAIN}"
    assert guarded.faults == []
    pins.maps["commands"].remove(key)
    assert Child("cat", path).finish() == "content\n"


@pytest.mark.ci("6.12")
def test_refused_by_cgroup(guarded: Guarded, pins: Pins) -> None:
    path = guarded.lay_now("cgroup", b"content\n")
    inner = _GROUP / "inner"
    inner.mkdir(parents=True)
    key = struct.pack("=Q", os.stat(_GROUP).st_ino)
    pins.maps["cgroups"].put(key, _REFUSE)
    try:
        child = python(_ATTEMPT, path)
        (inner / "cgroup.procs").write_text(str(child.pid))
        assert child.finish(b"\n") == f"{errno.EAGAIN}\n"
        assert guarded.faults == []
        assert Child("cat", path).finish() == "content\n"
    finally:
        pins.maps["cgroups"].remove(key)
        inner.rmdir()
        _GROUP.rmdir()
