"""What an agent itself needs as a placeholder: it must not wait for itself."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kernel.tasks import Task, read, run
from tests.kernel.waiting import wait_until
from tests.mqtt.broker import Mosquitto
from tests.mqtt.ear import Ear
from tests.restore.agents import kill, make
from tests.torture.power.recorder import Recorder
from tests.torture.test_bad_sources import Remote

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.rig import Rig

# Of any name it says that its address is 127.0.0.1, as soon as it has read its file.
_RESOLVER = """
import socket
open(sys.argv[2], 'rb').read()
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 53))
os.write(1, b'answers\\n')
while True:
    asked, who = sock.recvfrom(512)
    end = asked.index(b'\\0', 12) + 5
    ipv4 = asked[end - 4 : end - 2] == b'\\0\\x01'
    answer = b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\0\\0\\4\\x7f\\0\\0\\1' if ipv4 else b''
    sock.sendto(asked[:2] + b'\\x81\\x80\\0\\1\\0' + bytes([ipv4]) + b'\\0\\0\\0\\0' + asked[12:end] + answer, who)
"""


@pytest.mark.parametrize("name", ["ACTIVE_RESTORE_CONFIG", "RESTIC_PASSWORD_FILE", "RESTIC_CACERT"])
def test_files_that_resume_reads(rig: Rig, ext4_target: Path, name: str) -> None:
    """Refused at its start: nobody but this agent could restore them."""
    remote = Remote(rig.place / "server", rig)
    try:
        kill(rig.restore(ext4_target, "--limit", "1"))
        before = dict(rig.env)
        rig.env[name] = str(ext4_target / "f15")
        done = rig.run("resume", ext4_target)
        assert done.returncode == 16, done.stderr
        assert "f15 is needed to go on" in done.stderr
        rig.env.clear()
        rig.env.update(before)
        rig.finish(rig.resume(ext4_target), ext4_target)
        assert read(ext4_target / "f15") == remote.files["f15"]
    finally:
        remote.stop()


def test_the_reader_of_its_output_waits_for_a_file_itself(held_rig: Rig, ext4_target: Path) -> None:
    """As a log service does whose own files are placeholders: it takes nothing until the agent has served it."""
    first, *others = make(held_rig.tree, 1500, 2_000)
    kill(held_rig.hold(ext4_target))
    code = "data = open(sys.argv[1], 'rb').read()\nos.write(1, b'%d' % len(data))\nwhile os.read(0, 65536): pass"
    log = ["python3", "-S", "-E", "-c", f"import os, sys\n{code}", str(ext4_target / first)]
    down, up = os.pipe()
    reader = subprocess.Popen(log, stdin=down, stdout=subprocess.PIPE)
    argv = held_rig.argv("resume", ext4_target, "--json")
    agent = subprocess.Popen(argv, env=held_rig.env, stdout=up, stderr=up)
    os.close(down)
    os.close(up)
    count = "print(sum(len(open(os.path.join(sys.argv[1], name), 'rb').read()) for name in sys.stdin.read().split()))"
    with Task.python(count, ext4_target) as task:
        task.say("\n".join(others).encode())
        task.close_input()
        assert int(task.output()) == 2000 * len(others)
    held_rig.hurry(ext4_target)
    assert agent.wait(120) == 0
    assert reader.communicate(timeout=120)[0] == b"2000"
    held_rig.verify(ext4_target)


def test_broker_whose_files_are_placeholders(held_rig: Rig, ext4_target: Path) -> None:
    """It waits for the very agent that is to publish by it: the agent does not wait for it, and publishes when it is there."""
    broker = Mosquitto(held_rig.tree / "broker", f"log_dest file {ext4_target}/broker/log")
    (held_rig.tree / "broker/log").write_bytes(b"of before the backup\n" * 1000)
    url = ("--mqtt", f"mqtt://127.0.0.1:{broker.port}")
    kill(held_rig.hold(ext4_target, *url))
    with Task(broker.program, "-c", ext4_target / "broker/mosquitto.conf") as service:
        service.held()
        command = held_rig.start("resume", ext4_target, *url)
        command.until("ready")
        wait_until(broker.answers, "the broker has its files and answers")
        with Ear(broker.port) as ear:
            wait_until(lambda: any(heard.kind == "progress" for heard in ear.heard), "the agent publishes")
        held_rig.finish(command, ext4_target)
    assert (ext4_target / "broker/log").read_bytes().startswith((held_rig.tree / "broker/log").read_bytes())
    held_rig.assert_clean(ext4_target)


def _await_answers(resolver: Task) -> None:
    assert resolver.line() == b"answers\n", resolver.finish()


def test_resolver_whose_files_are_placeholders(rig: Rig, ext4_target: Path) -> None:
    """The source is known by a name that only a service of this machine knows, and that waits for a file of the source.

    With a connection that stands it is served; without one, and by the next agent, by the address that the name had.
    """
    remote = Remote(rig.place / "server", rig)
    address = f"127.{random.SystemRandom().randrange(2, 250)}.7.53"
    (rig.place / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:1 attempts:1\n")
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    rig.way_in = ("unshare", "--mount", "sh", "-c", script, str(rig.place / "resolv.conf"))
    rig.source = rig.source.replace("127.0.0.1", "backup.test")
    try:
        with Task.python(_RESOLVER, address, "/dev/null") as resolver:
            _await_answers(resolver)
            command = rig.restore(ext4_target, "--limit", "1", "--fault-timeout", "60")
        with Task.python(_RESOLVER, address, ext4_target / "f15") as resolver:
            _await_answers(resolver)
            assert read(ext4_target / "f3") == remote.files["f3"]
        remote.server.drop()
        with Task.python(_RESOLVER, address, ext4_target / "f16") as resolver:
            _await_answers(resolver)
            assert read(ext4_target / "f4") == remote.files["f4"]
        kill(command)
        with Task.python(_RESOLVER, address, ext4_target / "f17") as resolver:
            resolver.held()
            command = rig.resume(ext4_target)
            _await_answers(resolver)
        # Nobody answers any more: workers go by the address, too.
        rig.finish(command, ext4_target)
    finally:
        remote.stop()
    for name, content in remote.files.items():
        assert (ext4_target / name).read_bytes() == content
    rig.assert_clean(ext4_target)


def test_fuse_server_whose_file_is_a_placeholder(held_rig: Rig, ext4_target: Path) -> None:
    """A file system in user space, whose image lies on the target, on a loop device, mounted: each waits for the one below."""
    content, mount, place = (held_rig.place / name for name in ("content", "mounted", "fuse"))
    for folder in (content, mount, place):
        folder.mkdir()
    (content / "file").write_bytes(os.urandom(100_000))
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", content, held_rig.tree / "image", "20m"], check=True)
    command = held_rig.hold(ext4_target)
    with Recorder(place, [ext4_target / "image"]) as recorder:
        run("mount", "-o", "loop", recorder.disk(0), mount)
        try:
            assert read(mount / "file") == (content / "file").read_bytes()
            (mount / "new").write_bytes(b"mine")
            held_rig.finish(command, ext4_target)
        finally:
            subprocess.run(["umount", mount], check=True)
    run("mount", "-o", "loop,ro", ext4_target / "image", mount)
    try:
        assert (mount / "new").read_bytes() == b"mine"
    finally:
        subprocess.run(["umount", mount], check=True)
    held_rig.assert_clean(ext4_target)
