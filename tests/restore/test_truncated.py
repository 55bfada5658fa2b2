"""Truncation by path of files that are complete, but not settled yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kernel.rig import INTERCEPTORS, MIB, marked
from tests.kernel.tasks import Task
from tests.kernel.waiting import wait_until
from tests.restore.agents import OLD_NS, kill, make

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig


def test_killed_agent_does_not_bring_back_what_was_cut_off(held_rig: Rig, ext4_target: Path) -> None:
    """truncate(2) by path of a file that is complete, but not settled yet, asks nobody: the next agent must not fill it."""
    names = make(held_rig.tree, 50)
    command = held_rig.hold(ext4_target)
    code = (
        "for name in sys.argv[2:]:\n"
        "    path = os.path.join(sys.argv[1], name)\n"
        "    open(path, 'rb').read()\n"
        "    os.truncate(path, 10)\n"
        "    os.truncate(path, 20_000)\n"
    )
    with Task.python(code, ext4_target, *names) as user:
        user.output()
    kill(command)
    # Settling waits for half a second without faults. BPF holds who truncates until the file is settled.
    assert INTERCEPTORS[0] == "bpf" or any(marked(ext4_target / name) for name in names)
    held_rig.finish(held_rig.resume(ext4_target), ext4_target)
    held_rig.assert_clean(ext4_target)
    for name in names:
        assert (ext4_target / name).read_bytes() == (held_rig.tree / name).read_bytes()[:10] + bytes(19_990)


def _killed_while_filling_again(rig: Rig, target: Path, name: str) -> None:
    """Read a file, kill the agent before it settles that, and the next one while it fills the file again."""
    command = rig.hold(target)
    with Task.python("open(sys.argv[1], 'rb').read()", target / name) as user:
        user.output()
    kill(command)
    assert marked(target / name)
    assert (target / name).stat().st_mtime_ns == OLD_NS
    command = rig.resume(target)
    with rig.control(target) as client:
        client.limit(4 * MIB)
    wait_until(lambda: (target / name).stat().st_mtime_ns != OLD_NS, "it is being filled again")
    kill(command)
    assert marked(target / name)


def test_killed_while_it_fills_a_complete_file_again(held_rig: Rig, ext4_target: Path) -> None:
    """The time of modification that it leaves is not a user's."""
    (name,) = make(held_rig.tree, 1, 24 * MIB)
    _killed_while_filling_again(held_rig, ext4_target, name)
    held_rig.finish(held_rig.resume(ext4_target), ext4_target)
    held_rig.verify(ext4_target)


def test_truncated_after_that(held_rig: Rig, ext4_target: Path) -> None:
    """Who truncates a file that is about to be filled again is held: nothing that was cut off comes back."""
    (name,) = make(held_rig.tree, 1, 24 * MIB)
    _killed_while_filling_again(held_rig, ext4_target, name)
    with Task.python("os.truncate(sys.argv[1], 10)\nos.truncate(sys.argv[1], 20_000)", ext4_target / name) as user:
        command = held_rig.resume(ext4_target)
        held_rig.hurry(ext4_target)
        user.output()
    held_rig.finish(command, ext4_target)
    held_rig.assert_clean(ext4_target)
    assert (ext4_target / name).read_bytes() == (held_rig.tree / name).read_bytes()[:10] + bytes(19_990)
