"""Crawlers that the policy of the machine names, and files by range."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.kernel.rig import MIB
from tests.kernel.tasks import Task, python
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig


def test_a_crawler_waits_for_its_range(rig: Rig, ext4_target: Path) -> None:
    """A crawler that reads a file by range fetches nothing of it; what others have fetched it may read."""
    content = os.urandom(40 * MIB)
    (rig.tree / "f0").write_bytes(content)
    (rig.place / "agent.toml").write_text('[policy]\nbackground = ["command:crawler"]\n')
    command = rig.restore(ext4_target, "--ranges", "f0", "--limit", "1")
    with rig.control(ext4_target) as client:
        client.pause()
        assert python("print(os.pread(os.open(sys.argv[1], 0), 3, 39 << 20))", ext4_target / "f0").decode().strip() == repr(
            content[39 * MIB :][:3]
        )
        code = 'open("/proc/self/comm", "w").write("crawler")\nfile = open(sys.argv[1], "rb", 0)\nfile.seek(39 << 20)\n'
        code += "assert len(file.read(3)) == 3\nfile.seek(20 << 20)\nsys.stdout.buffer.write(file.read(100))"
        with Task.python(code, ext4_target / "f0") as crawler:
            crawler.held()
            wait_until(lambda: [one.task.comm for one in client.status().waiting] == ["crawler"], "it is seen to wait")
            assert client.status().ranges.bytes_present < 30 * MIB
            assert python("print(os.pread(os.open(sys.argv[1], 0), 3, 10 << 20))", ext4_target / "f0")
            crawler.held()
            rig.hurry(ext4_target)
            assert crawler.output() == content[20 * MIB :][:100]
    assert command.end()[0] == 0
    rig.verify(ext4_target)
