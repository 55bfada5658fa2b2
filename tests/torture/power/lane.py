"""One file system through one recorded restore and then through many power cuts: ``python -m tests.torture.power.lane``.

Words: kind of file system, seed, number of cuts, how many disks (2: the state has one of its own), kind of source (dir or
restic), a directory to work in. It prints a line for each cut and ends with 1 at the first that breaks a promise.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from active_restore.marker import MARKER
from active_restore.placeholder import STAGING_PREFIX
from active_restore.source import manifest
from tests.kernel.rig import INTERCEPTORS, traces
from tests.kernel.tasks import Task
from tests.kernel.waiting import wait_until
from tests.source import forge
from tests.source.repositories import PASSWORD, Repository
from tests.torture import warm
from tests.torture.power.deeds import Chain, Deeds, difference, matches
from tests.torture.power.journal import Images, Journal, copy_sparse
from tests.torture.power.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KIB, MIB = 1 << 10, 1 << 20
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
}
SIZES = {"ext4": 96 * MIB, "xfs": 304 * MIB, "btrfs": 160 * MIB}
# XFS would not take a cut while another mount namespace holds the one before it.
_OPTIONS = {"ext4": "loop", "xfs": "loop,nouuid", "btrfs": "loop,nodiscard"}
_UNKNOWN, _NOT_EQUAL = 19, 1
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
_OLD_NS = 1_500_000_000_123_456_789
_READER = r"""
import hashlib, json, random, threading
place, wanted, seed = sys.argv[1:4]
digests, dice, pause = json.load(open(wanted)), random.Random(seed), threading.Event()
os.chdir(place)
while not os.path.exists('zz-last'):
    pause.wait(0.005)
names = sorted(digests)
dice.shuffle(names)
for name in names:
    try:
        data = open(name, 'rb').read()
    except FileNotFoundError:
        assert not digests[name], name
        continue
    if digests[name] and hashlib.md5(data).hexdigest() != digests[name]:
        print('wrong:', name, len(data), 'zeros:', data.count(0))
        raise SystemExit(1)
    pause.wait(dice.random() * 0.08)
