"""Truncation by path of files that are complete, but not settled yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kernel.rig import marked
from tests.kernel.tasks import Task
from tests.restore.agents import kill, make

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
    # Settling waits for half a second without faults.
    assert any(marked(ext4_target / name) for name in names)
    held_rig.finish(held_rig.resume(ext4_target), ext4_target)
    held_rig.assert_clean(ext4_target)
    for name in names:
        assert (ext4_target / name).read_bytes() == (held_rig.tree / name).read_bytes()[:10] + bytes(19_990)
