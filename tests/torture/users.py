"""Users of a target that is being restored and attacked: they never give up, and tell at once when a byte is wrong.

The death of a keeper refuses the one or two events that it was just looking at with EIO (see ``intercept.keeper``): users try
again, and count.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.tasks import Task

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

_PATIENCE = r"""
import errno, hashlib, json, mmap, random, threading, time
refused = 0
place, seed, wanted, longest = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3])), float(sys.argv[4])
dice, pause = random.Random(seed), threading.Event()
os.chdir(place)
# Before 6.13 a refusal has no errno of its own.
words = (errno.EIO,) if tuple(map(int, os.uname().release.split('.')[:2])) >= (6, 13) else (errno.EIO, errno.EPERM)
def patiently(deed, *given):
    global refused
    while True:
        try:
            return deed(*given)
        except OSError as error:
            if error.errno not in (errno.ENOENT, *words):
                raise
            refused += error.errno in words
        pause.wait(0.003)
"""
_READER = (
    _PATIENCE
    + r"""
def whole(name):
    return open(name, 'rb').read()
def mapped(name):
    with open(name, 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        return bytes(view)
def backwards(name):
    with open(name, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        return b''.join(reversed([os.pread(file.fileno(), 4096, at) for at in range((size - 1) // 4096 * 4096, -1, -4096)]))
def skipping_holes(name):
    with open(name, 'rb') as file:
        fd, size, at = file.fileno(), os.fstat(file.fileno()).st_size, 0
        data = bytearray(size)
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(fd, at, os.SEEK_HOLE)
            data[at:end] = os.pread(fd, end - at, at)
            at = end
        return bytes(data)
names = sorted(wanted)
dice.shuffle(names)
for name in names:
    way = dice.choice([whole, mapped, backwards, skipping_holes])
    data = patiently(way, name)
    if hashlib.md5(data).hexdigest() != wanted[name]:
        again = patiently(whole, name)
        first = next((at for at, (a, b) in enumerate(zip(data, again)) if a != b), -1)
        later = 'right' if hashlib.md5(again).hexdigest() == wanted[name] else 'as wrong' if again == data else 'wrong'
        print('wrong:', name, way.__name__, len(data), 'bytes, zeros:', data.count(0), 'differs at', first, 'a moment later:',
              later, 'monotonic', time.monotonic(), os.stat(name), os.listxattr(name), flush=True)
        raise SystemExit(1)
    pause.wait(dice.random() * longest)
print('right', refused)
"""
)
_WRITER = (
    _PATIENCE
    + r"""
def change(name, at):
    fd = os.open(name, os.O_RDWR)
    os.pwrite(fd, b'mine', at)
    os.fsync(fd)
    os.close(fd)
def append(name, at):
    fd = os.open(name, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b'mine')
    os.fsync(fd)
    os.close(fd)
def empty(name, at):
    fd = os.open(name, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b'mine')
    os.fsync(fd)
    os.close(fd)
def replace(name, at):
    # Only what is visible is replaced: else the restore would find a file of the user in the way.
    os.stat(name)
    with open(name + '.new', 'wb') as file:
        file.write(b'mine')
    os.rename(name + '.new', name)
def truncate(name, at):
    os.truncate(name, at)
deeds = {'change': change, 'append': append, 'empty': empty, 'replace': replace, 'truncate': truncate, 'unlink': os.unlink}
for name, deed, at in wanted:
    patiently(*([deeds[deed], name] + ([] if deed == 'unlink' else [at])))
    pause.wait(dice.random() * longest)
print('right', refused)
"""
)
DEEDS = ("change", "append", "empty", "replace", "truncate", "unlink")


class Change(NamedTuple):
    """What a user does to a file: one of ``DEEDS``, at an offset."""

    name: str
    deed: str
    at: int

    def outcome(self, content: bytes) -> bytes | None:
        """The file afterwards; ``None`` where it is gone."""
        match self.deed:
            case "change":
                return content[: self.at] + b"mine" + content[self.at + 4 :]
            case "append":
                return content + b"mine"
            case "truncate":
                return content[: self.at]
            case "unlink":
                return None
        return b"mine"


class Crowd:
    """Readers and one writer. ``wrong`` is checked during the restore, ``see_off`` waits for all of them."""

    def __init__(
        self, tree: Path, target: Path, place: Path, dice: random.Random, readers: int = 2, pause_s: float = 0.04
    ) -> None:
        self._target = target
        names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file() and path.stat().st_size)
        changed = dice.sample(names, len(names) // 3)
        self._contents = {name: (tree / name).read_bytes() for name in names}
        self._changes = [
            Change(name, dice.choice(DEEDS), dice.randrange(max(len(self._contents[name]) - 4, 1))) for name in changed
        ]
        digests = {name: hashlib.md5(self._contents[name]).hexdigest() for name in names if name not in changed}
        (place / "digests").write_text(json.dumps(digests))
        (place / "changes").write_text(json.dumps(self._changes))
        self.users = [Task.python(_READER, target, str(dice.random()), place / "digests", str(pause_s)) for _ in range(readers)]
        self.users.append(Task.python(_WRITER, target, str(dice.random()), place / "changes", str(pause_s)))

    def busy(self) -> bool:
        """Whether any of them is still at it."""
        return not all(user.ended() for user in self.users)

    def see_off(self) -> int:
        """Wait for the good end of every one; how many errors they met."""
        refused = 0
        for user in self.users:
            with user:
                word, count = user.output().split()
                assert word == b"right"
                refused += int(count)
        return refused

    def wrong(self) -> Iterator[str]:
        """Files whose content is neither the backup's nor what the writer made of it."""
        changes = {change.name: change for change in self._changes}
        for name, content in self._contents.items():
            expected = changes[name].outcome(content) if name in changes else content
            found = (self._target / name).read_bytes() if os.path.lexists(self._target / name) else None
            if found != expected:
                size = "gone" if found is None else f"{len(found)} bytes, {found.count(0)} zeros"
                yield f"{name} ({changes.get(name)}): {size}"

    def end(self) -> None:
        """Whatever happened: none is left."""
        for user in self.users:
            with user:
                pass
