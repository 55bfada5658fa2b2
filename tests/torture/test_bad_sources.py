"""Sources that are slow, break off, lie or refuse: tasks wait visibly or get EIO, and nothing else is disturbed."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from active_restore.predict.order import Order, Touch, encode
from tests.kernel.tasks import Task, python, read, refused
from tests.kernel.waiting import DEADLINE_S, wait_until
from tests.source.forge import Forge, node
from tests.store import servers
from tests.torture import bad_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.rig import Rig
    from tests.torture.bad_server import Badness

MIB = 1 << 20
# Each try of the demand lane is four requests of the store; the pauses between tries grow up to 15 s.
_MANY_REQUESTS = 200


class Remote:
    """A restic repository of a few files, two packs, on a REST server; one big file keeps the background busy."""

    def __init__(self, place: Path, rig: Rig) -> None:
        dice = random.Random(1)
        forge = Forge(place / "repo")
        forge.key("secret")
        self.files = {f"f{number}": dice.randbytes(30_000) for number in range(20)}
        nodes = []
        for name, data in self.files.items():
            nodes.append(node(name, size=len(data), content=[forge.blob(data)]))
            if name == "f9":
                self.first_pack = forge.flush()
        self.second_pack = forge.flush()
        tree = forge.tree(*nodes)
        forge.flush()
        forge.snapshot(tree)
        self.server = servers.RestServer(place)
        self.port = self.server.server_address[1]
        rig.source = f"restic:rest:http://{servers.USER}:{quote(servers.PASSWORD, safe='')}@{self.server.address}/repo/"
        rig.env["RESTIC_PASSWORD"] = "secret"

    def spoil(self, badness: Badness, *packs: str) -> Badness:
        """Requests for these packs go wrong; for all that hold content where none is named."""
        spoilt = packs or (self.first_pack, self.second_pack)
        self.server.fault = lambda request, path: path.name in spoilt and badness(request, path)
        return badness

    def stop(self) -> None:
        self.server.stop()


@pytest.fixture
def remote(rig: Rig) -> Iterator[Remote]:
    remote = Remote(rig.place / "server", rig)
    yield remote
    remote.stop()


PASSING: dict[str, Callable[[], Badness]] = {
    "403": lambda: bad_server.status(403),
    "401": lambda: bad_server.status(401),
    "429": lambda: bad_server.status(429),
    "500": lambda: bad_server.status(500),
    "503": lambda: bad_server.status(503),
    "reset": bad_server.reset,
    "short": bad_server.short,
}


@pytest.mark.parametrize("make", PASSING.values(), ids=PASSING.keys())
def test_what_passes_is_waited_for(rig: Rig, remote: Remote, ext4_target: Path, make: Callable[[], Badness]) -> None:
    badness = remote.spoil(make())
    command = rig.restore(ext4_target)
    with Task("cat", ext4_target / "f3") as task:
        task.held()
        with rig.control(ext4_target) as client:
            wait_until(lambda: client.status().source_unreachable_s > 0, "the agent tells that it cannot reach the source")
            assert [wait.path for wait in client.status().waiting] == [b"f3"]
        # Nothing else is disturbed: files that are no placeholders, metadata, and a new file.
        python(
            "open(sys.argv[1], 'w').write('mine'); assert len(os.listdir(sys.argv[2])) > 20", ext4_target / "new", ext4_target
        )
        assert badness.met < _MANY_REQUESTS
        badness.cure()
        assert task.output() == remote.files["f3"]
    assert command.end()[0] == 0
    for name, content in remote.files.items():
        assert (ext4_target / name).read_bytes() == content
    rig.assert_clean(ext4_target)


def test_server_that_says_nothing(rig: Rig, remote: Remote, ext4_target: Path) -> None:
    """It takes requests and does not answer: who waits for it waits, everything else goes on."""
    badness = remote.spoil(bad_server.silent())
    command = rig.restore(ext4_target)
    with Task("cat", ext4_target / "f3") as task:
        task.held()
        wait_until(lambda: badness.met, "the server was asked")
        with rig.control(ext4_target) as client:
            assert [wait.path for wait in client.status().waiting] == [b"f3"]
        python("open(sys.argv[1], 'w').write('mine')", ext4_target / "new")
        badness.cure()
        assert task.output() == remote.files["f3"]
    assert command.end()[0] == 0


def test_server_that_is_slow(rig: Rig, remote: Remote, ext4_target: Path) -> None:
    """It takes a second and more for each file: who wants one waits just for that, visibly; nobody is refused."""
    badness = remote.spoil(bad_server.slow())
    command = rig.restore(ext4_target, "--limit", "1")
    with Task("cat", ext4_target / "f15") as task:
        task.held()
        with rig.control(ext4_target) as client:
            assert [wait.path for wait in client.status().waiting] == [b"f15"]
        python("open(sys.argv[1], 'w').write('mine')", ext4_target / "new")
        assert task.output() == remote.files["f15"]
    badness.cure()
    rig.finish(command, ext4_target)
    for name, content in remote.files.items():
        assert (ext4_target / name).read_bytes() == content


def test_a_head_start_from_a_server_that_says_nothing(rig: Rig, remote: Remote, ext4_target: Path) -> None:
    """Files of a recorded order come before all is ready, but nobody waits for a source that does not answer."""
    order = rig.place / "order"
    order.write_bytes(encode(Order(0, tuple(Touch(name.encode(), "", 0) for name in remote.files))))
    badness = remote.spoil(bad_server.silent())
    # Long enough that the server is asked, on any machine.
    command = rig.restore(ext4_target, "--order", order, "--head-start", str(DEADLINE_S / 60))
    assert badness.met
    with rig.control(ext4_target) as client:
        assert client.status().lanes["predicted"].files == 0
    badness.cure()
    assert read(ext4_target / "f3") == remote.files["f3"]
    assert command.end()[0] == 0
    for name, content in remote.files.items():
        assert (ext4_target / name).read_bytes() == content
    rig.assert_clean(ext4_target)


def test_server_that_vanishes(rig: Rig, remote: Remote, ext4_target: Path) -> None:
    command = rig.restore(ext4_target, "--limit", "1")
    remote.stop()
    with Task("cat", ext4_target / "f15") as task:
        task.held()
        command.until("notice")
        task.held()
        remote.server = servers.RestServer(rig.place / "server", remote.port)
        assert task.output() == remote.files["f15"]
    rig.finish(command, ext4_target)
    rig.assert_clean(ext4_target)


LASTING: dict[str, Callable[[], Badness]] = {"404": lambda: bad_server.status(404), "wrong bytes": bad_server.wrong}


@pytest.mark.parametrize("make", LASTING.values(), ids=LASTING.keys())
def test_what_is_damage_is_refused(rig: Rig, remote: Remote, ext4_target: Path, make: Callable[[], Badness]) -> None:
    """Only the files of the bad pack: EIO, listed, exit code 3; when the server is repaired, resume restores them."""
    badness = remote.spoil(make(), remote.first_pack)
    command = rig.restore(ext4_target)
    code, _ = command.end()
    assert code == 3
    bad = {event["path"] for event in command.troubles if event["event"] == "refused"}
    assert bad == {f"f{number}" for number in range(10)}
    for name, content in remote.files.items():
        if name in bad:
            assert refused(ext4_target / name) == errno.EIO
        else:
            assert read(ext4_target / name) == content
    assert badness.met < _MANY_REQUESTS
    badness.cure()
    assert rig.run("resume", ext4_target).returncode == 0
    assert read(ext4_target / "f3") == remote.files["f3"]
    rig.assert_clean(ext4_target)
