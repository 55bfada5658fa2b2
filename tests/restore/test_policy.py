"""Tasks that the policy of the machine does not serve at once: crawlers wait for the background, or are refused."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.kernel.rig import marked
from tests.kernel.tasks import Task, python, read
from tests.kernel.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

# It takes its name first: that is how it is known. It says what it has read so far.
_CRAWLER = """
open("/proc/self/comm", "w").write("crawler")
for name in sorted(os.listdir(sys.argv[1])):
    if name.startswith("f"):
        print(name, open(os.path.join(sys.argv[1], name)).read(), flush=True)
"""
_FILES = {f"f{number}": f"content of {number}\n" for number in range(40)}


@pytest.fixture
def tree(held_rig: Rig) -> Path:
    """Files that the background leaves alone until it may hurry."""
    for name, content in _FILES.items():
        (held_rig.tree / name).write_text(content)
    return held_rig.tree


def test_a_crawler_waits_for_the_background(held_rig: Rig, tree: Path, ext4_target: Path) -> None:
    assert tree.is_dir()
    (held_rig.place / "agent.toml").write_text('[policy]\nbackground = ["command:crawler"]\n')
    command = held_rig.hold(ext4_target)
    with Task.python(_CRAWLER, ext4_target) as crawler:
        crawler.held()
        with held_rig.control(ext4_target) as client:
            wait_until(lambda: [one.task.comm for one in client.status().waiting] == ["crawler"], "it is seen to wait")
            # Others are served at once meanwhile, also with the very file that the crawler waits for.
            assert [read(ext4_target / f"f{number}").decode() for number in (7, 8)] == [_FILES["f7"], _FILES["f8"]]
            assert client.status().faults == 2
        assert marked(ext4_target / "f1")
        held_rig.finish(command, ext4_target)
        assert crawler.output().decode() == "".join(f"{name} {_FILES[name]}\n" for name in sorted(_FILES))
    held_rig.verify(ext4_target)


def test_whoever_wants_it_too_brings_it(held_rig: Rig, tree: Path, ext4_target: Path) -> None:
    """The crawler is let go on with what others have fetched."""
    for name in list(_FILES)[1:]:
        (tree / name).unlink()
    (held_rig.place / "agent.toml").write_text('[policy]\nbackground = ["command:crawler"]\n')
    command = held_rig.hold(ext4_target)
    with Task.python(_CRAWLER, ext4_target) as crawler:
        crawler.held()
        assert read(ext4_target / "f0").decode() == _FILES["f0"]
        assert crawler.output().decode() == f"f0 {_FILES['f0']}\n"
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_refused(held_rig: Rig, tree: Path, ext4_target: Path) -> None:
    assert tree.is_dir()
    (held_rig.place / "agent.toml").write_text('[policy]\nrefuse = ["command:crawler"]\n')
    command = held_rig.hold(ext4_target)
    code = 'open("/proc/self/comm", "w").write("crawler")\ntry: open(sys.argv[1])\nexcept OSError as error: print(error.errno)'
    # Before 6.13 fanotify refuses with EPERM, whatever the reason.
    assert int(python(code, ext4_target / "f3")) in (errno.EAGAIN, errno.EPERM)
    assert marked(ext4_target / "f3")
    assert read(ext4_target / "f3").decode() == _FILES["f3"]
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)


def test_by_cgroup(held_rig: Rig, tree: Path, ext4_target: Path) -> None:
    """Also a cgroup that comes later than the policy, and one within it."""
    assert tree.is_dir()
    root = "/sys/fs/cgroup/unified" if os.path.exists("/sys/fs/cgroup/unified") else "/sys/fs/cgroup"
    group = f"active-restore-test-{os.getpid()}"
    (held_rig.place / "agent.toml").write_text(f'[policy]\nrefuse = ["cgroup:/{group}"]\n')
    command = held_rig.hold(ext4_target)
    code = (
        "os.makedirs(sys.argv[2])\nopen(sys.argv[2] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "import time\nend = time.monotonic() + 60\n"
        "while time.monotonic() < end:\n"
        "    try: open(sys.argv[1]).read()\n"
        "    except OSError as error: print(error.errno); break\n"
        f"open('{root}/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "os.rmdir(sys.argv[2]); os.rmdir(os.path.dirname(sys.argv[2]))"
    )
    assert int(python(code, ext4_target / "f3", f"{root}/{group}/inner")) in (errno.EAGAIN, errno.EPERM)
    held_rig.finish(command, ext4_target)
    held_rig.verify(ext4_target)