print('right')
"""


class Broken(Exception):
    """A promise was not kept."""


def fill(tree: Path) -> None:
    """Small and big files, hard links, holes, attributes, odd names: what a restore has to bring, but little of it."""
    dice = random.Random(7)
    for number in range(54):
        folder = tree / f"d{number % 6}" / f"e{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number:02}").write_bytes(_text(dice, dice.choice((10, 900, 4 * KIB, 20 * KIB, 70 * KIB, 150 * KIB))))
    for number, size in enumerate((1200 * KIB, 1700 * KIB)):
        (tree / f"large{number}").write_bytes(_text(dice, size))
    (tree / "linked").write_bytes(_text(dice, 30 * KIB))
    (tree / "d1" / "other name").hardlink_to(tree / "linked")
    with open(tree / "sparse", "wb") as file:
        for at in (0, 700_000, 2_000_000):
            file.seek(at)
            file.write(_text(dice, 5000))
        file.truncate(3 * MIB)
    (tree / os.fsdecode(b"not \xff utf-8")).write_bytes(_text(dice, 3000))
    (tree / "setuid").write_bytes(_text(dice, 9000))
    (tree / "setuid").chmod(0o4755)
    (tree / "capable").write_bytes(_text(dice, 9000))
    os.setxattr(tree / "capable", "security.capability", CAPABILITY)
    os.setxattr(tree / "d0", "user.folder", b"one")
    os.setxattr(tree / "d0" / "e0" / "f00", "user.colour", b"blue")
    (tree / "symlink").symlink_to("d0/e0/f00")
    os.mkfifo(tree / "fifo")
    (tree / "zz-last").touch()
    for path in (*tree.rglob("*"), tree):
        os.utime(path, ns=(_OLD_NS, _OLD_NS), follow_symlinks=False)


def _text(dice: random.Random, size: int) -> bytes:
    """Without any zero, so that every zero that is found is one too many."""
    return dice.randbytes(size).replace(b"\0", b"0")


class Lane:
    """See above; everything lies below ``place``."""

    def __init__(self, kind: str, seed: int, place: Path, disks: int, source: str) -> None:
        self._kind = kind
        self._dice = random.Random(seed)
        self._place = place
        self.tree = place / "tree"
        self._mounts = [place / f"mount{number}" for number in range(disks)]
        self.target = self._mounts[0] / "target"
        self._images = [place / f"image{number}" for number in range(disks)]
        self._empty = [place / f"empty{number}" for number in range(disks)]
        self._state = self._mounts[-1] / "state"
        self._env = {
            **os.environ,
            "ACTIVE_RESTORE_CONFIG": str(place / "agent.toml"),
            "ACTIVE_RESTORE_STATE": str(self._state),
            "ACTIVE_RESTORE_RUN": str(place / "run"),
            "ACTIVE_RESTORE_LOG": str(place / "logbooks"),
        }
        for folder in (self.tree, *self._mounts):
            folder.mkdir()
        fill(self.tree)
        self._source = _restic(self.tree, place / "repository", self._env) if source == "restic" else _folder(self.tree)
        self._files = {path.relative_to(self.tree) for path in self.tree.rglob("*") if path.is_file() and not path.is_symlink()}
        self._files.discard(Path(manifest.NAME))
        self.deeds = Deeds(self.tree, self._dice, place)
        self._chain_of = {name: chain for chain in self.deeds.chains for name in chain.names()}
        self.counts: Counter[str] = Counter()
        self._first = 0
        self._stage = ""

    def record(self) -> Journal:
        """A restore with a reader and a writer, from its first byte to its last."""
        for image, empty in zip(self._images, self._empty, strict=True):
            made(self._kind, image)
            copy_sparse(image, empty)
        with Recorder(self._place, self._images) as recorder:
            with mounted(self._kind, [recorder.disk(number) for number in range(len(self._images))], self._mounts):
                self._restore(recorder)
            self.deeds.listen()
        return Journal(recorder.log)

    def _restore(self, recorder: Recorder) -> None:
        # The user's folder is not what this is about.
        self.target.mkdir()
        self._sync(self.target.parent)
        self._first = recorder.position()
        rate = self._dice.choice(("2MiB/s", "3MiB/s", "5MiB/s"))
        words = ["restore", *self._source, str(self.target), "--limit", rate, "--interceptor", INTERCEPTORS[0], "--json"]
        out, err = self._outputs("restore")
        with out.open("wb") as said, err.open("wb") as complained:
            agent = warm.start(words, self._env, said.fileno(), complained.fileno())
        wait_until(lambda: (self.target / "zz-last").exists() or _ended(agent), "it is visible")
        digests = {str(name): self._digest(name) for name in self._files if str(name).isascii()}
        (self._place / "digests").write_text(json.dumps(digests))
        reader = Task.python(_READER, self.target, self._place / "digests", str(self._dice.random()))
        writer = self.deeds.start(self.target, recorder.page, self._dice.randrange(1000))
        with reader, writer:
            self._expect(warm.wait(agent), 0, "restore")
            writer.output()
            assert reader.output() == b"right\n"

    def _digest(self, name: Path) -> str:
        if str(name) in self._chain_of:
            return ""
        return hashlib.md5((self.tree / name).read_bytes()).hexdigest()

    @staticmethod
    def _sync(folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)

    def cuts(self, journal: Journal, count: int) -> Iterator[str]:
        """Cut, mount, look, go on, look again; what each was like."""
        cut_images = [self._place / f"cut{number}" for number in range(len(self._images))]
        images = Images(journal, self._empty, cut_images)
        flushes = [position for position in journal.flushes() if position >= self._first]
        places = sorted(self._place_of_cut(flushes, len(journal.entries)) for _ in range(count))
        for position, kept in places:
            how = images.cut(position, self._dice, kept)
            try:
                with mounted(self._kind, cut_images, self._mounts):
                    what = self._after(position)
            except (Broken, AssertionError, OSError) as error:
                error.add_note(f"{self._stage}: cut at {position} of {len(journal.entries)}; {how}; {dict(self.counts)}")
                raise
            self.counts["cuts"] += 1
            yield f"cut at {position}: {what}; {how}"

    def _place_of_cut(self, flushes: list[int], end: int) -> tuple[int, float]:
        """Right behind a flush; or anywhere, when much or little of what was not flushed is there."""
        if self._dice.random() < 0.5:
            return self._dice.choice(flushes), 0.0
        return self._dice.randrange(self._first, end + 1), self._dice.choice((0.1, 0.5, 0.9, 1.0))

    def _after(self, position: int) -> str:
        shutil.rmtree(self._place / "run", ignore_errors=True)
        phase = self._phase()
        self.counts[phase] += 1
        self._stage = f"before resume, {phase}"
        self._look(position)
        if self._dice.random() < 0.15 and self._state.exists():
            shutil.rmtree(self._state)
            self.counts["state lost, too"] += 1
            phase += ", state lost"
        self._stage = f"after resume, {phase}"
        code = self._run("resume", str(self.target), "--json")
        if code == _UNKNOWN and not self._visible():
            phase += ", begun again"
            self.counts["begun again"] += 1
            code = self._run("restore", *self._source, str(self.target), "--json")
        if code != _UNKNOWN:
            self._expect(code, 0, phase)
        self._look(position, after=True)
        self._verify(position)
        return phase

    def _phase(self) -> str:
        for path in self._state.glob("*/restore.json"):
            return str(json.loads(path.read_text())["phase"])
        return "no state"

    def _visible(self) -> bool:
        return any(not name.startswith(STAGING_PREFIX) for name in os.listdir(self.target))

    def _look(self, position: int, *, after: bool = False) -> None:
        """Whatever has no marker must be right; afterwards nothing has one and everything is there."""
        for path in self._walk():
            name = str(path.relative_to(self.target))
            if MARKER in os.listxattr(path, follow_symlinks=False):
                if after:
                    raise Broken(f"{name} has a marker when all is over")
                continue
            chain = self._chain_of.get(name)
            if chain is None:
                content = (self.tree / name).read_bytes()
                found = path.read_bytes()
                if found != content:
                    raise Broken(f"{name}, which has no marker: {difference(found, content)}")
            elif not name.endswith(".new"):
                self._allowed(chain, name, path.read_bytes(), position)
        if after:
            for chain in self.deeds.begun(position):
                troubles = [list(matches(self.target, state, chain.names())) for state in chain.possible(position)]
                if all(troubles):
                    raise Broken(f"none of {_told(chain, position)}: {troubles}")
            assert traces(self.target) == []

    def _allowed(self, chain: Chain, name: str, found: bytes, position: int) -> None:
        states = [state for state in chain.possible(position) if state.name == name]
        if not any(state.has(found) for state in states):
            troubles = [difference(found, state.content) for state in states]
            raise Broken(
                f"{name} has no marker, and is none of {_told(chain, position)}: {troubles}; {os.stat(self.target / name)}"
            )

    def _walk(self) -> Iterator[Path]:
        """Regular files in the target that are visible."""
        for folder, folders, files in os.walk(self.target):
            folders[:] = [name for name in folders if not name.startswith(STAGING_PREFIX)]
            for name in files:
                path = Path(folder) / name
                if path.is_file() and not path.is_symlink():
                    yield path

    def _verify(self, position: int) -> None:
        """Our own word on it: nothing differs but what a user may have touched."""
        code = self._run("verify", *self._source, str(self.target), "--json", "--extra")
        touched = {name for chain in self.deeds.begun(position) for name in chain.names()}
        folders = {os.path.dirname(name) for name in touched}
        for event in self._said("verify"):
            name = event.get("path", "")
            users = name in touched or (event.get("what") == "mtime" and name in folders)
            if event["event"] == "difference" and not users:
                raise Broken(f"verify: {event}")
        self.counts["equal" if code == 0 else "changed by users"] += 1
        self._expect(code if code != _NOT_EQUAL else 0, 0, "verify")

    def _run(self, *words: str) -> int:
        return warm.run(words, self._env, *self._outputs(words[0]))

    def _outputs(self, command: str) -> tuple[Path, Path]:
        return self._place / f"{command}.out", self._place / f"{command}.err"

    def _said(self, command: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._outputs(command)[0].read_text().splitlines()]

    def _expect(self, code: int, expected: int, what: str) -> None:
        if code != expected:
            said = {path.name: path.read_text()[-1500:] for path in self._place.glob("*.err")}
            raise Broken(f"{what}: exit code {code}; {said}")


def _folder(tree: Path) -> tuple[str, ...]:
    """The tree as a source."""
    manifest.create(str(tree))
    return (f"dir:{tree}",)


def _restic(tree: Path, repository: Path, env: dict[str, str]) -> tuple[str, ...]:
    """The same, backed up by restic; ``env`` gets the password."""
    env["RESTIC_PASSWORD"] = PASSWORD
    made = Repository(str(repository), {"RESTIC_PASSWORD": PASSWORD})
    made.restic("init")
    forge.quicken(repository, PASSWORD)
    made.restic("backup", str(tree))
    return (made.spec, "--snapshot", f"latest:{tree}")


@contextlib.contextmanager
def mounted(kind: str, images: Sequence[Path], mounts: Sequence[Path]) -> Iterator[None]:
    """Each image on its mount point."""
    with contextlib.ExitStack() as stack:
        for image, mount in zip(images, mounts, strict=True):
            subprocess.run(["mount", "-o", _OPTIONS[kind], image, mount], check=True)
            stack.callback(wait_until, functools.partial(_unmounted, mount), f"{mount} can be unmounted")
        yield


def made(kind: str, image: Path) -> None:
    """A new, empty file system in a file."""
    with open(image, "wb") as file:
        file.truncate(SIZES[kind])
    subprocess.run([*MKFS[kind], image], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _told(chain: Chain, position: int) -> str:
    steps = zip(chain.steps, chain.begun, chain.durable, strict=True)
    done = [(step.deed, step.name, begun, durable) for step, begun, durable in steps if begun <= position]
    return f"{done} at {position}"


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _unmounted(mount: Path) -> bool:
    return not subprocess.run(["umount", mount], check=False, capture_output=True).returncode


def main(arguments: list[str]) -> int:
    """See above."""
    kind, seed, cuts, disks, source, place = arguments
    lane = Lane(kind, int(seed), Path(place), int(disks), source)
    journal = lane.record()
    print(f"{len(journal.entries)} records, {len(journal.flushes())} flushes", flush=True)
    try:
        for line in lane.cuts(journal, int(cuts)):
            print(line, flush=True)
    except (Broken, AssertionError, OSError) as error:
        print("BROKEN", type(error).__name__, error, *getattr(error, "__notes__", []), flush=True)
        return 1
    print("counts", json.dumps(lane.counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
