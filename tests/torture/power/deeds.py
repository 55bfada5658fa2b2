"""What a user does to files while they are restored, what of it must outlive a power cut, and what may be there instead.

The user notes the position of the disk's log in front of each deed and behind it, when fsync(2) has returned: whatever is cut
behind that second position must show the deed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from active_restore.source import manifest
from tests.kernel.tasks import Task

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

_MINE = b"written by a user, "
_NEVER = sys.maxsize
_USER = r"""
import errno, json, mmap, random, struct, threading
place, page, notes, wanted, seed = sys.argv[1:6]
chains, dice, pause = json.load(open(wanted)), random.Random(seed), threading.Event()
os.chdir(place)
shared = mmap.mmap(os.open(page, os.O_RDONLY), mmap.PAGESIZE, prot=mmap.PROT_READ)
told = os.open(notes, os.O_WRONLY | os.O_APPEND)
def tell(word, chain, number):
    os.write(told, b'%s %d %d %d\n' % (word, chain, number, struct.unpack_from('<Q', shared)[0]))
def sync(name, flags=os.O_RDONLY):
    fd = os.open(name, flags)
    os.fsync(fd)
    os.close(fd)
def folder(name):
    sync(os.path.dirname(name) or '.', os.O_RDONLY | os.O_DIRECTORY)
def write(name, flags, data, at, synced):
    fd = os.open(name, flags)
    os.pwrite(fd, data, at) if at is not None else os.write(fd, data)
    if synced:
        os.fsync(fd)
    os.close(fd)
def perform(deed, name, at, data, synced):
    data = bytes.fromhex(data)
    if deed == 'change':
        write(name, os.O_RDWR, data, at, synced)
    elif deed == 'append':
        write(name, os.O_WRONLY | os.O_APPEND, data, None, synced)
    elif deed == 'empty':
        write(name, os.O_WRONLY | os.O_TRUNC, data, None, synced)
    elif deed == 'create':
        write(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, data, None, synced)
        if synced: folder(name)
    elif deed == 'truncate':
        os.truncate(name, at)
        if synced: sync(name)
    elif deed == 'replace':
        write(name + '.new', os.O_WRONLY | os.O_CREAT, data, None, True)
        os.rename(name + '.new', name)
        if synced: folder(name)
    elif deed == 'rename':
        os.rename(name, name + '.moved')
        if synced: folder(name)
    elif deed == 'unlink':
        os.unlink(name)
        if synced: folder(name)
    elif deed == 'chmod':
        os.chmod(name, at)
        if synced: sync(name)
# One file may only be touched when all is visible.
while not os.path.exists('zz-last'):
    pause.wait(0.005)
for chain, number, first, step in chains:
    while first and not os.path.lexists(step[1]):
        pause.wait(0.005)
    tell(b'begin', chain, number)
    perform(*step)
    tell(b'end', chain, number)
    pause.wait(dice.random() * 0.06)
"""


class State(NamedTuple):
    """A file: where it is (``None``: nowhere), its content, and its mode where that was changed.

    ``before`` is there for a deed that may be done in part: what the file was.
    """

    name: str | None
    content: bytes
    mode: int | None = None
    before: bytes | None = None
    emptied: bool = False

    def has(self, found: bytes) -> bool:
        """Whether this may be its content."""
        if found == self.content or self.before is None:
            return found == self.content
        # Byte by byte what was or what will be. Where one of the two ends, and in what was emptied first, the file system
        # may have a new size (that grows page by page) and no data yet: that are the user's own zeros.
        size, sizes = len(found), sorted((len(self.before), len(self.content)))
        if not (sizes[0] <= size <= sizes[1] or (self.emptied and size <= len(self.content))):
            return False
        was, will = (np.frombuffer(data[:size].ljust(size, b"\0"), np.uint8) for data in (self.before, self.content))
        is_ = np.frombuffer(found, np.uint8)
        right = (is_ == was) | (is_ == will)
        both = 0 if self.emptied and size <= len(self.content) else sizes[0]
        right[both:] |= is_[both:] == 0
        return bool(right.all())


class Step(NamedTuple):
    """A deed and what it makes of the file; ``at`` is an offset, a size or a mode. Unless ``synced`` it may be lost."""

    deed: str
    name: str
    at: int
    data: bytes
    synced: bool
    outcome: State

    def between(self, before: State) -> list[State]:
        """What else a cut in the middle may leave."""
        if self.deed in ("change", "append", "truncate", "empty", "create"):
            return [self.outcome._replace(before=before.content, emptied=self.deed == "empty")]
        return []


_CHAINS = (
    ("change",),
    ("append",),
    ("empty",),
    ("replace",),
    ("truncate",),
    ("unlink",),
    ("rename",),
    ("chmod",),
    ("rename", "change"),
    ("change", "append", "truncate"),
    ("change", "unlink"),
    ("rename", "empty"),
    ("truncate", "append"),
    ("create", "change"),
)


class Chain:
    """What happens to one file, deed by deed."""

    def __init__(self, base: str, start: State, deeds: tuple[str, ...], dice: random.Random) -> None:
        self._base = base
        self.states = [start]
        self.steps: list[Step] = []
        for number, deed in enumerate(deeds):
            # What is not synced comes last: the next fsync(2) of the file would sync it, too.
            synced = number < len(deeds) - 1 or dice.random() < 0.7
            self._add(deed, self.states[-1], dice, synced=synced)
        self.begun = [_NEVER] * len(self.steps)
        self.durable = [_NEVER] * len(self.steps)

    def _add(self, deed: str, now: State, dice: random.Random, *, synced: bool) -> None:
        name, content = now.name or self._base, now.content
        data = _MINE * dice.choice((1, 1, 300))
        at = dice.randrange(len(content) + 1)
        match deed:
            case "change":
                outcome = State(name, content[:at] + data + content[at + len(data) :], now.mode)
            case "append":
                outcome = State(name, content + data, now.mode)
            case "truncate":
                outcome = State(name, content[:at], now.mode)
            case "rename":
                outcome = State(f"{name}.moved", content, now.mode)
            case "unlink":
                outcome = State(None, b"")
            case "chmod":
                at = 0o604
                outcome = State(name, content, at)
            case _:
                outcome = State(name, data, None if deed == "replace" else now.mode)
        self.steps.append(Step(deed, name, at, data, synced, outcome))
        self.states.append(outcome)

    def names(self) -> set[str]:
        """Every name that it may have."""
        return {state.name for state in self.states if state.name} | {f"{step.name}.new" for step in self.steps}

    def begun_at(self, position: int) -> bool:
        """Whether the user had done anything to it when that was cut."""
        return bool(self.begun) and self.begun[0] <= position

    def possible(self, position: int) -> list[State]:
        """What may be found when the disk is cut there."""
        durable = sum(at <= position for at in self.durable)
        begun = sum(at <= position for at in self.begun)
        found = self.states[durable : begun + 1]
        for number in range(durable, begun):
            found += self.steps[number].between(self.states[number])
        return found


class Deeds:
    """All chains of one user; ``start`` them on the target, then ``listen`` to what it noted."""

    def __init__(self, tree: Path, dice: random.Random, place: Path) -> None:
        self._place = place
        self._notes = place / "notes"
        names = sorted(
            str(path.relative_to(tree)) for path in tree.rglob("*") if _ordinary(path) and path.name != manifest.NAME
        )
        chosen = dice.sample(names, len(names) * 2 // 3)
        self.chains: list[Chain] = []
        for number, name in enumerate(chosen):
            deeds = _CHAINS[number % len(_CHAINS)]
            if deeds[0] == "create":
                self.chains.append(Chain(f"{name}.users", State(None, b""), deeds, dice))
            else:
                self.chains.append(Chain(name, State(name, (tree / name).read_bytes()), deeds, dice))
        self._order = [index for index, chain in enumerate(self.chains) for _ in chain.steps]
        dice.shuffle(self._order)

    def start(self, target: Path, page: Path, seed: int) -> Task:
        """The user, a process of its own."""
        next_step = [0] * len(self.chains)
        script = []
        for index in self._order:
            number = next_step[index]
            next_step[index] += 1
            step = self.chains[index].steps[number]
            first = number == 0 and step.deed != "create"
            script.append((index, number, first, (step.deed, step.name, step.at, step.data.hex(), step.synced)))
        (self._place / "script").write_text(json.dumps(script))
        self._notes.touch()
        return Task.python(_USER, target, page, self._notes, self._place / "script", str(seed))

    def listen(self) -> None:
        """Read what it noted."""
        for line in self._notes.read_text().splitlines():
            word, index, number, position = line.split()
            chain, at = self.chains[int(index)], int(number)
            if word == "begin":
                chain.begun[at] = int(position)
            elif chain.steps[at].synced:
                chain.durable[at] = int(position)

    def begun(self, position: int) -> list[Chain]:
        """The chains of which something may be seen."""
        return [chain for chain in self.chains if chain.begun_at(position)]


def _ordinary(path: Path) -> bool:
    """A file with one name and content of its own."""
    found = path.lstat()
    return (
        path.is_file() and not path.is_symlink() and found.st_nlink == 1 and 0 < found.st_size < 4 << 20 and path.name.isascii()
    )


def matches(target: Path, state: State, names: set[str]) -> Iterator[str]:
    """What of a file is not in this state; nothing where all is."""
    for name in sorted(names):
        path = target / name
        there = os.path.lexists(path)
        if name == state.name:
            if not there:
                yield f"{name} is missing"
            elif not state.has(found := path.read_bytes()):
                yield f"{name}: {difference(found, state.content)}"
            elif state.mode is not None and path.stat().st_mode & 0o7777 != state.mode:
                yield f"{name}: its mode is {path.stat().st_mode & 0o7777:o}"
        elif there and not name.endswith(".new"):
            yield f"{name} is there"


def difference(found: bytes, expected: bytes) -> str:
    """In words."""
    if len(found) != len(expected):
        return f"{len(found)} bytes instead of {len(expected)}, {found.count(0)} zeros"
    at = next(index for index in range(len(found)) if found[index] != expected[index])
    return f"differs at {at}, {found.count(0)} zeros of {len(found)}"
